"""Two processes fill one store: every block once, equal to what one process makes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from schane_cli.datasets.load import load_splits
from schane_cli.distributed import process_group
from schane_cli.features import store as stores
from schane_cli.features.store import feature_store, fill
from schane_cli.models.checkpoint import load_checkpoint
from tests.jobs import run_tiny
from tests.processes import start_ranks

CPU = torch.device("cpu")


def _fill(process: int, run: Path, place: Path) -> None:
    stores.BLOCK = 50
    os.chdir(place)
    loaded = load_checkpoint(run)
    images = load_splits(loaded.recipe.data).test
    made = []
    write = stores._write
    stores._write = lambda path, *rest: (made.append(path.stem), write(path, *rest))[1]
    with process_group("cpu"):
        store = feature_store(loaded, images, device=CPU, amp="off")
        fill(store, loaded, images, device=CPU, batch_size=16, workers=0, amp="off")
        if store.missing():
            raise RuntimeError(f"blocks {store.missing()} are missing after the barrier")
    (place / f"made{process}").write_text(" ".join(made))


@pytest.mark.slow
def test_two_processes_share_the_blocks_and_agree_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_tiny(tmp_path / "run", data__test_fraction=0.2)  # 359 images
    start_ranks(_fill, 2, tmp_path / "run", tmp_path)
    shares = [(tmp_path / f"made{process}").read_text().split() for process in range(2)]
    assert [len(share) for share in shares] == [4, 4]
    assert sorted(shares[0] + shares[1]) == [f"{number:06d}" for number in range(8)]

    monkeypatch.setattr(stores, "BLOCK", 50)
    monkeypatch.chdir(tmp_path)
    loaded = load_checkpoint(tmp_path / "run")
    images = load_splits(loaded.recipe.data).test
    together = feature_store(loaded, images, device=CPU, amp="off").rows("logits", np.arange(359))
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    alone = feature_store(loaded, images, device=CPU, amp="off")
    fill(alone, loaded, images, device=CPU, batch_size=16, workers=0, amp="off")
    np.testing.assert_allclose(together, alone.rows("logits", np.arange(359)), rtol=1e-4, atol=1e-5)
