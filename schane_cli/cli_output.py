"""Where a command's result goes: the line of --json, from the first process of several."""

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="one JSON line on stdout, everything else on stderr")]


def process_number() -> int:
    """This process's number in a launch by torchrun, before torch is imported."""
    return int(os.environ.get("RANK", "0"))


def first_process_only() -> None:
    """Under torchrun, end all processes but the first: the command's work is one process's."""
    if process_number() != 0:
        raise typer.Exit


def print_summary(summary: Mapping[str, Any], as_json: bool) -> None:
    """With --json, the summary as the first process's line on stdout."""
    if as_json and process_number() == 0:
        from schane_cli.run import plain

        print(json.dumps(plain(summary)))
