"""Every `schane` line and every Python, YAML and TOML block of the documents runs, on small stand-ins.

A line is taken as it stands on its page; only names of what is the reader's (photos, cifar100) are replaced, and
settings that cut a training to an epoch of a few images are put at its end. The same line runs once, however many pages
have it. What a test cannot run is listed with the reason.
"""

import csv
import re
import shlex
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

from schane_cli.commands.finetune import finetune
from schane_cli.commands.study_file import read_study
from schane_cli.recipe import build_recipe, read_recipe
from schane_cli.terminal import Terminal
from tests.conftest import run_cli
from tests.jobs import blank_pictures, run_tiny, tiny_recipe
from tests.sources import class_folders, shard

ROOT = Path(__file__).parent.parent
PAGES = [path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))) if "schane" in path.read_text()]
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
FEW = {
    "data.train_per_class": 3,
    "data.val_fraction": 0.03,
    "data.test_fraction": 0.06,
}  # digits: 10 of a class in test
DIGITS = {**FEW, **BRIEF}
NOT_RUN = {  # the beginning of a line: why no test runs it
    "fewshot --dataset cifarfs": "CIFAR-FS has to be downloaded; tests/cli/test_fewshot.py runs the command",
    "finetune --dataset cifar100 --backbone beit_base": "wants a GPU, a hub and CIFAR-100",
    "data prepare pets": "Oxford-IIIT Pet has to be downloaded; tests/datasets/test_prepare.py serves a cut of it",
    "finetune --recipe pets": "Oxford-IIIT Pet has to be downloaded; tests/test_paper.py runs it on a cut",
    "compare pets-ce pets-schane": "needs the runs of the lines before it",
    "finetune --dataset pets": "Oxford-IIIT Pet has to be downloaded; tests/training/test_phases.py trains heads first",
    "finetune --dataset hfds:beans": "beans has to be downloaded; tests/datasets read saved and local hub sets",
    "finetune --loss margin": "needs the plug-in package; tests/test_examples.py installs it",
    "eval RUN --corruptions": "scores the test images 75 times; tests/cli/test_eval.py runs it on a few",
    "doctor": "measures the machine for half a minute; tests/cli/test_doctor.py runs it",
    "--install-completion": "would change the shell's own files",
}
NEEDS = ("transformers", "onnxruntime", "onnxscript")  # of a block or line that names one, or the format onnx
RAN: set[tuple[str, ...]] = set()


def _blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(kind, text) of each block and line that a reader would run, in the page's order."""
    text = re.sub(r"^(    .*)\\\n\s+", r"\1", page.read_text(), flags=re.MULTILINE)
    for found in re.finditer(
        r"^```(python|yaml|toml)\n(.*?)^```$|^ {4}schane ([^\n]*)$", text, re.MULTILINE | re.DOTALL
    ):
        yield ("schane", found[3]) if found[3] is not None else (found[1], found[2])


def _reason(line: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if line.startswith(start)), None)


def _study(home: Path) -> None:
    """grid.yaml as the page on the first run has it, cut to one learning rate, one seed and brief trainings."""
    (text,) = [text for kind, text in _blocks(ROOT / "docs" / "first-run.md") if kind == "yaml"]
    asked = yaml.safe_load(text)
    grid = {key: values[:1] for key, values in asked["grid"].items()}
    (home / "grid.yaml").write_text(yaml.safe_dump({**asked, "grid": grid, "seeds": [0], "set": DIGITS}))


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
    Image.fromarray(load_sample_images().images[0]).save(home / "photo.jpg")
    _study(home)
    few = {key.replace(".", "__"): value for key, value in FEW.items()}
    run_tiny(home / "RUN", train__epochs=2, train__keep_epochs=2, **few)
    for name, loss, seed in (("RUN_A", "ce", 0), ("RUN_B", "schane", 0), ("RUN_C", "schane", 1)):
        run_tiny(home / name, loss__name=loss, seed=seed, train__epochs=1, **few)
    for seed in (0, 1):
        recipe = tiny_recipe(train__epochs=1, seed=seed, **few)
        finetune(recipe, out=home / "results/finetune/SEEDS" / f"s{seed}", terminal=Terminal(quiet=True))
    RAN.clear()
    return home


def _ready(line: str) -> list[str]:
    """The arguments of a line: the reader's own names replaced, a training cut short."""
    names = {
        "folder:/my/images": "folder:photos",
        "wds:/data/shards": "wds:shards",
        "0-4": "0-1",  # two seeds show what five do
        "cifar100": "digits",  # has to be downloaded
    }
    words = [names.get(word, word) for word in shlex.split(line, comments=True)]
    of_runs = [word for word in words[1:] if word.startswith("RUN")]
    if words[0] in {"finetune", "fewshot"} and not of_runs and "--support" not in words:
        own = {words[at + 1].split("=")[0] for at, word in enumerate(words) if word == "--set"}
        short = BRIEF if "--dataset" in words else DIGITS
        for flag in {"--backbone", "--epochs", "--batch-size", "--chunk-size"} & {*words}:  # BRIEF has these
            at = words.index(flag)
            del words[at : at + 2]
        words += [part for key, value in short.items() if key not in own for part in ("--set", f"{key}={value}")]
    if words[0] == "fewshot" and "--support" not in words:
        words += ["--episodes", "5", "--queries", "3"]
        words += ["--allow-seen-classes"] if of_runs else []  # these runs were trained on the classes of the episodes
    return words


def _run_code(code: str, page: Path) -> None:
    code = code.replace('"resnet50"', '"test_resnet"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and the exporters about themselves
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102 (our own page)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_block_of_a_page_runs(
    page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(reader)
    for kind, text in _blocks(page):
        if any(name in text for name in NEEDS if find_spec(name) is None) or _reason(text) is not None:
            continue
        if kind == "python":
            _run_code(text, page)
        elif kind == "toml":
            assert tomllib.loads(text)
        elif kind == "yaml":
            page_file = reader / "page.yaml"
            page_file.write_text(text)
            assert read_study(page_file) if "arms:" in text else build_recipe(read_recipe(page_file))
        elif (words := tuple(_ready(text))) not in RAN:
            capsys.readouterr()
            drawn = words[0] == "finetune" and any(ran[0] == "finetune" for ran in RAN)  # by an earlier line
            with blank_pictures() if drawn else nullcontext():
                code = run_cli(*words)
            assert code == 0, f"schane {text}\n{capsys.readouterr().err}"
            RAN.add(words)


def test_the_reasons_for_not_running_a_line_are_all_in_use() -> None:
    lines = [text for page in PAGES for kind, text in _blocks(page) if kind == "schane"]
    assert all(any(line.startswith(start) for line in lines) for start in NOT_RUN)
    assert sum(_reason(line) is None for line in lines) >= 40


def test_blocks_that_no_test_runs_are_shell_lines_pictures_of_folders_or_formulas() -> None:
    """An indented block is for `schane` and other shell lines; Python, YAML and TOML are fenced, and so run."""
    for page in PAGES:
        assert not re.findall(r"^ {4}(?:import|from) ", page.read_text(), re.MULTILINE), page
        languages = set(re.findall(r"^```(\w+)", page.read_text(), re.MULTILINE))
        assert languages <= {"python", "yaml", "toml", "bash"}, page
