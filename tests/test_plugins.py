"""Entry points of installed packages: found by name, imported when asked for, and named when they fail."""

from pathlib import Path

import pytest

from schane_cli.cli import main
from schane_cli.datasets.check import check
from schane_cli.datasets.load import load_splits
from schane_cli.datasets.prepare import info
from schane_cli.errors import BadRequest
from schane_cli.plugins import load_plugin, plugin_names
from schane_cli.recipe import DataRecipe
from schane_cli.terminal import Terminal


def install(site: Path, package: str, code: str, group: str, name: str) -> None:
    """A package as pip leaves it in a site folder: a module, and a dist-info folder with one entry point."""
    (site / f"{package}.py").write_text(code)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {package}:Thing\n")


def test_an_installed_package_adds_a_name_and_is_imported_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "sound_package", "class Thing:\n    pass\n", "schane.datasets", "sound")
    assert "sound" in plugin_names("schane.datasets")
    assert "sound" not in plugin_names("schane.losses")
    assert load_plugin("schane.datasets", "sound").__name__ == "Thing"


def test_a_package_that_fails_to_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "broken_package", "import no_such_module_at_all\n", "schane.losses", "broken")
    with pytest.raises(BadRequest, match=r"'broken' in losses comes from the package broken_package.*no_such_module"):
        load_plugin("schane.losses", "broken")


def test_two_packages_of_one_name_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("first_package", "second_package"):
        install(tmp_path, package, "class Thing:\n    pass\n", "schane.losses", "same")
    with pytest.raises(BadRequest, match="first_package and second_package"):
        load_plugin("schane.losses", "same")


def test_a_name_of_no_package_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        load_plugin("schane.classifiers", "nobody")


DATASET = """
import numpy as np

from schane_cli.datasets.catalog import Dataset
from schane_cli.images.imageset import ImageSet, Names


class Thing(Dataset):
    title, licence, source, classes, counts = "Leaves", "CC0", "https://example.org", 2, {"all": 40}

    def read(self, root):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        names = Names(f"{i:03d}" for i in range(40))
        return {"all": ImageSet("leaves", "all", pixels, np.arange(40) % 2, ("elm", "oak"), names)}
"""


def test_a_package_adds_a_dataset_by_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "leaves_package", DATASET, "schane.datasets", "leaves")
    install(tmp_path, "bad_package", "import no_such_module_at_all\n", "schane.datasets", "withered")
    install(tmp_path, "odd_package", "Thing = 3\n", "schane.datasets", "odd")
    splits = load_splits(DataRecipe(dataset="leaves"))
    assert splits.train.class_names == ("elm", "oak")
    assert check("leaves", tmp_path, Terminal(quiet=True)).problems == []
    assert info("leaves", tmp_path)["licence"] == "CC0"
    with pytest.raises(SystemExit):
        main(["data", "ls", "--root", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "leaves" in shown
    assert "comes from the package bad_package, which cannot be imported" in shown
    assert "is not a subclass of" in shown
    with pytest.raises(BadRequest, match=r"unknown dataset 'leave'; did you mean 'leaves'"):
        load_splits(DataRecipe(dataset="leave"))
    with pytest.raises(BadRequest, match="bad_package, which cannot be imported"):
        load_splits(DataRecipe(dataset="withered"))
