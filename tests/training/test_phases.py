"""The heads alone, then all weights: what each phase moves, its schedule, and exact resume across the two."""

import json
import signal
from pathlib import Path

import pytest
import torch

from schane_cli.commands.finetune import finetune
from schane_cli.errors import BadRequest
from schane_cli.models.files import read_tensors
from schane_cli.recipe import TrainRecipe
from schane_cli.terminal import Terminal
from schane_cli.training.hooks import Progress, on_epoch, on_step
from schane_cli.training.interruption import Interrupted
from schane_cli.training.phases import phase_of_last, phases
from tests.jobs import run_tiny, tiny_recipe

# Four steps an epoch: two epochs of the heads alone, then two of all.
LPFT = {"train__head_epochs": 2, "train__epochs": 2, "train__ema_decay": 0.9, "model__drop_path": 0.2}


def _state(run: Path, name: str = "last.pt") -> dict:
    return read_tensors(run / "checkpoints" / name)


def _steps(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """A run never stopped, and the backbone's weights before it and after each of its steps."""
    out = tmp_path_factory.mktemp("phases") / "run"
    seen: list[dict[str, torch.Tensor]] = []

    def record(progress: Progress) -> None:
        seen.append({key: value.clone() for key, value in progress.model.backbone.state_dict().items()})

    with on_step(record):
        run_tiny(out, **LPFT)
    return out, seen


def test_the_backbone_moves_only_once_the_heads_have_trained(
    whole: tuple[Path, list[dict[str, torch.Tensor]]],
) -> None:
    _, seen = whole
    assert len(seen) == 16

    def moved(before: dict, after: dict) -> set[str]:
        return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}

    assert moved(seen[0], seen[7]) == {"fc"}
    assert moved(seen[7], seen[8]) > {"fc", "conv1"}


def test_each_phase_has_a_schedule_of_its_own(whole: tuple[Path, list[dict[str, torch.Tensor]]]) -> None:
    rates = [line["lr"] for line in _steps(whole[0])]
    assert len(rates) == 16
    heads, free = rates[:8], rates[8:]
    assert heads == free
    assert heads[0] == pytest.approx(1e-6)
    assert max(heads) == pytest.approx(3e-3)
    assert heads[-1] < max(heads) / 4


@pytest.mark.parametrize("step", [3, 8, 9])  # in the first phase, between the two, in the second
def test_a_run_stopped_in_either_phase_ends_with_the_same_bits(
    tmp_path: Path, whole: tuple[Path, list[dict[str, torch.Tensor]]], step: int
) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == step:
            signal.raise_signal(signal.SIGTERM)

    with on_step(stop), pytest.raises(Interrupted):
        run_tiny(tmp_path / "run", **LPFT)
    run_tiny(tmp_path / "run", resume=True, **LPFT)
    for name in ("last.pt", "best.pt"):
        one, two = _state(whole[0], name), _state(tmp_path / "run", name)
        for part in ("state_dict", "projection"):
            assert all(torch.equal(tensor, two[part][key]) for key, tensor in one[part].items()), (name, part)
    assert one["progress"] == two["progress"]


def test_epochs_count_through_both_phases(whole: tuple[Path, list[dict[str, torch.Tensor]]], tmp_path: Path) -> None:
    epochs: list[int] = []

    def record(progress: Progress) -> None:
        epochs.append(progress.epoch)

    with on_epoch(record):
        summary = finetune(tiny_recipe(**LPFT), out=tmp_path / "run", terminal=Terminal(quiet=True))
    assert epochs == [1, 2, 3, 4]
    assert summary["epochs"] == 4


def test_a_layer_that_is_frozen_stays_so(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def record(progress: Progress) -> None:
        seen.append(progress.model.backbone.conv1[0].weight.detach().clone())

    with on_step(record):
        run_tiny(tmp_path / "run", model__freeze=["conv1"], **{**LPFT, "train__head_epochs": 1, "train__epochs": 1})
    assert all(torch.equal(weight, seen[0]) for weight in seen)


@pytest.mark.parametrize(("step", "phase"), [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1)])
def test_a_checkpoint_belongs_to_the_phase_of_its_last_step(step: int, phase: int) -> None:
    both = phases(TrainRecipe(head_epochs=2, epochs=2), steps_per_epoch=4)
    assert phase_of_last(step, both) is both[phase]


def test_heads_alone_need_epochs_after_them() -> None:
    with pytest.raises(BadRequest, match="head_epochs come before epochs"):
        tiny_recipe(train__head_epochs=1, train__epochs=0)


# activations computed again in the backward pass

PLAIN = {"train__epochs": 2, "model__drop_path": 0.3}


@pytest.mark.parametrize(
    "overrides",
    [
        {"model__backbone": "test_vit"},
        {"model__backbone": "test_vit", "train__chunk_size": 10},
        {"train__batchnorm": "running"},
        {"train__batchnorm": "running", "train__chunk_size": 10},
    ],
    ids=["vit", "vit in chunks", "running BatchNorm", "running BatchNorm in chunks"],
)
def test_checkpointed_activations_change_no_bit(tmp_path: Path, overrides: dict) -> None:
    for name, on in (("off", False), ("on", True)):
        run_tiny(tmp_path / name, train__checkpoint_activations=on, **{**PLAIN, **overrides})
    off, on = (_state(tmp_path / name) for name in ("off", "on"))
    for part in ("state_dict", "projection"):
        for key, tensor in off[part].items():
            assert torch.equal(tensor, on[part][key]), (part, key)
    assert _steps(tmp_path / "off")[-1]["loss"] == _steps(tmp_path / "on")[-1]["loss"]


def test_a_backbone_that_cannot_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="timm cannot checkpoint the activations of dla34"):
        run_tiny(tmp_path / "run", model__backbone="dla34", data__image_size=32, train__checkpoint_activations=True)
    assert not (tmp_path / "run").exists()
