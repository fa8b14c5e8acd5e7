"""Command-line flags made from the recipe's fields: a command names the keys, and everything else is in the field.

    @app.command()
    @recipe_flags("data.root", "loss.temperature", "device", any_key=True)
    def probe(checkpoint: ..., values: RecipeValues, out: Out = None) -> None: ...

`schane probe --help` then shows --data-root, --temperature, --device and --set, each with its field's description, type
and range, and `values` is `{"loss.temperature": 0.3}`: what the user gave, under dotted keys, `--set` first and named
flags on top. The value itself is checked once, by the recipe.
"""

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from schane_cli import plugins
from schane_cli.errors import BadRequest
from schane_cli.preflight import require_machine
from schane_cli.recipe import check_keys, loss_names, parse_set, recipe_fields, recipe_names

RecipeValues = dict[str, Any]

# The flags that set one recipe value. A new one is a line here, and a key in the commands that take it.
FLAGS = {
    "--dataset": "data.dataset",
    "--data-root": "data.root",
    "--backbone": "model.backbone",
    "--init": "model.weights",
    "--loss": "loss.name",
    "--seed": "seed",
    "--epochs": "train.epochs",
    "--batch-size": "train.batch_size",
    "--chunk-size": "train.chunk_size",
    "--compile": "train.compile",
    "--lr": "train.lr",
    "--temperature": "loss.temperature",
    "--hardness": "loss.hardness",
    "--contrastive-weight": "loss.contrastive_weight",
    "--ways": "fewshot.ways",
    "--shots": "fewshot.shots",
    "--queries": "fewshot.queries",
    "--episodes": "fewshot.episodes",
    "--classifier": "fewshot.classifier",
    "--device": "device",
}
FLAG_OF = {key: flag for flag, key in FLAGS.items()}

_BOUNDS = {"gt": "x>{}", "ge": "x>={}", "lt": "x<{}", "le": "x<={}"}


def recipe_flags(*keys: str, any_key: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put a flag for each of `keys` in the place of a command's parameter `values`, and fill `values` from them.

    Args:
        keys: dotted recipe keys, each with a name in `FLAGS`.
        any_key: also take `--set KEY=VALUE`, repeatable, for every key. An unknown key is refused before the command
            runs.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        flags = {_parameter_name(key): key for key in keys}

        def run(**given: Any) -> None:
            values = parse_set(given.pop("assignments", None) or [])
            check_keys(values)
            for name, key in flags.items():
                value = given.pop(name)
                if value is not None:
                    values[key] = value.split(",") if _is_list(key) else value
            require_machine(values)
            command(values=values, **given)

        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__signature__ = _signature(command, flags, any_key)  # type: ignore[attr-defined]
        run.__annotations__ = {name: part.annotation for name, part in run.__signature__.parameters.items()}  # type: ignore[attr-defined]
        return run

    return decorate


def _signature(command: Callable[..., None], flags: dict[str, str], any_key: bool) -> inspect.Signature:
    """The command's own parameters, with the flags where `values` stands."""
    parameters: dict[str, tuple[Any, Any]] = {}
    for name, own in inspect.signature(command).parameters.items():
        if name != "values":
            parameters[name] = (own.annotation, own.default)
            continue
        parameters |= {flag: (flag_type(key), None) for flag, key in flags.items()}
        if any_key:
            parameters["assignments"] = (_ASSIGNMENTS, None)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [inspect.Parameter(name, keyword, annotation=kind, default=value) for name, (kind, value) in parameters.items()]
    )


def flag_type(key: str) -> Any:
    """The annotated type from which typer makes the flag of a recipe key: optional, without a default of its own."""
    field, flag = recipe_fields()[key], FLAG_OF[key]
    kind = _plain_type(field.annotation)
    help_text = f"{field.description}{field_range(key)}"
    if kind is bool:
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text, show_default=False)]
    option = typer.Option(
        flag, help=help_text, metavar=_metavar(key), show_default=False, autocompletion=_completion(key)
    )
    return Annotated[(kind if kind in {int, float, Path} else str) | None, option]


def _parameter_name(key: str) -> str:
    return FLAG_OF[key].removeprefix("--").replace("-", "_")


def _plain_type(annotation: Any) -> Any:
    """`int` for `int | None`; anything else as it is."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _is_list(key: str) -> bool:
    return get_origin(_plain_type(recipe_fields()[key].annotation)) is tuple


def _choices(key: str) -> list[str]:
    """The only words a key may take; empty where there are others."""
    kind = _plain_type(recipe_fields()[key].annotation)
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []


def _known_words(key: str) -> list[str]:
    """Words that the shell offers for a key."""
    if key == "loss.name":
        return loss_names()
    if key == "data.dataset":
        from schane_cli.datasets.catalog import DATASETS

        return [*DATASETS, *plugins.plugin_names(plugins.DATASETS)]
    return _choices(key)


def _metavar(key: str) -> str | None:
    """a|b|c for a choice, A,B,... for a list; None leaves it to typer."""
    return "|".join(_choices(key)) or ("A,B,..." if _is_list(key) else None)


def field_range(key: str) -> str:
    """` [x>0]` for a number that has a bound."""
    bounds = {
        name: getattr(item, name) for item in recipe_fields()[key].metadata for name in _BOUNDS if hasattr(item, name)
    }
    low = next((f"{bounds[name]}{sign}" for name, sign in (("gt", "<"), ("ge", "<=")) if name in bounds), "")
    high = next((f"{sign}{bounds[name]}" for name, sign in (("lt", "<"), ("le", "<=")) if name in bounds), "")
    if low and high:
        return f" [{low}x{high}]"
    return "".join(f" [{_BOUNDS[name].format(bounds[name])}]" for name in _BOUNDS if name in bounds)


def _completion(key: str) -> Callable[[str], list[str]] | None:
    """What the shell offers for a flag's value, where the values are known."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in _known_words(key) if word.startswith(incomplete)]

    return complete if key in {"loss.name", "data.dataset"} or _choices(key) else None


def complete_recipe(incomplete: str) -> list[str]:
    """Names of the recipes that come with schane, for the shell."""
    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """`loss.temperature=` and the others, for the shell."""
    return [f"{key}=" for key in recipe_fields() if key.startswith(incomplete)]


_ASSIGNMENTS = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="set any recipe key; repeatable", autocompletion=complete_key),
]


def refuse_training_values(values: RecipeValues) -> None:
    """BadRequest for values of the training beside a checkpoint: nothing is trained, so they would not act."""
    for key in values.keys() - {"train.batch_size", "train.chunk_size"}:  # these two bound a forward pass
        if key.split(".")[0] in {"model", "loss", "train", "seed"}:
            name = FLAG_OF.get(key, f"--set {key}")
            raise BadRequest(f"{name} does not act with a checkpoint: nothing is trained; leave one of them out")
