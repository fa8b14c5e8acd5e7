"""`schane study`: every trial once, whatever happens to its workers and its storage."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import pandas as pd
import pytest

from tests.conftest import run_cli
from tests.jobs import TINY
from tests.processes import start_command

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'schane[study]')")
BASE = {"recipe": "digits", "set": {**TINY, "train.epochs": 1}, "heartbeat_seconds": 1}
ARMS = {"arms": {"ce": {"loss.name": "ce"}, "schane": {"loss.name": "schane"}}}


def study_file(folder: Path, **content: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({**BASE, **content}))  # JSON is YAML
    return path


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_grid_is_run_to_the_end_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = study_file(tmp_path, **ARMS, grid={"train.lr": [1e-3, 3e-3]}, seeds="0-1")
    assert run_cli("study", file, "--out", tmp_path / "s", "--json") == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert said["trials_done"] == 8
    assert "8/8" in captured.err
    (block,) = summary(tmp_path / "s")["comparison"]
    assert {group["group"] for group in block["groups"]} == {
        f"{arm} lr={lr}" for arm in ("ce", "schane") for lr in (0.001, 0.003)
    }
    assert len(pd.read_csv(tmp_path / "s" / "compare.csv")) == 4
    first = (tmp_path / "s" / "runs" / "ce-lr=0.001" / "s0" / "metrics.jsonl").stat().st_mtime_ns
    assert run_cli("study", file, "--out", tmp_path / "s") == 0  # all is done: nothing runs again
    assert (tmp_path / "s" / "runs" / "ce-lr=0.001" / "s0" / "metrics.jsonl").stat().st_mtime_ns == first


@pytest.mark.usefixtures("blank_pictures")
def test_training_sets_are_blocks_of_their_own(tmp_path: Path) -> None:
    file = study_file(tmp_path, **ARMS, grid={"data.train_per_class": [8, 10]}, seeds=[0, 1])
    assert run_cli("study", file, "--out", tmp_path / "s") == 0
    blocks = summary(tmp_path / "s")["comparison"]
    assert [block["title"] for block in blocks] == ["digits, 8 images per class", "digits, 10 images per class"]
    assert all({group["group"] for group in block["groups"]} == {"ce", "schane"} for block in blocks)


@pytest.mark.usefixtures("blank_pictures")
def test_a_study_whose_report_is_cut_short_stays_a_study(tmp_path: Path, monkeypatch) -> None:
    file = study_file(tmp_path, **ARMS, seeds=[0, 1])
    with monkeypatch.context() as patched:
        patched.setattr("schane_cli.reports.compare.write_page", fails := Mock(side_effect=KeyboardInterrupt))
        assert run_cli("study", file, "--out", tmp_path / "s") == 130
    assert fails.called
    assert summary(tmp_path / "s")["command"] == "study"
    assert run_cli("report", tmp_path / "s") == 0
    assert len(summary(tmp_path / "s")["comparison"][0]["groups"]) == 2


@pytest.mark.usefixtures("blank_pictures")
def test_a_search_draws_its_points_and_names_the_best(tmp_path: Path) -> None:
    space = {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "loss.hardness": [0.0, 1.0]}
    file = study_file(tmp_path, search=space, trials=3, seeds=[0], metric="val_accuracy")
    assert run_cli("study", file, "--out", tmp_path / "s") == 0
    result = summary(tmp_path / "s")
    points = [trial["values"] for trial in result["trials"]]
    assert len({point["train.lr"] for point in points}) == 3
    assert all(1e-4 <= point["train.lr"] <= 1e-2 and point["loss.hardness"] in (0.0, 1.0) for point in points)
    scores = {trial["label"]: trial["runs"][0]["val_accuracy"] for trial in result["trials"]}
    assert result["best"]["val_accuracy"] == max(scores.values()) == scores[result["best"]["label"]]


@pytest.mark.usefixtures("blank_pictures")
def test_a_failed_trial_is_reported_the_rest_finished_and_it_runs_again_on_request(tmp_path: Path, capsys) -> None:
    arms = {"good": {"loss.name": "ce"}, "bad": {"train.batch_size": 101}}  # more images than there are to train on
    file = study_file(tmp_path, arms=arms, seeds=[0, 1])
    assert run_cli("study", file, "--out", tmp_path / "s") == 1
    said = capsys.readouterr().out
    assert "bad, seed 0 failed: batch size 101" in said
    result = summary(tmp_path / "s")
    assert (result["trials_done"], result["trials_failed"]) == (2, 2)
    assert run_cli("study", file, "--out", tmp_path / "s") == 1
    assert "failed: batch size 101" not in capsys.readouterr().out.partition("failed\n")[0]  # not tried unasked
    assert run_cli("study", file, "--out", tmp_path / "s", "--retry-failed") == 1
    assert "2 failed trials are queued again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"grid": {"loss.temprature": [0.1]}},
            "unknown recipe key 'loss.temprature'; did you mean 'loss.temperature'?",
        ),
        ({"grid": {"train.lr": []}}, "train.lr has no values"),
        ({"search": {"train.lr": {"low": 1.0, "high": 1.0}}, "trials": 3}, "low 1 must lie below high 1"),
        ({"search": {"train.lr": [0.1]}}, "search and trials need each other"),
        ({"grid": {"train.lr": [-1.0]}}, "train.lr: "),
        ({"seedz": [1]}, "unknown study key 'seedz'; did you mean 'seeds'?"),
        ({"set": {**TINY, "data.dataset": "nothing"}}, "unknown dataset 'nothing'"),
        ({"baseline": "ce"}, "baseline 'ce' is not one of the arms"),
    ],
)
def test_a_bad_study_is_one_sentence_before_anything_is_written(
    tmp_path: Path, content: dict, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("study", study_file(tmp_path, **content), "--out", tmp_path / "s") == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_a_study_file_changed_since_the_study_began_names_the_keys(tmp_path: Path, capsys) -> None:
    assert run_cli("study", study_file(tmp_path, **ARMS), "--out", tmp_path / "s") == 0
    changed = study_file(tmp_path, **ARMS, set={**TINY, "train.epochs": 4}, metric="test_accuracy")
    assert run_cli("study", changed, "--out", tmp_path / "s") == 2
    assert "changed since the study began: set.train.epochs, metric" in capsys.readouterr().err


def test_a_storage_that_cannot_be_opened_is_one_sentence_without_the_password(tmp_path: Path, capsys) -> None:
    url = "postgresql://me:secret@127.0.0.1:1/none"
    assert run_cli("study", study_file(tmp_path), "--out", tmp_path / "s", "--storage", url) == 2
    error = capsys.readouterr().err
    assert "postgresql://me:***@127.0.0.1:1/none cannot be opened" in error
    assert "secret" not in error


class Worker:
    """`schane study` in a process of its own, its words in a file."""

    started: ClassVar[list[ForkServerProcess]] = []

    def __init__(self, folder: Path, name: str, file: Path, storage: str | None = None) -> None:
        self.log = folder / f"{name}.log"
        self.log.touch()
        options = ["--storage", storage] if storage else []
        self.process = start_command(["study", file, "--out", folder / "s", *options], folder, self.log)
        self.started.append(self.process)

    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while text not in self.said():
            assert self.process.is_alive(), self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def finish(self, seconds: float = 240) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode


@pytest.fixture(autouse=True)
def no_worker_outlives_its_test() -> Iterator[None]:
    yield
    while Worker.started:
        process = Worker.started.pop()
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def postgres() -> Iterator[tuple[str, list[str]]]:
    """A PostgreSQL server of our own: its URL, and the command that controls it."""
    folder = shutil.which("pg_ctl") or next((str(p) for p in Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), None)
    if folder is None:
        pytest.skip("PostgreSQL is not installed")
    place = Path(tempfile.mkdtemp(prefix="schane-postgres-"))  # where its user can read, unlike pytest's folders
    as_user: list[str] = []
    if os.getuid() == 0:  # it refuses to run as root
        if shutil.which("runuser") is None or subprocess.call(["id", "postgres"], stdout=-3, stderr=-3):
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(place, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    control = [*as_user, folder, "-D", str(place / "data"), "-w", "-l", str(place / "log")]
    start = [*control, "-o", f"-p {port} -k {place} -h 127.0.0.1", "start"]
    init = [*as_user, folder, "-D", str(place / "data"), "initdb", "-o", "-U schane -A trust"]
    subprocess.run(init, check=True, capture_output=True, cwd=place)
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=place)
    yield f"postgresql://schane@127.0.0.1:{port}/postgres", start
    subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd=place)
    shutil.rmtree(place)


LONG = {"set": {**TINY, "train.epochs": 10}}  # some seconds per trial


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def test_two_workers_one_killed_run_every_trial_and_none_twice(
    tmp_path: Path, storage: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres")[0] if storage == "postgresql" else None
    file = study_file(tmp_path, **ARMS, **LONG, seeds=[0, 1])
    workers = [Worker(tmp_path, f"w{number}", file, url) for number in range(2)]
    for worker in workers:
        worker.wait_for("trials    4")
    workers[0].wait_for("seed")  # it has finished one, and is in the middle of another
    time.sleep(0.5)
    workers[0].process.kill()
    workers[0].process.join()
    assert workers[1].finish() == 0, workers[1].said()
    assert "died; it is queued again" in workers[1].said()
    result = summary(tmp_path / "s")
    assert result["trials_done"] == 4
    assert all(len(trial["runs"]) == 1 for trial in result["trials"])
    finished = [line for worker in workers for line in worker.said().splitlines() if "val top-1 accuracy" in line]
    named = [line.split(" ", 1)[1].split(":")[0] for line in finished]
    assert sorted(named) == sorted(set(named))
    assert len(named) == 4


@pytest.mark.slow
def test_a_storage_that_goes_away_in_the_middle_is_waited_for(tmp_path: Path, postgres: tuple[str, list[str]]) -> None:
    url, start = postgres
    file = tmp_path / "away.yaml"
    file.write_text(json.dumps({**BASE, **ARMS, **LONG}))
    worker = Worker(tmp_path, "w", file, url)
    worker.wait_for("1/2")
    stop = [*start[: start.index("-o")], "-m", "immediate", "stop"]
    subprocess.run(stop, check=True, capture_output=True, cwd="/")
    worker.wait_for("does not answer; waiting")
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    assert worker.finish() == 0, worker.said()
    assert summary(tmp_path / "s")["trials_done"] == 2


@pytest.mark.slow
def test_a_stopped_worker_gives_its_trial_back_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """The worker is the real command line: nothing of it is imported before."""
    file = study_file(tmp_path, **ARMS, set={**TINY, "train.epochs": 4})
    command = [sys.executable, "-m", "schane_cli", "study", file, "--out", tmp_path / "s"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    worker = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "s" / "runs" / "ce" / "s0" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert worker.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    said, _ = worker.communicate(timeout=120)
    assert worker.returncode == 128 + signal.SIGTERM, said
    assert f"Resume with: schane study {file} --out {tmp_path / 's'}" in said
    assert run_cli("study", file, "--out", tmp_path / "s") == 0
    assert summary(tmp_path / "s")["trials_done"] == 2
