"""Several processes on one batch: the loss curve, the evaluation and the run folder of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import timm
import torch

from schane_cli.commands.evaluate import score, select_images
from schane_cli.commands.finetune import finetune
from schane_cli.distributed import process_group, rank
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.models.files import read_tensors
from schane_cli.preflight import require_combinations
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal
from schane_cli.training import trainer
from schane_cli.training.hooks import Progress, on_step
from schane_cli.training.interruption import Interrupted
from tests.jobs import free_port, tiny_recipe
from tests.processes import start_ranks

# LayerNorm, since BatchNorm normalises each process's part by itself; 25 images do not part evenly; 8 steps.
RECIPE = {
    "model__backbone": "test_vit",
    "data__val_fraction": 0.03,  # 50 images
    "data__test_fraction": 0.03,
    "train__epochs": 2,
    "train__lr": 1e-3,
}


def _train(process: int, place: Path, runs: dict[str, dict]) -> None:
    with process_group("cpu"):
        for name, overrides in runs.items():
            _train_into(place / name, overrides)


def _train_into(folder: Path, overrides: dict) -> None:
    """Train, or go on, into `folder`/run; the loss of every step and the summary go into `folder`/curve.json."""
    folder.mkdir(parents=True, exist_ok=True)
    curve: list[float] = []

    def record(progress: Progress) -> None:
        curve.append(progress.figures["loss"])
        if (folder / "stop").exists() and progress.step == 3 and rank() == 0:
            signal.raise_signal(signal.SIGUSR1)  # one process alone is told, and all stop

    with on_step(record):
        last = folder / "run" / "checkpoints" / "last.pt"
        resume = folder / "run" if last.is_file() else None
        try:
            summary = finetune(
                tiny_recipe(**overrides), out=folder / "run", terminal=Terminal(quiet=True), resume=resume
            )
        except Interrupted:
            return
        if rank() == 0:
            (folder / "curve.json").write_text(json.dumps({"curve": curve, "summary": summary}))


def _curves(*folders: Path) -> list[dict]:
    return [json.loads((folder / "curve.json").read_text()) for folder in folders]


FOLLOWED: dict[str, dict[str, object]] = {
    "schane": {},
    "chunks": {"train__chunk_size": 5},
    "ce": {"loss__name": "ce"},
    "no contrastive weight": {"loss__contrastive_weight": 0.0},
    "memory": {"loss__name": "supcon", "loss__memory_size": 50},
    "frozen BatchNorm": {"model__backbone": "test_resnet", "train__batchnorm": "frozen"},
}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`two`/NAME/run of each kind, trained by the same two processes, one after another."""
    place = tmp_path_factory.mktemp("followed")
    start_ranks(_train, 2, place / "two", {name: RECIPE | overrides for name, overrides in FOLLOWED.items()})
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_two_processes_follow_the_loss_curve_of_one(followed: Path, name: str) -> None:
    _train_into(followed / "one" / name, RECIPE | FOLLOWED[name])
    one, two = _curves(followed / "one" / name, followed / "two" / name)
    assert len(one["curve"]) == len(two["curve"]) == 8
    assert two["curve"] == pytest.approx(one["curve"], rel=1e-4, abs=1e-4)
    assert two["summary"]["test_n"] == one["summary"]["test_n"] == 50
    assert two["summary"]["val_accuracy"] == pytest.approx(one["summary"]["val_accuracy"], abs=1.5 / 50)
    lines = (followed / "two" / name / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "epoch" for line in lines) == 2  # the first process alone writes


# Each process has BatchNorm statistics of its own; the first one's are saved. Frozen ones are the same everywhere.
SCORED: dict[str, dict[str, object]] = {
    "running": {"train__batchnorm": "running", "train__ema_decay": None},
    "frozen": {"train__batchnorm": "frozen", "train__ema_decay": None},
    "ema": {"train__batchnorm": "running", "train__ema_decay": 0.9},
    "split": {"train__batchnorm": "running", "train__ema_decay": None, "train__sharding": "fsdp"},
}


