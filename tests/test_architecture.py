"""The house rules a machine can hold: imports go downward only, no torch where help is made."""

import ast
from pathlib import Path

import schane_cli

PACKAGE = Path(schane_cli.__file__).parent
# A module imports only from its own room or from rooms below it (further down this list).
ROOMS = [
    {"__main__"},
    {"cli"},
    {"compare_report", "study_report"},
    {"compare", "study"},
    {"report", "fewshot_report", "embed_report", "embed_page", "embed_examples", "eval_report"},
    {
        "finetune",
        "fewshot",
        "evaluate",
        "embed",
        "embed_input",
        "embed_tables",
        "export",
        "prepare",
        "check",
        "robustness",
    },
    {"training"},
    {"gradient", "optimizer", "training_state", "trackers", "interruption"},
    {"objective", "features", "feature_store", "thumbnails"},
    {"models", "augment"},
    {"checkpoint", "data", "sharding"},
    {"readers", "cifar", "imagenet", "containers"},
    {"splits", "folders"},
    {"archives", "datasets", "images", "views", "run", "cost"},
    {"color", "corruptions", "plots"},
    {"quality", "projection2d", "similarity"},
    {"separation"},
    {"study_queue"},
    {"neighbours", "spectrum", "metrics", "episode_scores"},
    {"classifiers"},
    {"losses", "tiled", "kernels", "episodes", "resnet12", "bootstrap", "figures", "logistic_regression"},
    {"study_file"},
    {"recipe", "terminal"},
    {"errors", "__init__"},
]
ROOM_OF = {module: number for number, room in enumerate(ROOMS) for module in room}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "schane_cli":
            found |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("schane_cli."):
            found.add((node.module or "").split(".")[1])
    return found


def test_imports_go_downward_only() -> None:
    homeless = {path.stem for path in PACKAGE.glob("*.py")} - ROOM_OF.keys()
    assert not homeless, f"give {homeless} a room"
    wrong = [
        f"{path.stem} imports {name}"
        for path in PACKAGE.glob("*.py")
        for name in _imports(path)
        if ROOM_OF[name] < ROOM_OF[path.stem]
    ]
    assert wrong == []


def test_the_science_reads_no_recipe_no_files_and_prints_nothing() -> None:
    science = {
        "losses", "tiled", "kernels", "episodes", "classifiers", "logistic_regression", "episode_scores", "metrics",
        "quality", "neighbours", "spectrum",
    }  # fmt: skip
    for name in science & {path.stem for path in PACKAGE.glob("*.py")}:
        path = PACKAGE / f"{name}.py"
        assert not _imports(path) & {"recipe", "run", "terminal", "data", "checkpoint"}, name
        calls = {node.func.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
        assert not calls & {"print", "open"}, name


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not {"utils", "helpers", "common", "misc"} & {path.stem for path in PACKAGE.glob("*.py")}
