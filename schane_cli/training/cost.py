"""What a piece of work costs: peak memory of the device that does it, and energy where the machine measures it."""

import ctypes
import os
import sys
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class CostMeter:
    """Counts from the moment it is made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            _forget_peak()
        self._joules = _joules(device)

    def peak_memory_bytes(self) -> int | None:
        """Highest memory since the start: allocated on a GPU, resident in this process on a CPU; None if unknown."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _resident_peak()

    def energy_joules(self) -> float | None:
        """Joules since the start of the GPU, or of all CPU packages (RAPL); None where nothing measures them."""
        now = _joules(self._device)
        return None if now is None or self._joules is None or now < self._joules else now - self._joules


def _forget_peak() -> None:
    """Linux restarts a process's peak when 5 is written here; elsewhere the peak is the process's whole life's.

    Memory that earlier work has freed, and cli.keep_freed_memory has kept, is returned to the system first.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident_peak() -> int | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024 if "VmHWM" in lines else None


def _joules(device: torch.device) -> float | None:
    if device.type == "cuda":
        return _gpu_joules(device)
    counters = [zone / "energy_uj" for zone in POWERCAP.glob("intel-rapl:?")]
    readable = [counter for counter in counters if os.access(counter, os.R_OK)]
    return sum(int(counter.read_text()) for counter in readable) / 1e6 if readable else None


def _gpu_joules(device: torch.device) -> float | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except Exception:  # no NVML, or a card that does not measure energy
        return None
