"""Many requests that cannot be met: each is one sentence and code 2, writes nothing, and takes no time.

SCHANE_BAD_REQUESTS is how many of each kind are tried (50 by default); the same ones every time.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schane_cli import preflight
from schane_cli.cli import main
from schane_cli.errors import BadRequest
from schane_cli.recipe import build_recipe, parse_set, recipe_fields

BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "\n".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
NASTY = [
    "", " ", "null", "nan", ".nan", ".inf", "-.inf", "1e400", "-1", "0", "-0.0", "1e-320", "1" * 400, "0x" + "f" * 5000,
    "9" * 5000, "true", "[]", "[[]]", "{}", "{a: 1}", "[1, 2, 3]", "[-1, 2]", "[.nan, .inf]", "[1, a]", "[0.9, 0.1]",
    "[" * 3000, "{a: " * 2000, "&a [*a]", "&a {b: *a}", "*missing", "!!python/object/apply:os.system [id]",
    "!!binary x", "2001-99-99", "2001-01-01", "x" * 10_000, "\x00", "\x1b[31m", "[/red]", "a\nb: c", "\ud800", "=cmd()",
    "../../etc/passwd", "/dev/null", "/", ".", "~", "café", "\u202e", "- - -", "? {}: {}", "1:30", "0o17", "1_000", "%",
    "{model: {args: {x: 1}}}", BOMB,
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=30),
    st.integers(-(10**40), 10**40).map(str),
    st.floats().map(str),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5)), max_size=6).map(str),
)
KEYS = st.one_of(
    st.sampled_from([key for key in recipe_fields() if key != "data.dataset"]),
    st.sampled_from(["model.args.x", "model", "train", "loss.name.x", "seed.x", "..", "", "a" * 500, "model.args"]),
)
SECONDS = 20  # that a request may take
FEW = settings(
    max_examples=int(os.environ.get("SCHANE_BAD_REQUESTS", "50")),
    deadline=None,  # each has SECONDS
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Things that no command can take for what it wants, in a folder that stays as it is."""
    import schane_cli.commands.fewshot  # noqa: F401 (the first request's time is not that of its imports)

    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "text.parquet").write_text("not a table")
    (tmp_path / "bomb.yaml").write_text(BOMB)
    study = tmp_path / "a-study"
    study.mkdir()
    (study / "summary.json").write_text('{"command": "study", "trials": 3}')
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.yaml").write_text("seed: 1\n")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "recipe.yaml").write_text("[1, 2]")
    (odd / "summary.json").write_text("[]")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    there = {path.name: path.name for path in tmp_path.iterdir()}
    return there | {"null": "/dev/null", "nothing": "nothing", "root": "/", "long": "x" * 5000}


