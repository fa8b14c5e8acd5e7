"""The loss under DistributedDataParallel: every process contrasts its images with those of all processes.

    torchrun --nproc-per-node 2 examples/ddp.py

`SchaneLoss` gathers the projections with their gradient and scales its value so that averaging over processes, as DDP
does, gives the gradient of the loss of the whole batch. This script prints how close the two are.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from schane_cli import SchaneLoss


def main() -> float:
    """Print the largest difference between the gradient of all processes and that of the whole batch on one."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same weights and the same whole batch on every process
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).double()
    images, labels = torch.randn(64, 16, dtype=torch.float64), torch.arange(64) % 4

    alone = SchaneLoss(pool="local")(network(images), labels)
    whole = torch.autograd.grad(alone, list(network.parameters()))

    parallel = DistributedDataParallel(network)
    own = slice(rank * 64 // world, (rank + 1) * 64 // world)
    SchaneLoss()(parallel(images[own]), labels[own]).backward()
    pairs = zip(network.parameters(), whole, strict=True)
    difference = max((parameter.grad - expected).abs().max().item() for parameter, expected in pairs)
    if rank == 0:
        print(f"{world} processes, largest difference of the gradient: {difference:.1e}")
    dist.destroy_process_group()
    return difference


if __name__ == "__main__":
    main()