def _train_each(process: int, folder: Path, kinds: tuple[str, ...]) -> None:
    """A run never stopped of each kind, and one that is stopped within its second epoch, of two steps, and resumed."""

    def stop(progress: Progress) -> None:
        if progress.step == 3 and rank() == 0:
            signal.raise_signal(signal.SIGUSR1)

    with process_group("cpu"):
        for name in kinds:
            brief = {"data__train_per_class": 5, "train__epochs": 2, "train__batch_size": 24, "train__chunk_size": 18}
            recipe = tiny_recipe(**brief, **SCORED[name])
            train = partial(finetune, recipe, terminal=Terminal(quiet=True))
            train(out=folder / name / "whole")
            with on_step(stop), pytest.raises(Interrupted):
                train(out=folder / name / "stopped")
            train(out=None, resume=folder / name / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize(("world", "kinds"), [(2, ("running", "frozen", "split")), (3, ("ema",))], ids=["two", "three"])
def test_the_recorded_val_figures_are_those_of_eval_to_the_bit_in_a_whole_run_and_a_resumed_one(
    tmp_path: Path, world: int, kinds: tuple[str, ...], one_thread: None
) -> None:
    start_ranks(_train_each, world, tmp_path, kinds)
    for name in kinds:
        recorded = [_val_figures(tmp_path / name / run) for run in ("whole", "stopped")]
        assert recorded[0] == recorded[1], name
        for run in ("whole", "stopped"):
            loaded = load_checkpoint(tmp_path / name / run)
            images, *_ = select_images(loaded, loaded.recipe.data, "val")
            scores = score(loaded, images, device=torch.device("cpu"), terminal=Terminal(quiet=True))
            progress = loaded.progress["val_accuracy"], loaded.progress["val_nll"]
            assert (scores.top1.value, scores.calibration.nll.value) == progress, (name, run)
            assert (*progress, True) in recorded[0], name
            assert RunFolder(tmp_path / name / run).read_summary()["val_accuracy"] == progress[0]


def _val_figures(run: Path) -> list[tuple[float, float, bool]]:
    return [(line["val_accuracy"], line["val_nll"], line["best"]) for line in RunFolder(run).read_events("epoch")]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as each of the processes has: sums are taken in parts, one per thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_adapters_on_two_processes_follow_the_loss_curve_of_one(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=10, img_size=32).state_dict(), tmp_path / "base.pt")
    lora = {"model__weights": str(tmp_path / "base.pt"), "model__lora_rank": 2}
    runs = {str(heads): RECIPE | lora | {"train__head_epochs": heads} for heads in (0, 1)}
    for heads, overrides in runs.items():
        _train_into(tmp_path / "one" / heads, overrides)
    start_ranks(_train, 2, tmp_path / "two", runs)
    for heads in runs:
        one, two = _curves(tmp_path / "one" / heads, tmp_path / "two" / heads)
        assert len(one["curve"]) == 4 * (2 + int(heads))
        assert two["curve"] == pytest.approx(one["curve"], rel=1e-4, abs=1e-4), heads


# SGD, because AdamW's first steps hide a gradient of the wrong size and turn rounding into whole steps.
SPLIT = RECIPE | {
    "train__ema_decay": None,
    "train__batch_size": 24,
    "train__sharding": "fsdp",
    "train__clip_grad": 1.0,
    "train__optimizer": "sgd",
    "train__lr": 0.05,
}


@pytest.mark.slow
def test_a_model_split_over_two_processes_follows_the_loss_curve_of_one(tmp_path: Path) -> None:
    _train_into(tmp_path / "one", SPLIT | {"train__sharding": "ddp"})
    start_ranks(_train, 2, tmp_path, {"whole": SPLIT, "chunks": SPLIT | {"train__chunk_size": 5}})
    for name in ("whole", "chunks"):
        one, two = _curves(tmp_path / "one", tmp_path / name)
        assert len(one["curve"]) == len(two["curve"]) == 8
        assert two["curve"] == pytest.approx(one["curve"], rel=1e-4, abs=1e-4), name
        assert two["summary"]["test_n"] == 50
        states = [read_tensors(tmp_path / place / "run" / "checkpoints" / "last.pt") for place in ("one", name)]
        for key, tensor in states[0]["state_dict"].items():
            assert torch.allclose(tensor, states[1]["state_dict"][key], atol=2e-3), (name, key)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_stopped_and_resumed_end_with_the_bits_of_a_run_never_stopped(
    tmp_path: Path, sharding: str
) -> None:
    recipe = SPLIT | {"train__sharding": sharding, "model__drop_path": 0.2, "model__freeze": ["patch_embed"]}
    recipe["data__train_per_class"] = 5  # two steps an epoch
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "stop").touch()
    start_ranks(_train, 2, tmp_path, {"whole": recipe, "stopped": recipe})
    assert not (tmp_path / "stopped" / "run" / "summary.json").exists()
    (tmp_path / "stopped" / "stop").unlink()
    start_ranks(_train, 2, tmp_path, {"stopped": recipe})
    for name in ("best.pt", "last.pt"):
        a, b = (read_tensors(tmp_path / run / "run" / "checkpoints" / name) for run in ("whole", "stopped"))
        assert a["progress"] == b["progress"]
        for part in ("state_dict", "projection"):
            assert all(torch.equal(tensor, b[part][key]) for key, tensor in a[part].items()), (name, part)


