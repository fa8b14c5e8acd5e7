"""Pages that need no network: jinja2 templates, filled with plain values and written into a run folder."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from schane_cli.reports import plots
from schane_cli.reports.navigation import Place, link_back, navigation
from schane_cli.run import RunFolder, write_text
from schane_cli.terminal import visible

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """An image inside a page as data: addresses, with a twin for dark screens where it has one."""

    source: str
    description: str
    dark_source: str | None = None
    caption: str = ""


@dataclass(frozen=True)
class Link:
    """A table cell that leads to another page."""

    text: str
    href: str


@dataclass(frozen=True)
class Command:
    """What to run next, and what it gives."""

    line: str
    purpose: str


@cache
def environment() -> Environment:
    """Jinja2 with autoescape; a name that a template does not know is an error, not an empty string."""
    jinja = Environment(
        loader=PackageLoader("schane_cli.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_text,
    )
    jinja.globals |= {"asset": asset, "parts": jinja.get_template("parts.html.j2").module}
    jinja.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return jinja


def _text(value: Any) -> Any:
    """Text from outside with its control characters made visible; everything else as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def asset(name: str) -> Markup:
    """A style sheet or script of this package, to stand inside <style> or <script>."""
    return Markup((TEMPLATES / name).read_text())


def render(name: str, **context: Any) -> str:
    """The page of `templates/NAME.html.j2`, all text in `context` escaped.

    base.html.j2 needs `title` (and takes `navigation`, a list of Place); see write_page for a run folder's page.
    """
    return environment().get_template(f"{name}.html.j2").render(**context)


def write_page(run: Path, name: str, **context: Any) -> Path:
    """Fill template NAME into report.html of a run folder, with links to its siblings and how the run was made.

    The pages of the folders that it links to are given a link to it.
    """
    folder, places = RunFolder(run), navigation(run)
    recipe = folder.read_settings() if folder.exists else {}
    machine = folder.read_environment() if folder.environment_file.is_file() else {}
    write_text(folder.page, render(name, navigation=places, recipe=recipe, environment=machine, **context))
    link_back(run, places, render_navigation)
    return folder.page


def render_navigation(places: Sequence[Place]) -> str:
    """The part of a page that links its siblings."""
    return render("navigation", navigation=places)


def drawn(figure: Figure, path: Path, description: str, caption: str = "") -> Picture:
    """Save a figure to `path`; returns it for the page, with its twin for dark screens."""
    plots.save(figure, path)
    dark = data_url(plots.on_dark_paper(path), "png")
    return Picture(data_url(path.read_bytes(), "png"), description, dark, caption)


def thumbnail(encoded: bytes, description: str, side: int = 160, caption: str = "") -> Picture:
    """An image file's bytes, made no larger than `side` pixels, as a small picture."""
    image = Image.open(BytesIO(encoded)).convert("RGB")
    image.thumbnail((side, side))
    buffer = BytesIO()
    image.save(buffer, "webp", lossless=max(image.size) <= 64, quality=80)
    return Picture(data_url(buffer.getvalue(), "webp"), description, caption=caption)


def data_url(content: bytes, kind: str) -> str:
    """The bytes of a picture as an address that needs no network."""
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
