"""The public face: what `import schane_cli` offers, and how little it costs."""

import inspect

import pytest
import torch

import schane_cli
from schane_cli import plugins, recipe
from tests.conftest import installed_packages_of


def test_every_public_name_is_there_and_is_described() -> None:
    assert set(schane_cli.__all__) == {*schane_cli._HOMES, "__version__"}
    for name in schane_cli._HOMES:
        assert inspect.getdoc(getattr(schane_cli, name)), name
    assert dir(schane_cli) == sorted(schane_cli.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        schane_cli.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_that_is_installed() -> None:
    """What it costs in seconds stands in benchmarks/startup.py."""
    assert installed_packages_of("import schane_cli") <= {"schane_cli"}


def test_a_loss_without_arguments_has_the_recipes_values() -> None:
    torch.manual_seed(0)
    projection, labels = torch.randn(12, 4), torch.arange(12) % 3
    defaults = recipe.LossRecipe()
    ours = schane_cli.SchaneLoss(
        temperature=defaults.temperature,
        hardness=defaults.hardness,
        positives=defaults.positives,
        stop_gradient=defaults.stop_gradient,
        pool=defaults.contrastive_pool,
    )
    assert torch.equal(schane_cli.SchaneLoss()(projection, labels), ours(projection, labels))
    supcon = schane_cli.SupConLoss(temperature=defaults.temperature)
    assert torch.equal(schane_cli.SupConLoss()(projection, labels), supcon(projection, labels))


def test_the_groups_of_entry_points_are_those_that_the_documents_name() -> None:
    groups = [plugins.DATASETS, plugins.LOSSES, plugins.CLASSIFIERS]
    assert groups == ["schane.datasets", "schane.losses", "schane.classifiers"]
