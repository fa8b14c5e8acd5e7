"""The names that schane reads out of timm's files are the ones that this timm has, whichever of the range it is."""

import pytest
import timm
from timm.optim import list_optimizers

from schane_cli import timm_names
from schane_cli.errors import BadRequest


def test_the_names_that_are_known_without_timm_are_those_of_timm() -> None:
    assert set(timm_names.optimizer_names()) == set(list_optimizers())
    own = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")}
    assert set(timm_names.backbone_names()) >= own
    former = timm.models._registry._model_entrypoints  # which timm still takes
    for name in [*former, *timm_names.SHORT_NAMES, "resnet50.a1_in1k"]:
        timm_names.require_backbone(name)


@pytest.mark.parametrize("name", ["resnet5o", "", "resnet50_", ".", "'", "resnet50|x"])
def test_a_name_that_timm_does_not_have_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(BadRequest, match="unknown backbone"):
        timm_names.require_backbone(name)
    with pytest.raises(BadRequest, match="unknown train.optimizer"):
        timm_names.require_optimizer(name)


def test_where_timm_is_no_folder_of_files_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_names, "_sources", lambda pattern: "")
    timm_names.optimizer_names.cache_clear()
    timm_names.backbone_names.cache_clear()
    timm_names.require_backbone("resnet5o")
    timm_names.require_optimizer("adamw")  # timm itself is asked
    timm_names.optimizer_names.cache_clear()
    timm_names.backbone_names.cache_clear()


def test_a_backbone_that_the_users_own_code_registered_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequest, match="unknown backbone"):
        timm_names.require_backbone("my_own_net")
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "my_own_net", timm.models.resnet18)
    timm_names.require_backbone("my_own_net")
