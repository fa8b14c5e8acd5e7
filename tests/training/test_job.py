"""A run is refused before its folder is made where the backbone cannot train as asked."""

from pathlib import Path
from typing import Any

import pytest

from schane_cli.errors import BadRequest
from tests.jobs import run_tiny

ONE_ROW = {"train__batch_size": 1, "augment__views": 1, "loss__name": "ce", "train__batchnorm": "running"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model__backbone": "vgg11", "data__image_size": 16}, "'vgg11' cannot take images of 16 px"),
        ({"model__backbone": "resnet10t", **ONE_ROW}, "BatchNorm cannot be trained on a pass of one row"),
        ({"model__args": {"checkpoint_path": "weights.pt"}}, "model.args cannot hold 'checkpoint_path'"),
    ],
)
def test_what_a_backbone_cannot_take_is_said_before_the_run_folder_is_made(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        run_tiny(tmp_path / "run", **{"data__image_size": 32, **settings})
    assert not (tmp_path / "run").exists()
