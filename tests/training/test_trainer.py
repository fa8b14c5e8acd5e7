"""The training core: exact resume after a kill, gradient caching, and the checks before the first batch."""

import json
import math
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from schane_cli.commands.finetune import finetune
from schane_cli.datasets.load import load_splits
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.images.loader import StepSampler
from schane_cli.models.files import read_tensors
from schane_cli.models.model import SchaneModel
from schane_cli.preflight import resumed_recipe
from schane_cli.recipe import Recipe
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal
from schane_cli.training import job as job_module
from schane_cli.training import request
from schane_cli.training import trainer as training
from schane_cli.training.gradient import cached_backward, largest_fitting, make_batch, whole_backward
from schane_cli.training.hooks import Progress, on_step
from schane_cli.training.interruption import Interrupted
from schane_cli.training.job import prepare, train
from schane_cli.training.objective import Objective
from schane_cli.training.request import check_request
from schane_cli.training.trainer import Job, Trainer
from tests.jobs import run_tiny, tiny_recipe
from tests.processes import start


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run_tiny(out, **STOCHASTIC)
    return out


# Everything that holds state: dropped paths draw random numbers, EMA and memory carry tensors from step to step.
STOCHASTIC = {"model__drop_path": 0.2, "train__ema_decay": 0.9, "loss__memory_size": 64, "train__clip_grad": 5.0}


def _state(run: Path, name: str) -> dict:
    return read_tensors(run / "checkpoints" / name)


def _assert_same_bits(a: Path, b: Path) -> None:
    for name in ("best.pt", "last.pt"):
        one, two = _state(a, name), _state(b, name)
        for part in ("state_dict", "projection"):
            for key, tensor in one[part].items():
                assert torch.equal(tensor, two[part][key]), f"{name} {part} {key}"
        assert one["progress"] == two["progress"]


