"""A study file: which recipe, what varies, which seeds; and the trials that it asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schane_cli.errors import BadRequest, nearest
from schane_cli.metrics.registry import find_metric
from schane_cli.preflight import require_epochs, require_machine
from schane_cli.recipe import (
    MAX_SEED,
    MAX_SEEDS,
    Recipe,
    build_recipe,
    describe_error,
    find_recipe,
    known_keys,
    parse_seeds,
    read_recipe,
    unknown_key,
)

MAX_TRIALS = 100_000
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Range(_Part):
    """An interval to search, both ends included."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _holds_something(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must lie below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range begins above 0, got {self.low:g}")
        return self


class StudyFile(_Part):
    """What `schane study` reads. `arms` x `grid` x `seeds` are all run; a `search` draws `trials` points instead."""

    recipe: str = Field("digits", description="recipe by name or path that every run starts from")
    command: Literal["finetune", "fewshot"] = Field("finetune", description="the command of every run")
    set: dict[str, Any] = Field({}, description="recipe values of every run, by dotted key")
    arms: dict[str, dict[str, Any]] = Field({}, description="named settings that are compared, each a set of values")
    grid: dict[str, list[Any]] = Field({}, description="values to combine, by dotted key")
    search: dict[str, Range | list[Any]] = Field({}, description="{low, high, log} or a list, by dotted key")
    trials: int | None = Field(None, ge=1, le=MAX_TRIALS, description="points drawn by a search")
    seeds: list[Seed] = Field([0], min_length=1, max_length=MAX_SEEDS, description="seeds of every setting")
    metric: str | None = Field(
        None, description="metric of the runs to optimise (a search: val_accuracy) or compare (a grid: test_accuracy)"
    )
    baseline: str | None = Field(None, description="the arm that the others are compared with")
    heartbeat_seconds: int = Field(15, ge=1, le=3600, description="a worker silent for four of these counts as dead")

    @model_validator(mode="after")
    def _asks_for_something(self) -> "StudyFile":
        for name, values in [*self.grid.items(), *self.search.items()]:
            if isinstance(values, list) and not values:
                raise ValueError(f"{name} has no values: the study would be empty")
        if self.search and (self.grid or self.arms):
            raise ValueError("a study has a search, or arms and a grid, not both")
        if bool(self.search) != (self.trials is not None):
            raise ValueError("search and trials need each other")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds repeat: {self.seeds}")
        if self.metric is not None and find_metric(self.metric) is None:
            raise ValueError(
                f"no metric is called {self.metric!r}; runs have test_accuracy, val_accuracy, test_nll, ..."
            )
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is not one of the arms{nearest(self.baseline, self.arms)}")
        return self

    @property
    def objective(self) -> str:
        """The metric that a trial is judged by: chosen on val unless the file says otherwise."""
        return self.metric or "val_accuracy"


@dataclass(frozen=True)
class Setting:
    """One point of the study: its name, its recipe values by dotted key, and the seeds that it runs."""

    label: str
    values: Mapping[str, Any]
    seeds: Sequence[int]


def read_study(path: Path) -> StudyFile:
    """The study file, checked.

    Raises:
        BadRequest: no such file, an unknown key (the nearest is named), an empty grid or search space.
    """
    if not path.is_file():
        raise BadRequest(f"no study file at {path}")
    tree = read_recipe(path)
    try:
        seeds = tree.get("seeds", [0])
        study = StudyFile.model_validate({**tree, "seeds": parse_seeds(str(seeds)) if _is_text(seeds) else seeds})
    except ValidationError as error:
        reasons = (describe_error(item, unknown=_unknown_study_key) for item in error.errors())
        raise BadRequest(f"{path}: {'; '.join(dict.fromkeys(reasons))}") from None
    _check_keys(study, path)
    return study


def _unknown_study_key(key: str) -> str:
    return f"unknown study key {key!r}{nearest(key, StudyFile.model_fields)}"


def _is_text(seeds: Any) -> bool:
    """Whether seeds are written as --seeds takes them (`3`, `0-4`, `0,3`) rather than as a list."""
    return isinstance(seeds, str | int) and not isinstance(seeds, bool)


def _check_keys(study: StudyFile, path: Path) -> None:
    """BadRequest for a varied key that no recipe has, or that varies in two places."""
    for name in [*study.grid, *study.search, *study.set, *(key for arm in study.arms.values() for key in arm)]:
        if name == "seed":
            raise BadRequest(f"{path}: the seeds of a study are its `seeds`, not a value of the key 'seed'")
        if name not in known_keys():
            raise BadRequest(f"{path}: {unknown_key(name)}")
    twice = [key for arm in study.arms.values() for key in arm if key in study.grid]
    if twice:
        raise BadRequest(f"{path}: {twice[0]!r} varies both in the grid and in an arm")


def settings(study: StudyFile) -> list[Setting]:
    """Every point of arms x grid, each with one seed, in the order in which they run: all points of a seed first.

    For a search: its trials, named t0000 onward, whose values are drawn when they run; each has all seeds.
    """
    if study.search:
        return [Setting(f"t{number:04d}", {}, tuple(study.seeds)) for number in range(study.trials or 0)]
    points = [
        (
            _label(arm, dict(zip(study.grid, chosen, strict=True))),
            {**values, **dict(zip(study.grid, chosen, strict=True))},
        )
        for arm, values in (study.arms or {"": {}}).items()
        for chosen in product(*study.grid.values())
    ]
    return [Setting(label, values, (seed,)) for seed in study.seeds for label, values in points]


def _label(arm: str, chosen: Mapping[str, Any]) -> str:
    """`schane lr=0.002`, keys by their last part; `base` where nothing varies but the seed."""
    shown = (f"{key.rsplit('.', 1)[-1]}={value}" for key, value in chosen.items())
    return " ".join([*([arm] if arm else []), *shown]) or "base"


def study_recipe(study: StudyFile, values: Mapping[str, Any], seed: int, machine: Mapping[str, Any]) -> Recipe:
    """The recipe of one run. `machine` holds what belongs to this computer: where its data and weights lie, its device.

    Raises:
        BadRequest: a value out of range, or an unknown recipe.
    """
    base = read_recipe(find_recipe(study.recipe))
    return build_recipe(base, {**study.set, **values, **machine, "seed": seed})


def recipes_of(study: StudyFile, machine: Mapping[str, Any]) -> list[Recipe]:
    """The recipe of every setting, by its first seed; what a search draws is not yet in it. Raises BadRequest."""
    recipes = [study_recipe(study, setting.values, setting.seeds[0], machine) for setting in settings(study)]
    for recipe in recipes:
        require_machine(recipe.flat())
        if study.command == "finetune":
            require_epochs(recipe)
    return recipes


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two study files as plain trees."""
    changed: list[str] = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed += changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(f"{prefix}{key}")
    return changed
