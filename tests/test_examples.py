"""The examples run as they stand."""

import os
import re
import runpy
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from schane_cli.datasets.load import load_splits
from schane_cli.plugins import load_plugin, plugin_names
from schane_cli.recipe import DataRecipe
from tests.processes import start, start_ranks, words_into

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.slow


def run_example(rank: int, example: str, said: Path) -> None:
    """`python example`, in a process forked for it."""
    sys.path.insert(0, str(EXAMPLES))
    with words_into(said.with_name(f"said{rank}")):
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")


def test_the_plain_loop_learns_the_digits(tmp_path: Path) -> None:
    start(run_example, 0, "plain_loop.py", tmp_path / "said").join()
    accuracy = re.fullmatch(r"test accuracy (\d+\.\d+) % \(n = 360\)\n", (tmp_path / "said0").read_text())
    assert accuracy is not None
    assert float(accuracy[1]) > 95


@pytest.mark.parametrize(
    ("example", "packages"),
    [("lightning_module.py", ["pytorch_lightning"]), ("hf_trainer.py", ["transformers", "accelerate"])],
)
def test_the_loss_learns_the_digits_inside_a_trainer(example: str, packages: list[str], tmp_path: Path) -> None:
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install 'schane[examples]')")
    start(run_example, 0, example, tmp_path / "said").join()
    accuracy = re.search(r"test accuracy (\d+\.\d+) % \(n = 360\)\n", (tmp_path / "said0").read_text())
    assert accuracy is not None
    assert float(accuracy[1]) > 90


def test_the_notebook_goes_from_images_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (pip install 'schane[examples]')")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (pip install 'schane[examples]')")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (pip install 'schane[examples]')")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "images_to_report.ipynb", as_version=4)
    for cell, whole, part in ((1, "(digits.images, digits.target,", "(digits.images[:200], digits.target[:200],"),
                              (5, "--epochs 5", "--epochs 1")):  # fmt: skip
        assert whole in notebook.cells[cell].source
        notebook.cells[cell].source = notebook.cells[cell].source.replace(whole, part)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert re.search(r"test accuracy \d+\.\d+% \(95 % interval", printed)
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "named" / "predictions.csv").is_file()


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    start_ranks(run_example, 2, "ddp.py", tmp_path / "said")
    out = (tmp_path / "said0").read_text()
    difference = re.search(r"2 processes, largest difference of the gradient: (\S+)", out)
    assert difference is not None
    assert float(difference[1]) < 1e-12


def test_the_plug_in_package_adds_what_its_entry_points_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = tomllib.loads((EXAMPLES / "plugin" / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "schane_example_plugin-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: schane-example-plugin\nVersion: 0.1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES / "plugin")
    for group, names in groups.items():
        assert set(names) <= set(plugin_names(group))

    splits = load_splits(DataRecipe(dataset="stripes"))
    assert splits.train.class_names == ("row 0", "row 8", "row 16", "row 24")

    projection = torch.randn(8, 4, requires_grad=True)
    loss = load_plugin("schane.losses", "margin")(margin=0.3)(projection, torch.arange(8) // 2)
    loss.backward()
    assert loss > 0
    assert torch.isfinite(projection.grad).all()

    support = torch.eye(3)[None, :, None].expand(1, 3, 5, 3)
    logits = load_plugin("schane.classifiers", "median")(support, torch.eye(3)[None])
    assert logits.argmax(-1).tolist() == [[0, 1, 2]]
