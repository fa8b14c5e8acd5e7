"""Two processes fill one store: every block once, equal to what one process makes."""

import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from schane_cli.datasets.load import load_splits
from schane_cli.distributed import process_group
from schane_cli.features import store as stores
from schane_cli.features.store import feature_store, fill
from schane_cli.models.checkpoint import load_checkpoint
from tests.jobs import run_tiny

CPU = torch.device("cpu")


def _fill(process: int, world: int, run: Path, port: int, place: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(zip(names, (str(process), str(process), str(world), "127.0.0.1", str(port)), strict=True))
    torch.set_num_threads(1)
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
    run_tiny(tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["tests.jobs"])
    arguments = (2, tmp_path / "run", port, tmp_path)
    torch.multiprocessing.start_processes(_fill, arguments, nprocs=2, start_method="forkserver")
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
