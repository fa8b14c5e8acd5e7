"""Small real training jobs that tests share."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from schane_cli.commands.finetune import finetune
from schane_cli.models.model import SchaneModel
from schane_cli.recipe import Recipe, build_recipe, find_recipe, read_recipe
from schane_cli.terminal import Terminal

# 100 digits a few epochs, validated on 83 and tested on 109: under a second, and every part of the core is used.
TINY = {
    "data.train_per_class": 10,
    "data.val_fraction": 0.05,
    "data.test_fraction": 0.06,
    "data.workers": 0,
    "train.epochs": 3,
    "train.batch_size": 25,
    "train.warmup_epochs": 1,
    "device": "cpu",
}


def tiny_recipe(**overrides: Any) -> Recipe:
    """The digits recipe, cut to 100 training images; keys are written with __ for the dot."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return build_recipe(read_recipe(find_recipe("digits")), {**TINY, **dotted})


def run_tiny(out: Path, resume: bool = False, **overrides: Any) -> dict[str, Any]:
    """Fine-tune the tiny recipe into `out`; returns the summary."""
    terminal = Terminal(quiet=True)
    return finetune(tiny_recipe(**overrides), out=out, terminal=terminal, resume=out if resume else None)


@contextlib.contextmanager
def blank_pictures() -> Iterator[None]:
    """Every PNG that matplotlib would draw is blank: drawing takes half of the time of a small command with a page.

    For tests that are not about a page. Those of each command's own page, and the documents', draw every picture.
    """
    draw = Figure.savefig

    def savefig(figure: Figure, path: Path, **how: Any) -> None:
        if path.suffix == ".png":
            Image.new("RGB", (8, 8)).save(path)
        else:
            draw(figure, path, **how)

    with patch.object(Figure, "savefig", savefig):
        yield


def with_random_classifier(model: SchaneModel) -> SchaneModel:
    """The model with a classifier as after training: a new one is all zeros, and its logits could not differ."""
    for parameter in model.backbone.get_classifier().parameters():
        nn.init.normal_(parameter)
    return model


def free_port() -> str:
    """A port on which processes of a run can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