def refused(*arguments: str) -> str:
    """What a request that cannot be met says; fails for a traceback, another exit code, or a file that was written."""
    before = _listing()
    out, error = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), _in_time():
            main([argument.replace("\x00", "") for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        raise AssertionError(f"{arguments!r}\n{traceback.format_exc()}") from None
    else:
        code = 0
    said = error.getvalue()
    assert code in {1, 2}, (arguments, code, out.getvalue(), said)
    assert "Traceback" not in said, (arguments, said)
    assert len(said) < 8000, (arguments, len(said))
    assert _listing() == before, arguments
    return said


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _listing() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


@given(
    command=st.sampled_from(["finetune", "fewshot"]),
    pairs=st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=3),
)
@FEW
def test_any_value_of_any_recipe_key(places: dict[str, str], command: str, pairs: list[tuple[str, str]]) -> None:
    assignments = [f"--set={key}={value}" for key, value in pairs]
    refused(command, "--dataset", "no-such-dataset", *assignments, "--out", "out")


@given(st.one_of(st.text("0123456789-,", max_size=20), VALUES))
@FEW
def test_any_list_of_seeds(places: dict[str, str], text: str) -> None:
    refused("finetune", "--dataset", "no-such-dataset", f"--seeds={text}", "--out", "out")


@given(st.one_of(VALUES, st.tuples(KEYS, VALUES).map(lambda pair: f"{pair[0]}: {pair[1]}")))
@FEW
def test_any_recipe_or_study_file(places: dict[str, str], text: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", errors="replace", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        refused("finetune", "--recipe", file.name, "--dataset", "no-such-dataset", "--out", "out")
        refused("study", file.name, "--data-root", "/nowhere", "--device", "cuda:99", "--out", "out")


def test_every_number_of_a_recipe_has_two_ends() -> None:
    """And every number of a tuple: the least and the greatest floats and integers are refused for all of them."""
    numbers = [
        key for key, field in recipe_fields().items()
        if {int, float} & {field.annotation, *get_args(field.annotation)} or "tuple[" in str(field.annotation)
    ]  # fmt: skip
    assert len(numbers) > 40
    for key in numbers:
        for value in ("1e308", "-1e308", "1" + "0" * 30, "-1" + "0" * 30, ".nan", ".inf"):
            for text in (value, f"[{value}]", f"[{value}, {value}]", f"[{value}, {value}, {value}, {value}]"):
                with pytest.raises(BadRequest):
                    build_recipe({}, parse_set([f"{key}={text}"]))


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "eval": lambda path: ["eval", path],
    "embed": lambda path: ["embed", path],
    "embed --images": lambda path: ["embed", path, "--images", path],
    "export": lambda path: ["export", path],
    "fewshot": lambda path: ["fewshot", path],
    "fewshot --support": lambda path: ["fewshot", "--support", path, "--query", path],
    "predict": lambda path: ["predict", path, path],
    "predict --resume": lambda path: ["predict", "--resume", path],
    "review": lambda path: ["review", path],
    "average": lambda path: ["average", path, path],
    "compare": lambda path: ["compare", path],
    "report": lambda path: ["report", path],
    "study": lambda path: ["study", path, "--device", "cuda:99"],
    "finetune --resume": lambda path: ["finetune", "--resume", path, "--device", "cuda:99"],
    "finetune --seeds --resume": lambda path: ["finetune", "--seeds=0,1", "--resume", path, "--device", "cuda:99"],
    "fewshot --resume": lambda path: ["fewshot", "--resume", path, "--device", "cuda:99"],
    "recipe": lambda path: ["finetune", "--recipe", f"./{path}", "--device", "cuda:99", "--out", "out"],
    "recipes check": lambda path: ["recipes", "check", f"./{path}"],
    "recipes cp": lambda path: ["recipes", "cp", "digits", path],
    "init": lambda path: ["finetune", "--backbone", "test_vit", "--init", path, "--out", "out"],
    "folder": lambda path: ["finetune", "--dataset", f"folder:{path}", "--out", "out"],
    "csv": lambda path: ["finetune", "--dataset", f"csv:{path}", "--out", "out"],
    "wds": lambda path: ["finetune", "--dataset", f"wds:{path}", "--out", "out"],
    "exclude": lambda path: ["finetune", "--set", f"data.exclude={path}", "--device", "cuda:99", "--out", "out"],
    "data check": lambda path: ["data", "check", f"csv:{path}"],
    "out": lambda path: ["finetune", "--out", path, "--device", "cuda:99"],
}
PLACES = ["fifo", "empty", "empty.pt", "text.pt", "text.parquet", "bomb.yaml", "a-study", "begun", "odd", "loop",
          "null", "nothing", "long"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_thing_of_another_kind_in_the_place_of_a_file_or_folder(places: dict[str, str], command: str) -> None:
    for name in PLACES:
        free = name in {"nothing", "empty", "a-study", "begun", "odd"}  # a place to write to
        if not (command == "recipes cp" and free) and (command, name) != ("recipes check", "empty.pt"):
            refused(*COMMANDS[command](places[name]))


OPTIONS: dict[str, list[Any]] = {
    "eval": ["--split", "--dataset", "--ood", "--data-root", "--device"],
    "embed": ["--split", "--layer", "--points", "--perplexity", "--figures", "--dataset", "--device", "--projection"],
    "export": ["--format"],
    "fewshot": ["--ways", "--shots", "--queries", "--episodes", "--classifier", "--protocol", "--dataset"],
    "predict": ["--top-k", "--min-confidence", "--copy-to"],
    "review": ["--split", "--device"],
    "average": ["--soup"],
    "compare": ["--metric", "--baseline"],
    "study": ["--storage", "--device"],
}


@given(st.sampled_from(list(OPTIONS)), st.data())
@FEW
def test_any_value_of_any_option_of_the_other_commands(
    places: dict[str, str], command: str, data: st.DataObject
) -> None:
    option = data.draw(st.sampled_from(OPTIONS[command]))
    place = data.draw(st.sampled_from(PLACES))
    refused(command, places[place], f"{option}={data.draw(VALUES)}", "--out", "out")


NO_TORCH = """
finetune --set lr=1|finetune --lr -1|finetune --seeds a|finetune --seeds 0-99999|finetune --seeds 3
finetune --seeds 0,1 --resume auto|finetune --recipe nothing|finetune --recipe ./nothing.yaml
finetune --dataset nothing|finetune --loss foo|finetune --resume nothing|finetune --resume empty
finetune --resume empty --out x|finetune --device foo|finetune --dataset folder:nowhere
finetune --dataset csv:nowhere|finetune --dataset wds:nowhere|finetune --epochs 0
finetune --set data.workers=200|finetune --init nothing.pt|finetune --out text.pt
fewshot nothing.pt|fewshot empty|fewshot --protocol foo|fewshot --classifier foo|fewshot --ways 1|fewshot --query x
fewshot text.pt --recipe digits|fewshot --dataset nothing|fewshot --support nowhere
eval nothing|eval empty|eval fifo|eval text.pt --split foo|eval text.pt --ood nothing|eval text.pt --dataset nothing
eval text.pt --out text.pt|eval text.pt --device foo
embed nothing|embed empty|embed text.pt --layer foo|embed text.pt --points 0|embed text.pt --perplexity 0
embed text.pt --figures tiff|embed text.pt --images x --projection foo|embed text.pt --out text.pt
predict nothing x|predict empty x|predict text.pt|predict text.pt nowhere|predict text.pt . --top-k -1
predict text.pt . --min-confidence 2|predict text.pt . --link|predict --resume empty
review nothing|review text.pt --split foo|review text.pt --out text.pt|average nothing|average text.pt --soup foo
export nothing|export text.pt --format foo|export text.pt --out empty
compare nothing|compare empty|report nothing|report empty
study nothing.yaml|study bomb.yaml|study wrong.yaml|study unknown.yaml
recipes show nothing|recipes cp nothing x|recipes check nothing
finetune --set train.optimizer=adamv|finetune --backbone resnet5o|finetune --set augment.policy=rand-k9
finetune --set augment.second={policy:x}|finetune --set augment.second.policy=x|augment --set augment.policy=x
finetune --set model.args.pretrained=true|finetune --set model.args.num_classes=3|finetune --set model.args.in_chans=1
finetune --set data.exclude=nothing.csv|finetune --set data.relabel=nothing.csv|finetune --init local-dir:nowhere
finetune --set train.sharding=fsdp|finetune --set train.batchnorm=running --set model.lora_rank=2 --init x.y
finetune --dataset cifar100 --data-root empty|finetune --dataset cifarfs|fewshot --dataset cifarfs --data-root empty
eval text.pt --dataset cifar100 --data-root empty|embed text.pt --dataset cifar100 --data-root empty
study optimizer.yaml|study backbone.yaml|study missing.yaml|doctor --backbone resnet5o|data check cifar100 --root empty
data check digits --write nowhere/bad.csv
data info nothing|data prepare nothing|data check nothing|data check folder:nowhere|doctor --device foo
"""
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "timm", "torchvision"}:
            raise AssertionError(f"imports {name}")
sys.meta_path.insert(0, Refuse())
from schane_cli import preflight
from schane_cli.cli import main
for line in sys.stdin.read().split("|"):
    try:
        main(line.split())
    except SystemExit as exit_:
        print("answer", exit_.code, line)
    except AssertionError as error:
        print("answer", error, line)
"""


def test_a_request_that_cannot_be_right_imports_no_torch(places: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("grid: {train.lr: [-1]}")
    (tmp_path / "unknown.yaml").write_text("set: {data.dataset: nothing}")
    (tmp_path / "optimizer.yaml").write_text("set: {train.optimizer: adamv}")
    (tmp_path / "backbone.yaml").write_text("grid: {model.backbone: [resnet50, resnet5o]}")
    (tmp_path / "missing.yaml").write_text("set: {data.dataset: cifar100, data.root: empty}")
    requests = NO_TORCH.strip().replace("\n", "|")
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], input=requests, capture_output=True, text=True, check=True
    )
    answers = [line for line in ran.stdout.splitlines() if line.startswith("answer")]
    assert [answer for answer in answers if not answer.startswith("answer 2 ")] == []
    assert len(answers) == len(requests.split("|"))
    assert len(ran.stderr.splitlines()) == len(answers)  # a sentence each


@pytest.mark.parametrize("key", recipe_fields())
def test_every_key_of_few_words_or_a_range_is_refused_by_the_recipe_or_before_torch(key: str) -> None:
    """What its type refuses needs no torch. Words that the type leaves open are named here, each with who checks it."""
    open_words = {
        "data.dataset": "catalog", "data.root": "catalog", "model.backbone": "timm_names", "model.args": "preflight",
        "model.weights": "preflight", "train.optimizer": "timm_names", "augment.policy": "timm_names",
        "augment.second": "recipe", "loss.name": "recipe", "loss.args": "recipe", "fewshot.classifier": "preflight",
        "device": "preflight", "data.exclude": "preflight", "data.relabel": "preflight", "model.freeze": "the model",
        "model.lora_targets": "the model", "data.image_column": "the data", "data.label_column": "the data",
    }  # fmt: skip
    if key not in open_words:
        with pytest.raises(BadRequest):
            build_recipe({}, {key: "no such word"})


def test_the_names_that_are_known_without_torch_are_those_of_the_commands() -> None:
    from schane_cli.commands.export import FORMATS
    from schane_cli.fewshot.classifiers import CLASSIFIERS
    from schane_cli.models.model import Outputs

    assert tuple(CLASSIFIERS) == preflight.CLASSIFIER_NAMES
    assert tuple(FORMATS) == preflight.EXPORT_FORMATS
    assert set(Outputs._fields) == set(preflight.LAYERS)