@pytest.mark.parametrize("resumable", [True, False])
def test_only_a_command_that_has_a_resume_recommends_it_when_a_process_is_lost(
    resumable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, **__: None)
    with (
        pytest.raises(SchaneError, match="another process of the run ended") as raised,
        process_group("cpu", resumable=resumable),
    ):
        raise RuntimeError("gloo: Connection closed by peer")
    assert ("--resume" in str(raised.value)) is resumable


def test_what_does_not_go_with_a_split_model_is_refused() -> None:
    with pytest.raises(BadRequest, match="start several with torchrun"):
        require_combinations(tiny_recipe(train__sharding="fsdp"), 1)
    with pytest.raises(BadRequest, match="batch size 25 is not divisible by 2 processes"):
        require_combinations(tiny_recipe(train__sharding="fsdp"), 2)
    with pytest.raises(BadRequest, match="cannot be combined with train.ema_decay"):
        require_combinations(tiny_recipe(train__sharding="fsdp", train__batch_size=24, train__ema_decay=0.9), 2)


def _torchrun(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    recipe = ("data.workers=0", "data.train_per_class=10", "model.backbone=test_vit", "train.batch_size=25")
    sets = [part for value in recipe for part in ("--set", value)]
    run = ["-m", "schane_cli", "finetune", "--device", "cpu", "--epochs", "2000", *sets, "--out", "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [*command, *run], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _process_of_rank(launcher: int, wanted: int) -> int:
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={wanted}" in (place / "environ").read_text().split("\0"):
                return int(place.name)
        except (OSError, ValueError):
            continue
    raise AssertionError(f"no process of rank {wanted}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process of a rank through /proc")
def test_a_process_that_dies_ends_the_run_with_a_sentence_and_leaves_it_whole(tmp_path: Path) -> None:
    launcher = _torchrun(tmp_path)
    try:
        last = tmp_path / "run" / "checkpoints" / "last.pt"
        until = time.monotonic() + 120
        while not last.exists():
            assert launcher.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        os.kill(_process_of_rank(launcher.pid, 1), signal.SIGKILL)
        output, _ = launcher.communicate(timeout=60)
    finally:
        launcher.terminate()  # no process outlives a test that fails
    assert launcher.returncode != 0
    assert "another process of the run ended" in output
    assert "Signal 9 (SIGKILL)" in output  # what torchrun says of the one that died
    assert read_tensors(last)["training"]["step"] > 0
    assert not (tmp_path / "run" / "summary.json").exists()


def _train_on_a_broken_disk(process: int, folder: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise SchaneError("the disk of this machine is gone")

    if process == 1:  # alone, in its first batch
        trainer.make_batch = broken  # type: ignore[assignment]
    try:
        _train(process, folder, {"broken": RECIPE})
    except SchaneError as error:
        (folder / f"said{process}").write_text(str(error))


@pytest.mark.slow
def test_an_error_of_one_process_is_the_error_of_the_run(tmp_path: Path) -> None:
    """The other does not wait for it for ever."""
    start_ranks(_train_on_a_broken_disk, 2, tmp_path)
    assert "another process of the run ended" in (tmp_path / "said0").read_text()
    assert "the disk of this machine is gone" in (tmp_path / "said1").read_text()
