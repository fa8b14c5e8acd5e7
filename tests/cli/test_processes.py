"""Every command that writes, started as torchrun starts two processes: the figures of one, one folder, nothing left."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schane_cli.cli import main
from tests.conftest import run_cli
from tests.jobs import blank_pictures
from tests.processes import start_ranks, words_into
from tests.sources import digit_photos

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_pictures")]
# LayerNorm, since BatchNorm normalises each process's part by itself; 24 images part evenly.
NET = ["--set=model.backbone=test_vit", "--set=data.train_per_class=10", "--set=train.batch_size=24", "--device=cpu",
       "--set=data.workers=0", "--set=train.warmup_epochs=0", "--set=data.val_fraction=0.05",
       "--set=data.test_fraction=0.06", "--epochs=1"]  # fmt: skip
EPISODES = ["--set=fewshot.episodes=20", "--ways=3", "--shots=1", "--queries=3", "--classifier=centroid"]
STUDY = {
    "recipe": "digits",
    "set": {
        "model.backbone": "test_vit",
        "data.train_per_class": 10,
        "data.val_fraction": 0.05,
        "data.test_fraction": 0.06,
        "data.workers": 0,
        "train.epochs": 1,
        "train.batch_size": 24,
        "train.warmup_epochs": 0,
        "device": "cpu",
    },
    "arms": {"ce": {"loss.name": "ce"}, "schane": {"loss.name": "schane"}},
    "heartbeat_seconds": 1,
}
CHANGES = ("second", "bytes", "joules", "percent", "sha256", "checkpoint", "run", "picture", "device")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, `base` and `other`, a table of embeddings, a study file and a folder of photos."""
    place = tmp_path_factory.mktemp("processes")
    with blank_pictures():
        for name, loss in (("base", "schane"), ("other", "ce")):
            assert run_cli("finetune", *NET, "--loss", loss, "--out", place / name) == 0
    (place / "study.yaml").write_text(json.dumps(STUDY))
    digit_photos(place / "photos", range(30))
    before = os.getcwd()
    os.chdir(place)
    assert run_cli("embed", "base", "--points", 100, "--out", "embedded", "--device", "cpu") == 0
    os.chdir(before)
    return place


COMMANDS: dict[str, list[str]] = {
    "finetune --seeds": ["finetune", *NET, "--seeds=0,1", "--out=x"],
    "fewshot": ["fewshot", *NET, *EPISODES, "--out=x"],
    "fewshot CHECKPOINT": ["fewshot", "RUNS/base", "--allow-seen-classes", *EPISODES, "--device=cpu", "--out=x"],
    "eval": ["eval", "RUNS/base", "--device=cpu", "--out=x"],
    "predict": ["predict", "RUNS/base", "RUNS/photos", "--device=cpu", "--out=x"],
    "embed": ["embed", "RUNS/base", "--points=100", "--device=cpu", "--out=x"],
    "embed TABLE": ["embed", "RUNS/embedded/embeddings.parquet", "--points=100", "--out=x"],
    "embed --images": ["embed", "RUNS/base", "--images=RUNS/photos", "--device=cpu", "--out=x"],
    "review": ["review", "RUNS/base", "--split=val", "--device=cpu", "--out=x"],
    "export": ["export", "RUNS/base", "--out=x"],
    "average": ["average", "RUNS/base", "RUNS/other", "--device=cpu", "--out=x"],
    "compare": ["compare", "RUNS/base", "RUNS/other", "--out=x"],
    "study": ["study", "RUNS/study.yaml", "--out=x"],
}


def _process(number: int, place: Path, arguments: list[str]) -> None:
    os.chdir(place)
    with words_into(place.parent / f"{place.name}.said{number}"), blank_pictures():
        code: Any = 0
        try:
            main(arguments)
        except SystemExit as exit_:
            code = exit_.code or 0
        print(f"exit code {code}")


def _two(place: Path, arguments: list[str]) -> list[str]:
    """What each of two processes said, its exit code last."""
    start_ranks(_process, 2, place, arguments)
    return [(place.parent / f"{place.name}.said{number}").read_text() for number in range(2)]


def _figures(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a summary by its path; without what differs from run to run, such as seconds."""
    if any(word in name for word in CHANGES):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _figures(item, f"{name}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _figures(item, f"{name}.{number}")
    else:
        yield name, value


def _listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != "study.db")


@pytest.mark.parametrize("command", COMMANDS)
def test_two_processes_leave_what_one_leaves(
    command: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "review":
        pytest.importorskip("cleanlab")
    if command == "study":
        pytest.importorskip("optuna")
    arguments = [argument.replace("RUNS", str(runs)) for argument in COMMANDS[command]]
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
    monkeypatch.chdir(places[0])
    assert run_cli(*arguments) == 0
    said = _two(places[1], arguments)
    assert [text.splitlines()[-1] for text in said] == ["exit code 0"] * 2, said
    assert "Traceback" not in "".join(said)
    assert [path.name for path in places[1].iterdir() if path.name != "results"] == ["x"]
    assert [path.name for path in (places[1] / "results").glob("*")] in ([], ["cache"])  # features, of no run
    assert _listing(places[1] / "x") == _listing(places[0] / "x")
    if (places[0] / "x" / "summary.json").exists():
        one, two = (dict(_figures(json.loads((place / "x" / "summary.json").read_text()))) for place in places)
        assert one.keys() == two.keys(), "\n".join(said)
        _require_same(one, two, training=command in {"finetune --seeds", "fewshot", "study"})


def _require_same(one: dict[str, Any], two: dict[str, Any], *, training: bool) -> None:
    """The same figures; those of a training agree up to the rounding of a sum over two processes."""
    for name, value in one.items():
        if isinstance(value, float) and isinstance(two[name], float):
            assert two[name] == pytest.approx(value, rel=0.05 if training else 1e-4, abs=0.05 if training else 1e-5), (
                name
            )
        elif not training or "sha" not in name:
            assert two[name] == value, name
