"""train.batchnorm: which statistics BatchNorm trains with, and which it is scored with."""

from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from schane_cli.datasets.load import load_splits
from schane_cli.features.extract import normalise
from schane_cli.images.loader import eval_loader
from schane_cli.images.preprocessing import eval_transform
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.models.files import read_tensors
from schane_cli.models.model import SchaneModel
from schane_cli.terminal import Terminal
from schane_cli.training import batchnorm
from schane_cli.training.job import prepare
from schane_cli.training.trainer import Job, Trainer
from tests.jobs import run_tiny, tiny_recipe

CPU = torch.device("cpu")


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


def test_slow_statistics_move_by_a_hundredth_in_a_step(tmp_path: Path) -> None:
    moved = {}
    for choice in ("running", "slow"):
        job = _job(tmp_path / choice, train__batchnorm=choice)
        before = _statistics(job.model)
        after = _statistics(_steps(job, 1).model)
        moved[choice] = [b - a for a, b in zip(before, after, strict=True)]
    for ten, one in zip(moved["running"], moved["slow"], strict=True):
        assert torch.allclose(ten, 10 * one, rtol=1e-3, atol=1e-4)


def test_reestimated_statistics_are_those_of_the_training_images_without_augmentation(tmp_path: Path) -> None:
    job = _job(tmp_path / "run")
    trainer = _steps(job)
    trainer._reestimate(trainer.model)
    stem = next(module for module in trainer.model.modules() if isinstance(module, _BatchNorm))
    seen: list[torch.Tensor] = []
    hook = stem.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    loader = eval_loader(job.train, eval_transform(job.spec), batch_size=50, workers=0)
    with torch.no_grad():
        for pixels, _, _ in loader:
            trainer.model.eval()(normalise(pixels, job.spec, CPU))
    hook.remove()
    variance, mean = torch.var_mean(torch.cat(seen), (0, 2, 3))
    assert torch.allclose(stem.running_mean, mean, atol=1e-5)
    assert torch.allclose(stem.running_var, variance, rtol=0.02)  # batches of 50: the mean of their variances
    assert stem.momentum == 0.1
    assert not trainer.model.training


def test_reestimation_leaves_frozen_layers_and_the_random_state_alone(tmp_path: Path) -> None:
    job = _job(tmp_path / "run", model__freeze=["layer1"], model__drop_path=0.5)
    trainer = _steps(job)
    frozen, free = (_statistics(part) for part in (job.model.backbone.layer1, job.model.backbone.layer2))
    state = torch.get_rng_state()
    trainer._reestimate(trainer.model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(frozen, _statistics(job.model.backbone.layer1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(free, _statistics(job.model.backbone.layer2), strict=True))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_checkpoint_that_is_scored_holds_reestimated_statistics(tmp_path: Path, ema: float | None) -> None:
    run_tiny(tmp_path / "run", train__batchnorm="reestimated", train__ema_decay=ema)
    loaded = load_checkpoint(tmp_path / "run")
    before = _statistics(loaded.model)
    splits = load_splits(loaded.recipe.data)
    batchnorm.reestimate(
        loaded.model, splits.train, loaded.input, device=CPU, batch_size=50, workers=0, amp="off", seed=0
    )
    for one, other in zip(before, _statistics(loaded.model), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("choice", ["frozen", "slow", "reestimated"])
def test_a_stopped_run_resumes_to_the_same_bits_by_every_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    settings = {"train__batchnorm": choice, "train__ema_decay": 0.9, "train__epochs": 2}
    run_tiny(tmp_path / "whole", **settings)
    report = Trainer._report

    def stop(self: Trainer, *arguments: object) -> None:
        report(self, *arguments)  # type: ignore[arg-type]
        if self.step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_report", stop)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "stopped", **settings)
    monkeypatch.setattr(Trainer, "_report", report)
    run_tiny(tmp_path / "stopped", resume=True, **settings)
    for name in ("best.pt", "last.pt"):
        one, two = (read_tensors(tmp_path / run / "checkpoints" / name) for run in ("whole", "stopped"))
        assert all(torch.equal(one["state_dict"][key], two["state_dict"][key]) for key in one["state_dict"])


def test_a_model_without_batchnorm_is_not_touched(tmp_path: Path) -> None:
    job = _job(tmp_path / "run", model__backbone="test_vit")
    assert not batchnorm.has_batchnorm(job.model)
    before = {key: value.clone() for key, value in job.model.state_dict().items()}
    trainer = Trainer(job)
    trainer._reestimate(trainer.model)
    assert isinstance(trainer.model, SchaneModel)
    assert all(torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())
