"""The sweep of backbones: its committed table says what its lines say, and names what was not run."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    spec = importlib.util.spec_from_file_location("backbones", ROOT / "benchmarks" / "backbones.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _line(name: str, half: str, **figures: Any) -> dict[str, Any]:
    shown = {"module": "m", "date": "2026-01-01", "versions": {"timm": "1"}, "size": 64, "parameters": 10**6}
    return {**shown, "embedding_dim": 8, "direct": True, "backbone": name, "half": half, **figures}


def test_the_committed_table_is_made_of_the_committed_lines(sweep: ModuleType) -> None:
    runs = ROOT / sweep.RUNS
    assert runs.with_suffix(".md").read_text() == sweep.report(sweep.read(runs))


def test_the_table_says_what_works_what_does_not_and_what_was_not_run(sweep: ModuleType) -> None:
    agrees, differs = {"largest_logit": 1e-3, "difference": 1e-10}, {"largest_logit": 1e-3, "difference": 1e-5}
    lines = [_line("resnet10t", "timm", **agrees), _line("vgg11", "timm", **agrees), _line("vgg11", "onnx", **differs)]
    table = sweep.report([*lines, _line("dla34", "timm", error="no such operator")])
    assert "2 of 3 backbones" in table
    assert "1 of the 3 were exported to ONNX too: 0 gave the same logits" in table
    assert f"Nothing was run for {len(sweep.NAMES) - 3} of its names: beit_base_patch16_224, " in table
    assert "| resnet10t | 1.0 | 64 | 8 | linear | 1e-07 | not run |" in table
    assert "no such operator" in table
