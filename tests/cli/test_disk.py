"""A disk that becomes read-only, or a run folder that is removed, under every command that writes.

benchmarks/chaos.py does the same at every write, and in processes of their own; here it is at the worst moment, when
all work is done and the summary is to be written, and at the first write.
"""

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schane_cli.run import RunFolder
from tests.conftest import run_cli
from tests.jobs import TINY, blank_pictures
from tests.sources import digit_photos

NET = [f"--set={key}={value}" for key, value in {**TINY, "train.epochs": 1, "data.train_per_class": 5}.items()]
EPISODES = ["--set=fewshot.episodes=10", "--ways=3", "--shots=1", "--queries=3", "--classifier=centroid"]
COMMANDS = {
    "eval": ["eval", "base", "--device=cpu"],
    "predict": ["predict", "base", "photos", "--device=cpu"],
    "embed": ["embed", "base", "--points=60", "--perplexity=10", "--device=cpu"],
    "embed --images": ["embed", "base", "--images=photos", "--device=cpu"],
    "fewshot CHECKPOINT": ["fewshot", "base", "--allow-seen-classes", *EPISODES, "--device=cpu"],
    "review": ["review", "base", "--split=val", "--device=cpu"],
    "average": ["average", "base", "other", "--device=cpu"],
    "export": ["export", "base"],
    "compare": ["compare", "base", "other"],
    "finetune": ["finetune", *NET],
    "finetune --seeds": ["finetune", *NET, "--seeds=0,1"],
    "fewshot": ["fewshot", *NET, *EPISODES],
    "study": ["study", "study.yaml"],
}
TRAINS = {"finetune", "finetune --seeds", "fewshot", "study"}
LAST = {"export": "config.json"}  # what is written last before the page, if it is no summary
MARKED = [pytest.param(name, marks=pytest.mark.long if name in TRAINS else ()) for name in COMMANDS]


class Disk:
    """What an audit hook does to the writes below a folder: nothing, until `fail` says what and from which file on."""

    def __init__(self) -> None:
        self.how, self.trigger, self.place, self.failing = "", "", "", False

    def fail(self, how: str, trigger: str, place: Path) -> None:
        """From the first write to a path that holds `trigger` on, `place` is read-only; or its `x` is removed, once."""
        self.how, self.trigger, self.place, self.failing = how, trigger, str(place), False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.how or event not in {"open", "os.rename", "os.mkdir", "os.truncate", "os.remove"}:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(self.place) or not (self.failing or self.trigger in path):
            return
        self.failing = True
        if self.how == "removed":
            self.how = ""
            for folder in (*Path(self.place).glob("x"), *Path(self.place).glob(".x*")):
                shutil.rmtree(folder)
        else:
            raise OSError(errno.EROFS, "Read-only file system", path)


DISK = Disk()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, `base` and `other`, a study file and a folder of photos."""
    sys.addaudithook(DISK)
    place = tmp_path_factory.mktemp("disk")
    with blank_pictures():
        for name, loss in (("base", "schane"), ("other", "ce")):
            assert run_cli("finetune", *NET, "--loss", loss, "--out", place / name) == 0
    quick = {**TINY, "train.epochs": 1, "data.train_per_class": 5}
    study = {"recipe": "digits", "set": quick, "arms": {"ce": {"loss.name": "ce"}}, "heartbeat_seconds": 1}
    (place / "study.yaml").write_text(json.dumps(study))
    digit_photos(place / "photos", range(20))
    return place


@pytest.fixture
def place(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank_pictures: None) -> Iterator[Path]:
    """A working folder with links to the runs, which stay as they are; pictures are blank."""
    for thing in runs.iterdir():
        (tmp_path / thing.name).symlink_to(thing)
    monkeypatch.chdir(tmp_path)
    before = _contents(runs)
    yield tmp_path
    DISK.how = ""
    assert _contents(runs) == before


def _contents(folder: Path) -> dict[str, bytes]:
    """What no command may change; a run's page gets links to what was made of it, and its calibration is kept."""
    kept = (path for path in folder.rglob("*") if path.name not in {"report.html", "calibration.json"})
    return {str(path): path.read_bytes() for path in kept if path.is_file()}


def _is_whole(place: Path, command: str) -> bool:
    run = RunFolder(place / "x")
    return (
        (run.path / "config.json").exists() if command == "export" else run.summary_file.exists() and run.page.exists()
    )


@pytest.mark.parametrize("how", ["read-only", pytest.param("removed", marks=pytest.mark.long)])
@pytest.mark.parametrize("command", MARKED)
def test_a_disk_that_fails_at_the_end_is_a_sentence_and_the_next_command_ends(
    command: str, how: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*COMMANDS[command], "--out", place / "x"]
    DISK.fail(how, LAST.get(command, "summary.json"), place)
    code = run_cli(*arguments)
    assert DISK.failing
    DISK.how = ""
    said = capsys.readouterr().err
    assert code in {1, 2}, said
    assert said.splitlines()[-1].startswith("schane: "), said
    assert "Traceback" not in said
    resume = {"predict": ["predict", "--resume", place / "x"], "finetune": [*arguments, "--resume=auto"]}
    resume |= {name: [*arguments, "--resume=auto"] for name in ("finetune --seeds", "fewshot")}
    stopped = RunFolder(place / "x").resumable or command in TRAINS
    assert run_cli(*(resume.get(command, arguments) if stopped else arguments)) == 0, capsys.readouterr().err
    assert command == "study" or _is_whole(place, command)
    left = [*(place / "x").rglob(".*"), *place.glob(".x*"), *(place / "x").rglob("parts")]
    assert not left


@pytest.mark.parametrize("command", MARKED)
def test_a_read_only_folder_is_refused_in_a_sentence_and_nothing_is_written(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.iterdir())
    DISK.fail("read-only", str(place), place)
    code = run_cli(*COMMANDS[command], "--out", place / "x")
    DISK.how = ""
    said = capsys.readouterr().err
    assert code in {1, 2}
    assert "Read-only file system" in said
    assert "Traceback" not in said
    assert [path for path in sorted(place.iterdir()) if path.name != "results"] == before
