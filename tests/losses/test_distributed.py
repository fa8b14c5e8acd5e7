"""One process with the whole batch equals 2 and 4 processes with parts of it, uneven parts included (gloo)."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from schane_cli.losses.contrastive import CrossBatchMemory, SchaneLoss, SupConLoss
from tests.processes import start_ranks

FEATURES, PROJECTED, ROWS = 6, 5, 22
PARTS = {2: [(11, 11), (5, 17)], 4: [(1, 9, 3, 9), (8, 0, 8, 6)]}  # by number of processes; one may be empty
BACKENDS = ("dense", "tiled")
OBJECTIVES = {
    "schane": lambda **shared: SchaneLoss(temperature=0.2, hardness=1.5, **shared),
    "schane, low temperature": lambda **shared: SchaneLoss(temperature=0.01, positives="sum", **shared),
    "supcon": lambda **shared: SupConLoss(temperature=0.2, **shared),
}


def data(seed: int) -> tuple[Tensor, Tensor]:
    """A batch in which the last anchor has no positive."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (ROWS,), generator=generator)
    labels[-1] = 77
    return torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64), labels


def head() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, PROJECTED)).double()


def step(criterion: nn.Module, features: Tensor, labels: Tensor, world: int) -> dict[str, Tensor]:
    """Loss, parameter gradients averaged over ranks as DDP does, the input's gradient, and the statistics."""
    model = head()
    features = features.clone().requires_grad_()
    loss = criterion(model(features), labels)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    if world > 1:
        dist.all_reduce(gradient)
    return {"loss": loss.detach(), "gradient": gradient / world, "input": features.grad / world, **criterion.stats}


def shares(parts: tuple[int, ...], rank: int, backend: str) -> dict[str, dict[str, Tensor]]:
    """What `rank` finds with its share of each batch, for each objective without and with a memory."""
    own = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
    outcomes = {}
    for name, build in OBJECTIVES.items():
        features, labels = data(1)
        outcomes[name] = step(build(backend=backend), features[own], labels[own], len(parts))
        memory = CrossBatchMemory(size=30, dim=PROJECTED)
        criterion = build(backend=backend, memory=memory)
        for seed in (1, 2, 3):
            features, labels = data(seed)
            result = step(criterion, features[own], labels[own], len(parts))
        outcomes[f"{name}, memory"] = result | {"rows": memory.rows()[0], "labels": memory.rows()[1]}
    return outcomes


def local_pool(rank: int) -> dict[str, Tensor]:
    features, labels = data(1)
    own = slice(11 * rank, 11 * rank + 11)
    memory = CrossBatchMemory(size=4, dim=FEATURES)
    with pytest.raises(ValueError, match="pool is 'local' with a memory"):
        SchaneLoss(temperature=0.2, pool="local", memory=memory)(features[own], labels[own])
    return {"loss": SchaneLoss(temperature=0.2, pool="local")(features[own], labels[own])}


def worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    outcomes = {(*parts, backend): shares(parts, rank, backend) for parts in PARTS[world] for backend in BACKENDS}
    if world == 2:
        outcomes["local"] = local_pool(rank)
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """Findings of every rank, by number of processes: processes start once for all tests."""
    outcomes = {}
    for world in PARTS:
        folder = tmp_path_factory.mktemp(f"world{world}")
        start_ranks(worker, world, world, str(folder))
        outcomes[world] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
    return outcomes


def alone(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What one process finds: without memory, and at the third step with one."""
    memory = CrossBatchMemory(size=30, dim=PROJECTED)
    criterion = OBJECTIVES[name](backend="dense", memory=memory)
    for seed in (1, 2, 3):
        result = step(criterion, *data(seed), world=1)
    without = step(OBJECTIVES[name](backend="dense"), *data(1), world=1)
    return without, result | {"rows": memory.rows()[0], "labels": memory.rows()[1]}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parts", [parts for world in PARTS.values() for parts in world])
def test_many_processes_with_parts_equal_one_with_the_whole_batch(ranks, parts, backend):
    outcomes = [rank[(*parts, backend)] for rank in ranks[len(parts)]]
    for name in OBJECTIVES:
        for key, expected in zip((name, f"{name}, memory"), alone(name), strict=True):
            inputs = torch.cat([one[key]["input"] for one in outcomes])
            torch.testing.assert_close(inputs, expected.pop("input"), rtol=1e-6, atol=1e-9)
            for one in outcomes:
                for what, value in expected.items():
                    torch.testing.assert_close(one[key][what], value, rtol=1e-6, atol=1e-9, msg=f"{key}: {what}")


def test_the_local_pool_is_each_rank_alone(ranks):
    features, labels = data(1)
    for rank, own in enumerate((slice(0, 11), slice(11, 22))):
        expected = SchaneLoss(temperature=0.2)(features[own], labels[own])
        torch.testing.assert_close(ranks[2][rank]["local"]["loss"], expected)
