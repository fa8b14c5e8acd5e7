"""train.batchnorm: which statistics BatchNorm normalises by in training."""

from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from schane_cli.datasets.load import load_splits
from schane_cli.models.files import read_tensors
from schane_cli.terminal import Terminal
from schane_cli.training import batchnorm
from schane_cli.training.hooks import Progress, on_step
from schane_cli.training.job import announce, prepare
from schane_cli.training.trainer import Job, Trainer
from tests.jobs import run_tiny, tiny_recipe


def _job(out: Path, **overrides: object) -> Job:
    recipe = tiny_recipe(train__ema_decay=None, train__epochs=1, **overrides)
    splits = load_splits(recipe.data)
    return prepare(recipe, splits.train, splits.val, "finetune", out=out, terminal=Terminal(quiet=True))


def _statistics(model: torch.nn.Module) -> list[torch.Tensor]:
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [statistic.clone() for layer in layers for statistic in (layer.running_mean, layer.running_var)]  # type: ignore[union-attr]


def _steps(job: Job, count: int = 2) -> Trainer:
    trainer = Trainer(job)
    for _, (views, labels, indices) in zip(range(count), trainer._loader(), strict=False):
        trainer._training_step(views, labels, indices)
    return trainer


def test_frozen_statistics_stay_as_they_came_while_scale_and_shift_are_trained(tmp_path: Path) -> None:
    job = _job(tmp_path / "run", train__batchnorm="frozen")
    layer = next(module for module in job.model.modules() if isinstance(module, _BatchNorm))
    statistics, weight = _statistics(job.model), layer.weight.detach().clone()
    trainer = _steps(job)
    assert all(torch.equal(a, b) for a, b in zip(statistics, _statistics(trainer.model), strict=True))
    assert not torch.equal(layer.weight, weight)


def test_frozen_statistics_make_the_gradient_of_chunks_that_of_the_whole_batch(tmp_path: Path) -> None:
    gradients = []
    for name, chunk in (("whole", None), ("chunks", 7)):
        trainer = Trainer(_job(tmp_path / name, train__batchnorm="frozen", train__chunk_size=chunk))
        trainer.model.train()
        trainer._backward(*next(iter(trainer._loader())))
        gradients.append({key: p.grad for key, p in trainer.model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()), name


def test_a_stopped_run_with_frozen_statistics_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"train__batchnorm": "frozen", "train__ema_decay": 0.9, "train__epochs": 2}
    run_tiny(tmp_path / "whole", **settings)

    def stop(progress: Progress) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    with on_step(stop), pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "stopped", **settings)
    run_tiny(tmp_path / "stopped", resume=True, **settings)
    for name in ("best.pt", "last.pt"):
        one, two = (read_tensors(tmp_path / run / "checkpoints" / name) for run in ("whole", "stopped"))
        assert all(torch.equal(one["state_dict"][key], two["state_dict"][key]) for key in one["state_dict"])


def test_auto_keeps_the_statistics_of_weights_that_were_trained_before() -> None:
    assert batchnorm.choice(tiny_recipe()) == "running"
    assert batchnorm.choice(tiny_recipe(model__weights="pretrained")) == "frozen"
    assert batchnorm.choice(tiny_recipe(model__weights="somewhere/run")) == "frozen"
    assert batchnorm.choice(tiny_recipe(model__weights="pretrained", train__batchnorm="running")) == "running"


def test_running_statistics_move_by_a_tenth_of_each_batch(tmp_path: Path) -> None:
    job = _job(tmp_path / "run")
    before = _statistics(job.model)
    after = _statistics(_steps(job).model)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("backbone", "said"), [("test_resnet", "BatchNorm running"), ("test_vit", None)])
def test_the_header_of_a_run_says_what_batchnorm_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: str, said: str | None
) -> None:
    recipe = tiny_recipe(model__backbone=backbone)
    splits = load_splits(recipe.data)
    announce(
        prepare(recipe, splits.train, splits.val, "finetune", out=tmp_path / "run", terminal=Terminal()),
        [],
        splits.test,
    )
    shown = "".join(capsys.readouterr())
    assert said in shown if said else "BatchNorm" not in shown
