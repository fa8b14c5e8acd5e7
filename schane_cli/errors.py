"""The one exception a user sees: a sentence in the user's terms, and the exit code that goes with it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module


class SchaneError(Exception):
    """A run that failed for a reason outside the program (exit code 1). The message is the whole explanation."""

    exit_code = 1


class BadRequest(SchaneError):  # noqa: N818 (reads as what it is)
    """Something asked for that cannot be done (exit code 2). Raised before any work starts."""

    exit_code = 2


@contextmanager
def refusing() -> Iterator[None]:
    """A ValueError of the science (losses, few-shot, metrics) inside becomes a BadRequest with the same sentence."""
    try:
        yield
    except ValueError as reason:
        raise BadRequest(str(reason)) from reason


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or nothing where none is close."""
    matches = get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def require_package(needs: str, extra: str, *modules: str) -> None:
    """BadRequest, `<needs>: pip install 'schane[<extra>]'`, where a module that an extra brings cannot be imported."""
    try:
        for module in modules:
            import_module(module)
    except ImportError:
        raise BadRequest(f"{needs}: pip install 'schane[{extra}]'") from None
