"""`schane data ls | info | prepare | check`: the datasets by name, on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from schane_cli.cli_output import Json, first_process_only, print_summary
from schane_cli.errors import BadRequest
from schane_cli.recipe import recipe_fields

data_app = typer.Typer(no_args_is_help=True, help="Datasets by name: ls, info, prepare, check.")

Root = Annotated[Path, typer.Option("--root", "--data-root", help=recipe_fields()["data.root"].description)]
_DEFAULT_ROOT = recipe_fields()["data.root"].default


@data_app.command("ls")
def data_ls(root: Root = _DEFAULT_ROOT, json: Json = False) -> None:
    """List the datasets that schane knows by name, and how much of each is on disk."""
    from schane_cli.datasets.prepare import overview, plugin_failures
    from schane_cli.terminal import Terminal, figures_table

    rows, failures = overview(root), plugin_failures()
    shown = [(row["name"], f"{row['images']:,}", f"{row['classes']:,}", row["state"]) for row in rows]
    terminal = Terminal(json=json)
    terminal.table(figures_table(f"datasets below {root}", shown, ("name", "images", "classes", "on disk")))
    terminal.say("also: folder:PATH, csv:FILE, hfds:NAME (Hugging Face), wds:PATH (WebDataset shards)")
    for failure in failures:
        terminal.say(failure)
    print_summary({"root": root, "datasets": rows}, json)


@data_app.command("info", epilog="Example: schane data info imagenet1k")
def data_info(
    name: Annotated[str, typer.Argument(help="dataset name")], root: Root = _DEFAULT_ROOT, json: Json = False
) -> None:
    """Say what a dataset is: licence, source, counts per split, what is on disk, what to do by hand."""
    from schane_cli.datasets.prepare import info
    from schane_cli.terminal import Terminal

    known = info(name, root)
    terminal = Terminal(json=json)
    for key, value in known.items():
        if key == "counts":
            value = ", ".join(f"{count:,} {split}" for split, count in value.items())
        elif key == "files":
            value = "\n          ".join(f"{file['url']} (md5 {file['md5']})" for file in value)
        elif key == "expects":
            value = "; or ".join(", ".join(layout) for layout in value)
        if value:
            terminal.say(f"{key:<9} {value}")
    print_summary(known, json)


@data_app.command("prepare", epilog="Example: schane data prepare cub200 --root /data")
def data_prepare(
    name: Annotated[str, typer.Argument(help="dataset name")], root: Root = _DEFAULT_ROOT, json: Json = False
) -> None:
    """Download, verify and unpack a dataset, or say what to fetch by hand; a stopped download resumes."""
    first_process_only()
    from schane_cli.datasets.prepare import info, prepare
    from schane_cli.terminal import Terminal

    prepare(name, root, Terminal(json=json))
    print_summary(info(name, root), json)


@data_app.command("check", epilog="Example: schane data check cifar100 --all")
def data_check(
    name: Annotated[str, typer.Argument(help="dataset name, folder:PATH, csv:FILE, hfds:NAME or wds:PATH")],
    root: Root = _DEFAULT_ROOT,
    decode_all: Annotated[
        bool, typer.Option("--all", help="decode every image, not just 500 per split of a large set")
    ] = False,
    write: Annotated[
        Path | None, typer.Option("--write", help="CSV for the images to leave out; data.exclude takes it")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="set a key of data, like data.label_column"),
    ] = None,
    json: Json = False,
) -> None:
    """Count images and classes, decode them, compare splits by content; exit code 1 if something is wrong."""
    from schane_cli.datasets.catalog import require_source
    from schane_cli.recipe import parse_set
    from schane_cli.terminal import Terminal, figures_table

    terminal = Terminal(json=json)
    settings = parse_set(assignments or ())
    require_source(name, root)
    if write is not None and (not write.parent.is_dir() or (write.exists() and not write.is_file())):
        raise BadRequest(f"--write {write}: no file can be written there; name one in a folder that is there")
    from schane_cli.datasets.check import check

    verdict = check(name, root, terminal, sample=None if decode_all else 500, settings=settings)
    columns = ("images", "classes", "smallest_class", "largest_class")
    rows = [(split, *(f"{counts[key]:,}" for key in columns)) for split, counts in verdict.splits.items()]
    terminal.table(figures_table(name, rows, ("split", *(column.replace("_", " ") for column in columns))))
    for text in [*verdict.remarks, *verdict.problems]:
        terminal.say(text)
    verdict_text = f"{len(verdict.problems)} problems" if verdict.problems else "ok"
    terminal.say(f"verdict   {verdict_text}; {verdict.decoded:,} images decoded, all compared between splits")
    if write is not None:
        verdict.write_bad(write)
        terminal.say(f"wrote     {write}: {len(verdict.bad):,} images; --set data.exclude={write} leaves them out")
    print_summary(verdict.summary(), json)
    if verdict.problems:
        raise typer.Exit(1)
