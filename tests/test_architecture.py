"""The house rules a machine can hold: which package imports which, no torch where help is made."""

import ast
from pathlib import Path

import schane_cli

PACKAGE = Path(schane_cli.__file__).parent
TOP = {
    "__init__",
    "__main__",
    "checks",
    "cli",
    "cli_data",
    "cli_output",
    "cli_recipes",
    "distributed",
    "errors",
    "flags",
    "plugins",
    "preflight",
    "recipe",
    "run",
    "spreadsheets",
    "terminal",
    "timm_names",
}
# A package may import itself, the packages named here, and the modules named here that belong to none.
ALLOWED = {
    "losses": {"packages": set(), "modules": set()},
    "fewshot": {"packages": set(), "modules": {"checks", "errors"}},
    "metrics": {"packages": set(), "modules": {"checks"}},
    "images": {"packages": set(), "modules": {"errors", "recipe", "distributed", "timm_names"}},
    "models": {
        "packages": {"images"},
        "modules": {"errors", "preflight", "recipe", "run", "distributed", "timm_names"},
    },
    "datasets": {
        "packages": {"images"},
        "modules": {"errors", "plugins", "recipe", "run", "spreadsheets", "terminal", "distributed"},
    },
    "features": {
        "packages": {"images", "models"},
        "modules": {"errors", "recipe", "run", "terminal", "distributed"},
    },
    "training": {
        "packages": {"features", "images", "losses", "metrics", "models"},
        "modules": {"errors", "plugins", "preflight", "recipe", "run", "terminal", "timm_names", "distributed"},
    },
    "commands": {
        "packages": {"datasets", "features", "fewshot", "images", "losses", "metrics", "models", "training"},
        "modules": {
            "checks",
            "distributed",
            "errors",
            "plugins",
            "preflight",
            "recipe",
            "run",
            "spreadsheets",
            "terminal",
        },
    },
    "reports": {
        "packages": {"commands", "datasets", "features", "fewshot", "images", "metrics"},
        "modules": {"errors", "recipe", "run", "spreadsheets", "terminal", "distributed"},
    },
}


def _place(path: Path) -> str:
    """The package of a file, or the name of the module that belongs to none."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def _imports(path: Path) -> set[str]:
    """The packages and top modules that a file imports; "" where it is the package itself."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "schane_cli":
            names |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("schane_cli."):
            names.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("schane_cli.")}
    return names


def _files() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if "recipes" not in path.parts]


def test_every_file_belongs_to_a_package_or_is_named_here() -> None:
    assert {_place(path) for path in _files()} == TOP | ALLOWED.keys()


def test_packages_import_only_what_lies_below_them() -> None:
    wrong = []
    for path in _files():
        place = _place(path)
        if place in ALLOWED:
            allowed = {place} | ALLOWED[place]["packages"] | ALLOWED[place]["modules"]
        else:  # cli and the public names import what they offer; the other modules stand below all packages
            allowed = TOP | (ALLOWED.keys() if place in {"cli", "cli_data", "flags", "__init__", "__main__"} else set())
        wrong += [f"{path.relative_to(PACKAGE)} imports {name}" for name in sorted(_imports(path) - allowed)]
    assert wrong == []


def test_packages_form_no_circle_and_few_arrows() -> None:
    arrows = {(_place(path), name) for path in _files() for name in _imports(path)}
    arrows = {(a, b) for a, b in arrows if a in ALLOWED and b in ALLOWED and a != b}
    assert len(arrows) <= 20, sorted(arrows)
    assert _grounded(set(ALLOWED), arrows)


def test_no_two_files_import_each_other_in_a_circle() -> None:
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in _files()}
    arrows = {
        (name, other)
        for path, name in names.items()
        for other in _modules(path)
        if other in set(names.values()) and other != name and not other.endswith("__init__")
    }
    assert _grounded(set(names.values()), arrows)


def _modules(path: Path) -> set[str]:
    """Dotted names of what a file imports, `from package import module` included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def _grounded(places: set[str], arrows: set[tuple[str, str]]) -> bool:
    """Whether places can be taken away one by one, each when it imports none of those left: there is no circle."""
    left = set(places)
    while left:
        ground = {place for place in left if not any(a == place and b in left for a, b in arrows)}
        assert ground, f"a circle among {sorted(left)}"
        left -= ground
    return True


def test_the_science_opens_no_files_and_prints_nothing() -> None:
    for package in ("losses", "fewshot", "metrics"):
        for path in (PACKAGE / package).glob("*.py"):
            calls = {node.func.id for node in ast.walk(ast.parse(path.read_text()))
                     if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
            assert not calls & {"print", "open"}, path.name


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not {"utils", "helpers", "common", "misc"} & {path.stem for path in _files()}


def test_only_the_registry_of_metrics_turns_shares_into_percent() -> None:
    wrong = []
    for path in [*(PACKAGE / "reports").glob("*.py"), *(PACKAGE / "commands").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            by_format = isinstance(node, ast.FormattedValue) and node.format_spec is not None
            by_format = by_format and ast.unparse(node.format_spec).rstrip("'\"").endswith("%")
            by_hand = (
                isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and "100" in ast.unparse(node).split()
            )
            label = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(", %")
            wrong += [f"{path.name}:{node.lineno}"] if by_format or by_hand or label else []
    assert wrong == []


def test_one_file_writes_csv_tables() -> None:
    """The one that keeps formulas out of them."""
    writing = ("to_csv(", "csv.writer", "csv.DictWriter")
    assert [path.name for path in _files() if any(word in path.read_text() for word in writing)] == ["spreadsheets.py"]
