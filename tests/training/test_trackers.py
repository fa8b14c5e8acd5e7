"""What the trackers show: the figures of metrics.jsonl, each step once, through a stop and a resume."""

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from schane_cli.commands.results import share_results
from schane_cli.errors import BadRequest
from schane_cli.terminal import Terminal
from schane_cli.training import trackers
from schane_cli.training import trainer as training
from schane_cli.training.hooks import Progress, on_step
from tests.conftest import run_cli
from tests.jobs import TINY, run_tiny

EVERY_STEP = {"train__epochs": 2}  # 8 steps, a log line each
SHOWN = {"loss", "contrastive", "cross_entropy", "lr", "images_per_second", "data_wait_percent", "grad_norm"}
SHOWN |= {"positives_per_anchor", "effective_hardness"}


@pytest.fixture(autouse=True)
def _log_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_EVERY_STEPS", 1)


class _Killed(Exception):  # noqa: N818 (reads as what it is)
    pass


def _stopped_and_resumed(out: Path, tracker: str) -> dict[str, list[int]]:
    """Stop at step 7 without a save since step 4 (as a kill does), resume; steps of each kind in metrics.jsonl."""

    def kill(progress: Progress) -> None:
        if progress.step == 7:
            raise _Killed

    with on_step(kill), pytest.raises(_Killed):
        run_tiny(out, train__trackers=[tracker], **EVERY_STEP)
    run_tiny(out, resume=True, train__trackers=[tracker], **EVERY_STEP)
    steps: dict[str, list[int]] = {}
    for text in (out / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        steps.setdefault(line["event"], []).append(line["step"])
    assert steps == {"step": list(range(1, 9)), "epoch": [4, 8]}
    return steps


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What makes a client of an MLflow store below `tmp_path`, which runs of the test write to."""
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return tracking.MlflowClient


def test_tensorboard_holds_each_step_of_metrics_once_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    steps = _stopped_and_resumed(tmp_path / "run", "tensorboard")
    events = accumulator.EventAccumulator(
        str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False
    ).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in SHOWN} | {"val/accuracy", "val/nll"} <= tags
    assert [point.step for point in events.Scalars("train/loss")] == steps["step"]
    assert [point.step for point in events.Scalars("val/accuracy")] == steps["epoch"]
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line["loss"] for line in lines if line["event"] == "step"]
    assert [point.value for point in events.Scalars("train/loss")] == pytest.approx(logged, rel=1e-6)


def test_mlflow_holds_each_step_of_metrics_once_after_a_resume(tmp_path: Path, mlflow_client: Any) -> None:
    steps = _stopped_and_resumed(tmp_path / "run", "mlflow")
    client = mlflow_client()
    (run,) = client.search_runs([client.get_experiment_by_name("schane").experiment_id])
    assert run.data.params["loss.temperature"] == "0.5"
    assert run.info.status == "FINISHED"
    for name in SHOWN:
        assert [point.step for point in client.get_metric_history(run.info.run_id, f"train/{name}")] == steps["step"]
    assert [p.step for p in client.get_metric_history(run.info.run_id, "val/accuracy")] == steps["epoch"]


@pytest.mark.slow
def test_wandb_offline_gets_each_step_once_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    sent: list[tuple[str, int]] = []
    log = wandb.sdk.wandb_run.Run.log

    def recording(self, data: dict, step: int | None = None, **rest: object) -> None:
        sent.extend((name, step) for name in data if name in {"train/loss", "val/accuracy"})
        log(self, data, step=step, **rest)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", recording)
    steps = _stopped_and_resumed(tmp_path / "run", "wandb")
    assert [step for name, step in sent if name == "train/loss"] == steps["step"]
    assert [step for name, step in sent if name == "val/accuracy"] == steps["epoch"]
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    assert all(b"effective_hardness" in file.read_bytes() for file in files)


def _finetuned(out: Path, tracker: str) -> dict[str, float]:
    """A run by the command, as users run it; its summary."""
    settings = [part for key, value in {**TINY, "train.epochs": 1}.items() for part in ("--set", f"{key}={value}")]
    assert run_cli("finetune", *settings, "--set", f"train.trackers=[{tracker}]", "--out", out) == 0
    return json.loads((out / "summary.json").read_text())


def test_tensorboard_shows_the_test_figures_the_hyper_parameters_and_the_pictures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    summary = _finetuned(tmp_path / "run", "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (point,) = events.Scalars("test/accuracy")
    assert point.value == pytest.approx(summary["test_accuracy"])
    assert {"report/confusion", "report/curves"} <= set(events.Tags()["images"])
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"loss.temperature" in start


def test_mlflow_shows_the_test_figures_and_keeps_the_page(tmp_path: Path, mlflow_client: Any) -> None:
    summary = _finetuned(tmp_path / "run", "mlflow")
    client = mlflow_client()
    (run,) = client.search_runs([client.get_experiment_by_name("schane").experiment_id])
    assert run.data.metrics["test/accuracy"] == summary["test_accuracy"]
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]
    share_results(tmp_path / "run", Terminal(quiet=True))  # all is there already
    assert len(client.get_metric_history(run.info.run_id, "test/accuracy")) == 1


@pytest.mark.slow
def test_wandb_offline_holds_the_test_figures_and_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    _finetuned(tmp_path / "run", "wandb")
    kept, until = b"", time.monotonic() + 30
    while not (b"test/accuracy" in kept and b"report.html" in kept):  # wandb's own process may still be writing
        assert time.monotonic() < until, kept
        kept = b"".join(file.read_bytes() for file in (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_tracker_that_is_gone_at_the_end_is_said_and_the_run_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")

    def gone(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(trackers._TensorBoard, "finish", gone)
    _finetuned(tmp_path / "run", "tensorboard")
    assert "the trackers did not take the results: no route to host" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_names_its_extra_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadRequest, match=rf"pip install 'schane\[{name}\]'"):
        run_tiny(tmp_path / "run", train__trackers=[name])
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs schane[mlflow]")
def test_a_tracker_that_does_not_start_is_one_sentence_before_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    trained = on_step(lambda _: pytest.fail("a batch was trained"))
    with trained, pytest.raises(BadRequest, match=r"train\.trackers mlflow does not start: "):
        run_tiny(tmp_path / "run", train__trackers=["mlflow"])


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"train\.trackers"):
        run_tiny(tmp_path / "run", train__trackers=["comet"])