def _logged(run: Path, event: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = {"time", "images_per_second", "data_wait_percent"}
    return [{k: v for k, v in line.items() if k not in timing} for line in lines if line["event"] == event]


def _job(out: Path, recipe: Recipe) -> Job:
    splits = load_splits(recipe.data)
    return prepare(recipe, splits.train, splits.val, "finetune", out=out, terminal=Terminal(quiet=True))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _child(out: Path, kill_step: int, place: str) -> None:
    """Train in a process of its own, and die by SIGKILL at the step and place given (step 0: live)."""
    torch.set_num_threads(1)
    recipe = tiny_recipe(train__epochs=5, **STOCHASTIC)
    splits, resume = load_splits(recipe.data), out if out.exists() else None
    terminal = Terminal(quiet=True)
    job = prepare(recipe, splits.train, splits.val, "finetune", out=out, terminal=terminal, resume=resume)
    save = torch.save
    done = [int(job.stored["training"]["step"]) if job.stored else 0]  # steps

    def in_the_step(module: torch.nn.Module, inputs: object) -> None:
        if place == "in the step" and module.training and done[0] + 1 == kill_step:
            _die()

    def after_the_step(progress: Progress) -> None:
        done[0] = progress.step
        if place == "after the step" and progress.step == kill_step:
            _die()

    def dying_save(content: dict, file: BinaryIO) -> None:
        if place == "half way through a checkpoint" and done[0] == kill_step:
            file.write(b"half")
            file.flush()
            _die()
        save(content, file)

    job.model.register_forward_pre_hook(in_the_step)
    torch.save = dying_save  # type: ignore[assignment]
    with on_step(after_the_step):
        train(job)


@pytest.mark.slow
def test_a_run_killed_at_any_of_twenty_points_ends_with_the_same_bits(tmp_path: Path) -> None:
    generator = random.Random(0)

    def run(out: str, kill_step: int = 0, place: str = "") -> int | None:
        process = start(_child, tmp_path / out, kill_step, place)
        process.join()
        return process.exitcode

    assert run("whole") == 0
    for kill_step in range(1, 21):  # 5 epochs of 4 steps; a checkpoint is written after each fourth
        places = ["in the step", "after the step"] + ["half way through a checkpoint"] * (kill_step % 4 == 0)
        assert run("killed", kill_step, generator.choice(places)) == -signal.SIGKILL
    assert run("killed") == 0
    _assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert _logged(tmp_path / "whole", "epoch") == _logged(tmp_path / "killed", "epoch")


@pytest.fixture
def stop_at_step() -> Iterator[list[int]]:
    """Raise the signal given after the step given: [step, signal]."""
    plan = [0, 0]

    def and_signal(progress: Progress) -> None:
        if progress.step == plan[0]:
            signal.raise_signal(plan[1])

    with on_step(and_signal):
        yield plan


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_resumed_run_equals_one_never_stopped(
    tmp_path: Path, never_stopped: Path, stop_at_step: list[int], number: signal.Signals
) -> None:
    stop_at_step[:] = [6, number]
    with pytest.raises(Interrupted, match="--resume") as caught:
        run_tiny(tmp_path / "run", **STOCHASTIC)
    assert caught.value.exit_code == 128 + number
    stop_at_step[:] = [0, 0]
    run_tiny(tmp_path / "run", resume=True, **STOCHASTIC)
    _assert_same_bits(tmp_path / "run", never_stopped)
    for event in ("epoch", "step"):
        assert _logged(tmp_path / "run", event) == _logged(never_stopped, event)


def test_the_number_of_loader_processes_changes_nothing(tmp_path: Path, never_stopped: Path) -> None:
    run_tiny(tmp_path / "run", data__workers=1, **STOCHASTIC)
    _assert_same_bits(tmp_path / "run", never_stopped)


def _gradients(trainer: Trainer, chunk: int | None, views: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor):
    torch.manual_seed(3)
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.model.train()
    batch = make_batch(views, labels, indices, trainer.objective, trainer.device)
    if chunk is None:
        parts = whole_backward(trainer._forward, trainer.objective, batch)
    else:
        parts = cached_backward(
            trainer._forward,
            trainer.objective,
            batch,
            chunk_rows=chunk,
            model=trainer.model,
            device=trainer.device,
            unsynchronised=torch.enable_grad,  # stands in for DDP's no_sync
        )
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return parts, gradients


@pytest.mark.parametrize("loss", ["schane", "supcon", "simclr", "ce"])
@pytest.mark.parametrize("chunk", [7, 16])
def test_gradient_caching_gives_the_gradient_of_the_whole_batch(tmp_path: Path, loss: str, chunk: int) -> None:
    recipe = tiny_recipe(model__backbone="test_vit", loss__name=loss)
    trainer = Trainer(_job(tmp_path / "run", recipe))
    views, labels, indices = next(iter(trainer._loader()))
    whole, expected = _gradients(trainer, None, views, labels, indices)
    cached, chunked = _gradients(trainer, chunk, views, labels, indices)
    assert cached.total == pytest.approx(whole.total.item(), rel=1e-5)
    assert chunked.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(chunked[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item() + 1e-9), name


def test_gradient_caching_repeats_each_chunks_random_numbers(tmp_path: Path) -> None:
    """With drop path the second pass must drop the same paths: its outputs equal those of the first pass."""
    recipe = tiny_recipe(model__backbone="test_vit", model__drop_path=0.5)
    trainer = Trainer(_job(tmp_path / "run", recipe))
    views, labels, indices = next(iter(trainer._loader()))
    seen: list[torch.Tensor] = []
    forward = trainer._forward

    def recording(rows: torch.Tensor):
        outputs = forward(rows)
        seen.append(outputs.embedding.detach().clone())
        return outputs

    trainer._forward = recording  # type: ignore[method-assign]
    _gradients(trainer, 10, views, labels, indices)
    half = len(seen) // 2
    assert half == 5
    assert all(torch.equal(first, second) for first, second in zip(seen[:half], seen[half:], strict=True))


def test_running_statistics_are_updated_once_by_gradient_caching(tmp_path: Path) -> None:
    trainer = Trainer(_job(tmp_path / "run", tiny_recipe()))
    views, labels, indices = next(iter(trainer._loader()))
    _gradients(trainer, 25, views, labels, indices)
    tracked = [buffer for name, buffer in trainer.model.named_buffers() if name.endswith("num_batches_tracked")]
    assert tracked
    assert all(int(count) == 2 for count in tracked)  # 50 rows in chunks of 25, each chunk counted once


def test_mixup_acts_on_the_cross_entropy_alone(tmp_path: Path) -> None:
    plain = Objective(tiny_recipe().loss, torch.full((10,), 100), 128)
    mixed = Objective(tiny_recipe(loss__mixup=0.8, loss__cutmix=1.0).loss, torch.full((10,), 100), 128)
    views = torch.randint(0, 255, (6, 2, 3, 8, 8), dtype=torch.uint8)
    labels, indices = torch.arange(6) // 2, torch.arange(6)
    clean = make_batch(views, labels, indices, plain, torch.device("cpu"))
    both = make_batch(views, labels, indices, mixed, torch.device("cpu"))
    assert torch.equal(both.rows[:12], clean.rows.float())
    assert not torch.equal(both.rows[12:], clean.rows.float())
    assert both.soft_labels is not None
    assert torch.allclose(both.soft_labels.sum(1), torch.ones(12))
    projection, logits = torch.randn(12, 128), torch.randn(12, 10)
    a = plain(projection, logits, clean.labels, clean.indices)
    b = mixed(projection, logits, both.labels, both.indices, both.soft_labels)
    assert torch.equal(a.contrastive, b.contrastive)
    assert not torch.equal(a.cross_entropy, b.cross_entropy)


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one_epoch") / "run"
    run_tiny(out, train__epochs=1)
    return out


@pytest.mark.parametrize(
    "overrides",
    [
        {"loss__mixup": 0.5},
        {"loss__label_smoothing": 0.1},
        {"loss__name": "ce", "loss__cutmix": 1.0},
        {"train__classes_per_batch": 5},
        {"train__layer_decay": 0.7},
        {"train__optimizer": "sgd", "train__clip_grad": 1.0},
        {"train__chunk_size": 10, "loss__mixup": 0.5},
        {"model__projection_dim": 0},
        {"model__freeze": ["backbone"]},
    ],
)
def test_each_option_trains_and_changes_the_weights_it_reaches(
    tmp_path: Path, one_epoch: Path, overrides: dict
) -> None:
    summary = run_tiny(tmp_path / "with", train__epochs=1, **overrides)
    assert summary["test_n"] == 109
    with_it, without = (_state(run, "last.pt")["state_dict"] for run in (tmp_path / "with", one_epoch))
    assert any(not torch.equal(with_it[key], without[key]) for key in without)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within its compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_model_learns_the_same_and_its_checkpoint_is_an_ordinary_one(tmp_path: Path) -> None:
    small = {"model__backbone": "test_vit", "train__epochs": 2}
    eager, compiled = (
        run_tiny(tmp_path / name, **small, train__compile=name == "compiled") for name in ("e", "compiled")
    )
    assert compiled["val_accuracy"] == pytest.approx(eager["val_accuracy"], abs=2 / 83)
    weights = [_state(tmp_path / name, "last.pt")["state_dict"] for name in ("e", "compiled")]
    assert weights[0].keys() == weights[1].keys()
    for key, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][key], atol=2e-3), key
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[0] for name in ("e", "compiled")]
    first = [json.loads(line)["loss"] for line in lines]
    assert first[1] == pytest.approx(first[0], rel=1e-4)


