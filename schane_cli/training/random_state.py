"""The state of the random numbers that a training step draws (dropout, drop path, mixup): taken and put back."""

import torch

RandomState = dict[str, torch.Tensor]


def random_state(device: torch.device) -> RandomState:
    """The CPU's state, and on CUDA that of `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: RandomState, device: torch.device) -> None:
    """Continue with the numbers that were drawn after `states` were taken."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
