"""The long description of the package, made from README.md when a wheel or an sdist is built.

A link to a file works in a checkout and is dead on a package index. Where pyproject.toml names the public repository
(`project.urls`, key Repository), links and pictures get its address; where it does not, they become their bare text.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_IMAGE = re.compile(r"!\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")
RELATIVE_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")
NOT_LINKED = "\nThe documents named here are in the source distribution, under `docs` and `results`.\n"


def long_description(readme: str, repository: str | None) -> str:
    """README.md without a relative link or picture: made absolute on the default branch, or left out."""
    if repository:
        base = repository.rstrip("/")
        readme = RELATIVE_IMAGE.sub(lambda found: f"![{found[1]}]({base}/raw/HEAD/{found[2]})", readme)
        return RELATIVE_LINK.sub(lambda found: f"[{found[1]}]({base}/blob/HEAD/{found[2]})", readme)
    readme = re.sub(rf"^{RELATIVE_IMAGE.pattern}\n\n", "", readme, flags=re.MULTILINE)
    return RELATIVE_LINK.sub(r"\1", RELATIVE_IMAGE.sub("", readme)) + NOT_LINKED


class CustomMetadataHook(MetadataHookInterface):
    """Hatchling calls `update` for the fields that pyproject.toml lists as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        project = tomllib.loads((Path(self.root) / "pyproject.toml").read_text())["project"]
        readme = (Path(self.root) / "README.md").read_text()
        text = long_description(readme, project.get("urls", {}).get("Repository"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