def test_a_linear_probe_leaves_the_backbone_as_it_was(tmp_path: Path) -> None:
    recipe = tiny_recipe(model__freeze=["backbone"], train__epochs=1)
    job = _job(tmp_path / "run", recipe)
    before = {key: value.clone() for key, value in job.model.backbone.state_dict().items()}
    job.run.create(recipe, "finetune")
    Trainer(job).run()
    changed = [key for key, value in job.model.backbone.state_dict().items() if not torch.equal(value, before[key])]
    assert changed
    assert all(key.startswith("fc.") for key in changed)


def test_a_loss_that_is_not_finite_stops_with_step_images_and_parts(tmp_path: Path) -> None:
    def poison(progress: Progress) -> None:
        next(progress.model.parameters()).data.fill_(math.nan)

    said = r"step 1 is not finite: loss nan.*images \[.*Try a lower --lr"
    with on_step(poison), pytest.raises(SchaneError, match=said):
        run_tiny(tmp_path / "run")
    (dump,) = (tmp_path / "run").glob("not-finite-step*.pt")
    content = read_tensors(dump)
    assert len(content["batch"]["indices"]) == 25
    assert (tmp_path / "run" / "summary.json").exists() is False


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train__batch_size": 101}, "larger than the 100 training images"),
        ({"train__optimizer": "adamv"}, "unknown train.optimizer 'adamv'; did you mean"),
        ({"train__classes_per_batch": 7}, "must divide the batch size"),
        ({"train__classes_per_batch": 25}, "at most the 10 classes"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, overrides: dict, said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        run_tiny(tmp_path / "run", **overrides)
    assert not (tmp_path / "run").exists()


def test_an_unknown_layer_to_freeze_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="starts with 'layer9'; did you mean 'layer"):
        run_tiny(tmp_path / "run", model__freeze=["layer9"])
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_recipe_names_the_keys_that_differ(never_stopped: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "checkpoints").mkdir(parents=True)
    (copy / "recipe.yaml").write_bytes((never_stopped / "recipe.yaml").read_bytes())
    (copy / "checkpoints" / "last.pt").write_bytes(b"")
    with pytest.raises(BadRequest, match=r"differ: train.lr 0.5 \(run: 0.003\)"):
        resumed_recipe("finetune", copy, {"train.lr": 0.5})
    assert resumed_recipe("finetune", copy, {}).train.lr == 0.003


