"""`schane recipes ls | show | cp | check`: the recipes that come with schane, on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from schane_cli.errors import BadRequest
from schane_cli.flags import complete_recipe
from schane_cli.recipe import (
    Recipe,
    build_recipe,
    differences,
    find_recipe,
    read_recipe,
    recipe_measured,
    recipe_names,
    recipe_title,
    to_yaml,
)
from schane_cli.run import write_text

recipes_app = typer.Typer(no_args_is_help=True, help="Recipes that come with schane: ls, show, cp, check.")


@recipes_app.command("ls")
def recipes_ls() -> None:
    """List the recipes: what each is, and when it was run as it stands."""
    from schane_cli.terminal import Terminal, figures_table

    rows = [(name, recipe_measured(name) or "not yet", recipe_title(name)) for name in recipe_names()]
    table = figures_table("recipes", rows, ("name", "run", "what"))
    for column in table.columns:
        column.justify = "left"
    Terminal().table(table)


@recipes_app.command("show")
def recipes_show(
    name: Annotated[str, typer.Argument(help="recipe name or path", autocompletion=complete_recipe)],
    resolved: Annotated[bool, typer.Option("--resolved", help="print every value, the defaults included")] = False,
) -> None:
    """Print a recipe as written: its header, and what differs from the defaults."""
    file = find_recipe(name)
    print(to_yaml(build_recipe(read_recipe(file))) if resolved else file.read_text(), end="")


@recipes_app.command("cp")
def recipes_cp(
    name: Annotated[str, typer.Argument(help="recipe name or path")],
    target: Annotated[Path, typer.Argument(help="file to write")],
) -> None:
    """Copy a recipe to a file of your own; an existing file is not overwritten."""
    source = find_recipe(name)
    target = target / source.name if target.is_dir() else target
    if target.exists() or target.is_symlink():
        raise BadRequest(f"{target} exists already; choose another name")
    try:
        write_text(target, source.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"{target} cannot be written: {error.strerror}") from None
    print(target)


@recipes_app.command("check")
def recipes_check(
    names: Annotated[list[str] | None, typer.Argument(help="recipe names or paths; by default all of schane's")] = None,
) -> None:
    """Check recipes for unknown keys and values out of range."""
    for name in names or recipe_names():
        recipe = build_recipe(read_recipe(find_recipe(name)))
        changed = len(differences(Recipe(), recipe, label="default"))
        print(f"{name}: ok ({changed} values differ from the defaults)")
