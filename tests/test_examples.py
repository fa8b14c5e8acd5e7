"""The examples run as they stand."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from schane_cli.datasets.load import load_splits
from schane_cli.plugins import load_plugin, plugin_names
from schane_cli.recipe import DataRecipe

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.check_output([sys.executable, *command], env=environment, text=True, timeout=240)


def test_the_plain_loop_learns_the_digits() -> None:
    out = run_example(str(EXAMPLES / "plain_loop.py"))
    accuracy = re.fullmatch(r"test accuracy (\d+\.\d+) % \(n = 360\)\n", out)
    assert accuracy is not None
    assert float(accuracy[1]) > 95


def test_two_processes_have_the_gradient_of_one() -> None:
    out = run_example("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLES / "ddp.py"))
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