def test_a_run_is_never_written_over(never_stopped: Path) -> None:
    with pytest.raises(BadRequest, match="exists already"):
        finetune(tiny_recipe(seed=5), out=never_stopped, terminal=Terminal(quiet=True))


def test_another_number_of_processes_cannot_go_on(never_stopped: Path, tmp_path: Path) -> None:
    content = _state(never_stopped, "last.pt")
    content["training"]["world_size"] = 2
    with pytest.raises(BadRequest, match="made by 2 processes"):
        Trainer(_job(tmp_path / "run", tiny_recipe(**STOCHASTIC)), content)


def test_the_learning_rate_rises_then_falls_as_a_cosine(never_stopped: Path, tmp_path: Path) -> None:
    trainer = Trainer(_job(tmp_path / "run", tiny_recipe()))
    rates = []
    for step in range(trainer.sampler.total_steps):
        trainer.scheduler.step_update(step)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    peak = max(rates)
    assert peak == pytest.approx(3e-3)
    assert rates.index(peak) == 4  # one epoch of four steps
    assert rates[0] == pytest.approx(1e-6)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < peak / 10


def test_check_request_knows_the_batch() -> None:
    recipe = tiny_recipe()
    check_request(recipe, load_splits(recipe.data).train)


def test_the_sampler_starts_anywhere_with_the_batches_it_would_have_given() -> None:
    labels = load_splits(tiny_recipe().data).train.labels
    for classes in (None, 5):
        settings = {"batch_size": 20, "epochs": 3, "seed": 4, "classes_per_batch": classes}
        whole = list(StepSampler(labels, **settings))
        assert list(StepSampler(labels, start_step=7, **settings)) == whole[7:]


@pytest.mark.parametrize(("fits", "chunked"), [(12, 12), (7, 6), (1, 1), (0, None)])
def test_the_largest_chunk_is_found_by_halving(fits: int, chunked: int | None) -> None:
    tried = []

    def attempt(chunk: int) -> None:
        tried.append(chunk)
        if chunk > fits:
            raise torch.OutOfMemoryError

    assert largest_fitting(attempt, 25) == chunked
    assert tried[0] == 12


@pytest.mark.parametrize("chunk", [None, 16])
def test_out_of_memory_names_the_largest_chunk_that_fits(tmp_path: Path, chunk: int | None) -> None:
    def small_card(module: torch.nn.Module, inputs: tuple[object, ...]) -> None:
        if isinstance(module, SchaneModel) and module.training and len(inputs[0]) > 2 * 9:  # type: ignore[arg-type]
            raise torch.OutOfMemoryError("CUDA out of memory")

    card = register_module_forward_pre_hook(small_card)
    largest = 8 if chunk else 6
    said = rf"step 0 ran out of memory on cpu with {chunk or 25} images per pass; .*: pass --chunk-size {largest} "
    try:
        with pytest.raises(SchaneError, match=said) as caught:
            run_tiny(tmp_path / "run", train__chunk_size=chunk)
        assert caught.value.exit_code == 1
        run_tiny(tmp_path / "again", train__chunk_size=largest, train__epochs=1)
    finally:
        card.remove()


def test_a_batch_smaller_than_the_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "world_size", lambda: 32)
    recipe = tiny_recipe()
    with pytest.raises(BadRequest, match="batch size 25 is smaller than the 32 processes"):
        check_request(recipe, load_splits(recipe.data).train)


def test_a_chunk_larger_than_the_batch_is_refused() -> None:
    with pytest.raises(BadRequest, match="chunk_size 26 is larger than batch_size 25"):
        tiny_recipe(train__chunk_size=26)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_results_folder_that_cannot_be_written_is_refused_before_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "train_loader", lambda *_, **__: pytest.fail("a batch was loaded"))
    monkeypatch.setattr(job_module, "require_space", lambda *_: None)
    with pytest.raises(BadRequest, match="run folder /proc/results/run cannot be written"):
        run_tiny(Path("/proc/results/run"))


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
    with pytest.raises(BadRequest, match="needs about [0-9]+ MiB for its checkpoints and .* has 1 MiB left"):
        run_tiny(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_is_one_sentence(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(SchaneError, match="metrics.jsonl cannot be written: No space left on device"):
        run.log("step", step=1)
