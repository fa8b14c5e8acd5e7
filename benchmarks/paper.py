"""What the paper's twelve experiments would cost: docs/paper.md, from the recipes and counted operations.

    python benchmarks/paper.py        # writes docs/paper.md; takes seconds, trains nothing

Operations of a step (forward and backward) are counted by torch on a model without memory, for one view; the number of
views is what the recipe's sampler would draw. Hours assume that a card does SHARE of its dense bfloat16 peak.
"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from schane_cli.datasets.catalog import DATASETS, Dataset, class_list
from schane_cli.images.loader import StepSampler
from schane_cli.models.model import build_model
from schane_cli.recipe import Recipe, build_recipe, find_recipe, read_recipe

FULL = ("imagenet1k", "cifar100", "cub200", "caltech256", "flowers102", "pets", "inat2017", "places365")
FEW = ("cifarfs", "fc100", "miniimagenet", "tieredimagenet")
PAPER = {"imagenet1k": "86.14 %"}  # all that is known here of the paper's tables, besides the largest gains
CARDS = {"A100": 312e12, "H100": 989e12}  # dense bfloat16 operations per second, by NVIDIA's data sheets
SHARE = 0.4


def operations_per_view(recipe: Recipe) -> float:
    """Floating-point operations of the forward and backward pass of one view."""
    size = recipe.data.image_size
    with torch.device("meta"):
        model = build_model(recipe.model, 100, size, load_weights=False).train()
        views = torch.empty(2, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        outputs = model(views)
        (outputs.logits.sum() + outputs.projection.sum()).backward()
    return counter.get_total_flops() / 2


def training_images(recipe: Recipe, dataset: Dataset) -> tuple[int, int]:
    """(images left to train on, classes) after val, and test where there is none, are carved out."""
    classes = len(class_list(dataset.name)["train"]) if dataset.fewshot else dataset.classes
    count = dataset.counts.get("train", round(dataset.counts.get("all", 0) * (1 - recipe.data.test_fraction)))
    has_val = "val" in dataset.counts and not dataset.fewshot
    return round(count * (1 if has_val else 1 - recipe.data.val_fraction)), classes


def row(name: str, operations: float) -> tuple[str, np.ndarray]:
    """A line of the table, and the hours of each card."""
    recipe, dataset = build_recipe(read_recipe(find_recipe(name))), DATASETS[name]
    images, classes = training_images(recipe, dataset)
    settings = recipe.train
    sampler = StepSampler(
        np.arange(images) % classes, batch_size=settings.batch_size, epochs=settings.epochs, seed=recipe.seed
    )
    views = sampler.total_steps * settings.batch_size * recipe.augment.views
    hours = operations * views / (SHARE * np.array([*CARDS.values()])) / 3600
    said = PAPER.get(name, "not known here")
    command = f"`schane {'fewshot' if dataset.fewshot else 'finetune'} --recipe {name}`"
    cells = (
        command,
        f"{images:,}",
        f"{sampler.total_steps:,}",
        f"{views / 1e6:,.1f}",
        *(f"{h:.2g}" for h in hours),
        said,
    )
    return f"| {' | '.join(cells)} |", hours


def main() -> None:
    operations = operations_per_view(build_recipe(read_recipe(find_recipe("imagenet1k"))))
    head = (
        f"| command | training images | steps | million views | {' | '.join(f'{card} hours' for card in CARDS)} | "
        "the paper |"
    )
    lines = [head, "| --- |" + " ---: |" * (4 + len(CARDS))]
    rows = [row(name, operations) for name in (*FULL, *FEW)]
    total = " and ".join(
        f"{hours:.0f} {card} hours" for card, hours in zip(CARDS, sum(h for _, h in rows), strict=True)
    )
    text = (Path(__file__).parents[1] / "docs" / "paper.md").read_text()
    before, _, rest = text.partition("<!-- made by benchmarks/paper.py -->\n")
    after = rest.partition("<!-- end -->\n")[2]
    note = (
        f"Counted: {operations / 1e9:.0f} billion operations per view, forward and backward, at 224 px. All twelve "
        f"once: {total}; both losses with three seeds each: six times that."
    )
    made = "\n".join(
        ["<!-- made by benchmarks/paper.py -->", *lines, *(line for line, _ in rows), "", note, "<!-- end -->", ""]
    )
    (Path(__file__).parents[1] / "docs" / "paper.md").write_text(before + made + after)
    print(made)


if __name__ == "__main__":
    main()
