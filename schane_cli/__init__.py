"""schane: fine-tune image models with a hardness-weighted supervised contrastive loss (arXiv:2308.14893).

The loss in a loop of your own::

    from schane_cli import SchaneLoss
    loss = 0.9 * SchaneLoss()(projection, labels) + 0.1 * cross_entropy(logits, labels)

A command as a function, with what it would print at `Terminal`::

    from schane_cli import Terminal, finetune, resolve_recipe
    recipe, _ = resolve_recipe(recipe=None, dataset="folder:photos", overrides={"train.epochs": 10})
    summary = finetune(recipe, out=None, terminal=Terminal())

Names are imported when they are first used: `import schane_cli` alone imports neither torch nor timm.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. The command `schane fewshot` is `evaluate_fewshot`, for `fewshot` is a package here.
_HOMES = {
    "CrossBatchMemory": "losses",
    "SchaneLoss": "losses",
    "SimCLRLoss": "losses",
    "SupConLoss": "losses",
    "contrastive_loss": "losses",
    "register_loss": "losses",
    "load_checkpoint": "models.checkpoint",
    "Recipe": "recipe",
    "build_recipe": "recipe",
    "resolve_recipe": "recipe",
    "Terminal": "terminal",
    "BadRequest": "errors",
    "SchaneError": "errors",
    "compare": "commands.compare",
    "embed": "commands.embed",
    "evaluate": "commands.evaluate",
    "evaluate_fewshot": "commands.fewshot",
    "export": "commands.export",
    "finetune": "commands.finetune",
    "study": "commands.study",
}
_OTHER_NAMES = {"evaluate_fewshot": "fewshot"}

__all__ = [
    "BadRequest",
    "CrossBatchMemory",
    "Recipe",
    "SchaneError",
    "SchaneLoss",
    "SimCLRLoss",
    "SupConLoss",
    "Terminal",
    "__version__",
    "build_recipe",
    "compare",
    "contrastive_loss",
    "embed",
    "evaluate",
    "evaluate_fewshot",
    "export",
    "finetune",
    "load_checkpoint",
    "register_loss",
    "resolve_recipe",
    "study",
]

if TYPE_CHECKING:
    from schane_cli.commands.compare import compare
    from schane_cli.commands.embed import embed
    from schane_cli.commands.evaluate import evaluate
    from schane_cli.commands.export import export
    from schane_cli.commands.fewshot import fewshot as evaluate_fewshot
    from schane_cli.commands.finetune import finetune
    from schane_cli.commands.study import study
    from schane_cli.errors import BadRequest, SchaneError
    from schane_cli.losses import (
        CrossBatchMemory,
        SchaneLoss,
        SimCLRLoss,
        SupConLoss,
        contrastive_loss,
        register_loss,
    )
    from schane_cli.models.checkpoint import load_checkpoint
    from schane_cli.recipe import Recipe, build_recipe, resolve_recipe
    from schane_cli.terminal import Terminal


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'schane_cli' has no attribute {name!r}")
    return getattr(import_module(f"schane_cli.{_HOMES[name]}"), _OTHER_NAMES.get(name, name))


def __dir__() -> list[str]:
    return __all__
