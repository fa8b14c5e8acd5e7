"""What installed packages add to schane: datasets, losses and classifiers, each under an entry point group.

A package adds one by a line in its pyproject.toml, and its code is imported only when the name is asked for:

    [project.entry-points."schane.datasets"]
    leaves = "my_package.leaves:Leaves"
"""

from typing import TYPE_CHECKING, Any

from schane_cli.errors import BadRequest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DATASETS = "schane.datasets"
LOSSES = "schane.losses"
CLASSIFIERS = "schane.classifiers"


def plugin_names(group: str) -> list[str]:
    """The names that installed packages add to a group, in alphabetical order; none of the packages is imported."""
    from importlib.metadata import entry_points  # a tenth of the time of --help, which needs none

    return sorted({entry.name for entry in entry_points(group=group)})


def load_plugin(group: str, name: str) -> Any:
    """The object that an installed package registers as `name` in `group`.

    Raises:
        BadRequest: the package cannot be imported, or two packages use the name; the sentence names the package.
        KeyError: no package registers the name.
    """
    from importlib.metadata import entry_points

    entries = list(entry_points(group=group, name=name))
    if not entries:
        raise KeyError(name)
    kind = group.rpartition(".")[2]
    packages = sorted({_package(entry) for entry in entries})
    if len(packages) > 1:
        raise BadRequest(f"{name!r} in {kind} comes from two packages, {' and '.join(packages)}; uninstall one of them")
    try:
        return entries[0].load()
    except (Exception, SystemExit) as error:  # whatever someone else's module raises as it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadRequest(
            f"{name!r} in {kind} comes from the package {packages[0]}, which cannot be imported ({reason}); "
            f"fix or uninstall {packages[0]}"
        ) from None


def _package(entry: "EntryPoint") -> str:
    """The name of the distribution that an entry point belongs to."""
    return entry.dist.name if entry.dist is not None else entry.module.partition(".")[0]
