"""The wheel and the sdist hold what schane needs, and run outside the checkout."""

import ast
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from contextlib import suppress
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
from hatchling import build
from packaging.specifiers import SpecifierSet

from schane_cli.datasets.archives import unpack
from schane_cli.recipe import recipe_names
from schane_cli.terminal import Terminal
from tests.jobs import TINY

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pip would install from the wheel that pip would build from the sdist."""
    place = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        unpack(place / build.build_sdist(str(place)), place, Terminal(quiet=True))
        (unpacked,) = [path for path in place.iterdir() if path.is_dir()]
        patch.chdir(unpacked)
        with zipfile.ZipFile(place / build.build_wheel(str(place))) as file:
            file.extractall(place / "site")
    return place / "site"


def test_the_wheel_from_the_sdist_runs_outside_the_checkout_with_recipes_pages_and_types(
    site: Path, tmp_path: Path
) -> None:
    files = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    checkout = {str(path.relative_to(ROOT)) for path in (ROOT / "schane_cli").rglob("*") if path.is_file()}
    checkout = {name for name in checkout if "__pycache__" not in name}
    assert checkout <= files, "templates, class lists and py.typed are in the wheel"
    assert not any(name.startswith("tests/") for name in files)

    def schane(*arguments: str) -> str:
        code = "import schane_cli.cli as cli; print(cli.__file__); cli.main()"
        environment = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.check_output(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, text=True, timeout=280
        )

    listed = schane("recipes", "ls")
    assert listed.startswith(str(site))
    assert all(name in listed for name in recipe_names())
    assert "resolved" in schane("recipes", "show", "--help")
    schane("finetune", *(part for key, value in TINY.items() for part in ("--set", f"{key}={value}")), "--out", "run")
    assert (tmp_path / "run" / "report.html").is_file()


def _description(site: Path) -> str:
    (info,) = site.glob("schane-*.dist-info")
    return message_from_string((info / "METADATA").read_text()).get_payload()  # type: ignore[return-value]


def test_the_package_index_shows_no_dead_link_and_no_broken_picture(site: Path) -> None:
    description = _description(site)
    assert "python3 dev.py demo" in description
    assert "Does it help?" in description
    targets = re.findall(r"\]\(([^)]*)\)", description)
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []
    assert "<img" not in description
    assert "](docs" in (ROOT / "README.md").read_text(), "in a checkout the links lead to files"


def test_links_are_absolute_once_the_repository_has_an_address() -> None:
    described = runpy.run_path(str(ROOT / "hatch_build.py"))["long_description"]
    readme = "[a page](docs/a.md#b), [paper](https://arxiv.org)\n\n![a picture](docs/p.png)\n\nEnd"
    here = "https://forge.example/us/schane"
    assert described(readme, here) == (
        f"[a page]({here}/blob/HEAD/docs/a.md#b), [paper](https://arxiv.org)\n\n"
        f"![a picture]({here}/raw/HEAD/docs/p.png)\n\nEnd"
    )
    assert described(readme, None).startswith("a page, [paper](https://arxiv.org)\n\nEnd")


def test_the_sdist_holds_the_tests_and_no_results_of_runs(site: Path) -> None:
    (sdist,) = site.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {
        "pyproject.toml",
        "hatch_build.py",
        "README.md",
        "docs/install.md",
        "LICENSE",
        "recipes/digits.yaml",
        "tests/conftest.py",
    } <= names
    assert not any(name.endswith(".pt") for name in names)


def test_every_third_party_import_is_declared() -> None:
    """What the package imports at any place is a dependency, an extra, or the standard library."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    declared = {line.split(">")[0].split("[")[0].replace("-", "_").lower() for line in named}
    called = {
        "pillow": "PIL",
        "pyyaml": "yaml",
        "scikit_learn": "sklearn",
        "mlflow_skinny": "mlflow",
        "umap_learn": "umap",
        "backports.tarfile": "backports",
    }
    declared |= {called[name] for name in declared & called.keys()}
    declared |= {"triton", "requests", "httpx", "markupsafe", "pynvml"}  # brought by others, used where they are there
    imported = set()
    for path in (ROOT / "schane_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    undeclared = {name for name in imported - sys.stdlib_module_names - {"schane_cli"} if name not in declared}
    assert {name for name in undeclared if name.lower() not in declared} == set()


def test_every_pinned_package_takes_the_lowest_python() -> None:
    """The one that the README promises, whichever runs this test: Debian 12's own is 3.11.2."""
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    pins = [line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    refused = []
    for name in pins:
        with suppress(metadata.PackageNotFoundError):  # of another platform
            needed = metadata.metadata(name).get("Requires-Python") or ""
            if f"{lowest}.0" not in SpecifierSet(needed):
                refused.append(f"{name} needs Python {needed}")
    assert not refused
