"""Entry points of installed packages: found by name, imported when asked for, and named when they fail."""

from pathlib import Path

import pytest

from schane_cli.errors import BadRequest
from schane_cli.plugins import load_plugin, plugin_names


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
