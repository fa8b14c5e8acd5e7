"""Every `schane` line of the site runs: on small stand-ins, trainings cut to an epoch of a few images.

A line is taken as it stands on its page; only names of what is the reader's (RUN, photos, trees.csv) are replaced, and
settings that shorten a training are put at its end. What a test cannot run is listed with the reason.
"""

import csv
import re
import shlex
from pathlib import Path

import pytest

from schane_cli.commands.finetune import finetune
from schane_cli.terminal import Terminal
from tests.conftest import run_cli
from tests.jobs import run_tiny, tiny_recipe
from tests.sources import class_folders, shard

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if re.search(r"^ {4}schane ", path.read_text(), re.MULTILINE))
BRIEF = {
    "model.backbone": "test_resnet",
    "model.weights": "random",
    "data.image_size": 32,
    "data.workers": 0,
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "train.batch_size": 8,
    "train.chunk_size": 4,
    "device": "cpu",
}
DIGITS = {"data.train_per_class": 5, **BRIEF}
NOT_RUN = {  # the beginning of a line: why no test runs it
    "fewshot --dataset cifarfs": "CIFAR-FS has to be downloaded; tests/cli/test_fewshot.py runs the command",
    "finetune --dataset pets": "Oxford-IIIT Pet has to be downloaded; tests/training/test_phases.py trains heads first",
    "finetune --dataset hfds:beans": "beans has to be downloaded; tests/datasets read saved and local hub sets",
    "finetune --loss margin": "needs the plug-in package; tests/test_examples.py installs it",
    "--install-completion": "would change the shell's own files",
}


def _lines(page: Path) -> list[str]:
    return [line[11:] for line in page.read_text().splitlines() if line.startswith("    schane ")]


def _reason(line: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if line.startswith(start)), None)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages speak of: photographs, a table, shards, three runs, the folder of some seeds."""
    home = tmp_path_factory.mktemp("reader")
    class_folders(home / "photos", {"oak": 30, "beech": 30, "elm": 30})
    class_folders(home / "mine", {"oak": 4, "beech": 4})
    for folder in ("new-photos", "new"):
        class_folders(home / folder, {"several": 3})
    with (home / "trees.csv").open("w", newline="") as table:
        rows = [(path.relative_to(home), path.parent.name) for path in sorted((home / "photos").rglob("*.jpg"))]
        csv.writer(table).writerows([("path", "label"), *rows])
    (home / "shards").mkdir()
    for split, n in (("train", 40), ("val", 12), ("test", 12)):
        shard(home / "shards" / f"{split}-0.tar", {f"{split}{i}": i % 2 for i in range(n)})
    kept = {"train__epochs": 2, "train__keep_epochs": 2}
    run_tiny(home / "run", **kept)
    for name, loss, seed in (("run-a", "ce", 0), ("run-b", "schane", 0), ("run-c", "schane", 1)):
        run_tiny(home / name, loss__name=loss, seed=seed, train__epochs=1)
    for seed in (0, 1):
        recipe = tiny_recipe(train__epochs=1, seed=seed)
        finetune(recipe, out=home / "seeds" / f"s{seed}", terminal=Terminal(quiet=True))
    return home


def _ready(line: str, home: Path) -> list[str]:
    """The arguments of a line: the reader's own names replaced, a training cut short."""
    names = {
        "RUN": home / "run",
        "RUN_A": home / "run-a",
        "RUN_B": home / "run-b",
        "RUN_C": home / "run-c",
        "results/finetune/SEEDS": home / "seeds",
        "folder:/my/images": "folder:photos",
        "wds:/data/shards": "wds:shards",
        "0-4": "0-1",  # two seeds show what five do
    }
    words = [str(names.get(word, word)) for word in shlex.split(line, comments=True)]
    trains = words[0] == "finetune" and "--resume" not in words
    own = {words[at + 1].split("=")[0] for at, word in enumerate(words) if word == "--set"}
    short = BRIEF if "--dataset" in words else DIGITS
    settings = [part for key, value in short.items() if key not in own for part in ("--set", f"{key}={value}")]
    if trains:
        for flag in {"--backbone", "--epochs", "--batch-size", "--chunk-size"} & {*words}:  # BRIEF has these
            at = words.index(flag)
            del words[at : at + 2]
        words += settings
    elif words[0] == "augment":
        words[1] = "digits"  # cifar100 has to be downloaded
    elif words[:2] == ["fewshot", str(names["RUN_A"])]:  # these runs were trained on the classes of the episodes
        words += ["--allow-seen-classes", "--episodes", "20"]
    return words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(
    page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(reader)
    for line in _lines(page):
        if _reason(line) is None:
            capsys.readouterr()
            code = run_cli(*_ready(line, reader))
            assert code == 0, f"schane {line}\n{capsys.readouterr().err}"


def test_the_reasons_for_not_running_a_line_are_all_in_use() -> None:
    lines = [line for page in PAGES for line in _lines(page)]
    assert all(any(line.startswith(start) for line in lines) for start in NOT_RUN)
    assert sum(_reason(line) is None for line in lines) >= 25
