"""`schane doctor`: what this machine has, and whether the parts that results depend on work on it."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session

from schane_cli.commands.doctor_checks import (
    caching_is_exact,
    largest_batch,
    loader_speed,
    losses_agree,
    resume_is_exact,
    step_speed,
)
from schane_cli.models.backbone import backbone_name
from schane_cli.recipe import Recipe
from schane_cli.run import RESULTS, environment, pick_device
from schane_cli.terminal import Terminal

HUB_TIMEOUT_SECONDS = 3
MEASURED_BACKBONE = "mobilenetv2_035"  # small enough for any machine; --backbone names another


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is as it should be (None: a fact, not a test), and the particulars."""

    name: str
    ok: bool | None
    text: str
    seconds: float = 0.0


def doctor(backbone: str | None, *, device_name: str, terminal: Terminal) -> dict[str, Any]:
    """Run all checks, each with a line as it ends; returns them for `--json`.

    Speeds are those of `backbone` (a timm name or a short one). A check that raises counts as failed, with its error as
    the text: the others still run.

    Raises:
        BadRequest: a device that is not on this machine, an unknown backbone.
    """
    device = pick_device(device_name)
    backbone, image_size = backbone_name(backbone) if backbone else MEASURED_BACKBONE, Recipe().data.image_size
    measured = partial(step_speed, device, backbone, image_size)
    checks: dict[str, Callable[[], tuple[bool | None, str]]] = {
        "hub": hub,
        "loss": partial(losses_agree, device),
        "gradient caching": partial(caching_is_exact, device),
        "resume": partial(resume_is_exact, device),
        "loader": loader_speed,
        "step": measured,
        "largest batch": partial(largest_batch, device, backbone, image_size),
    }
    facts = machine(device)
    for name, text in facts.items():
        terminal.say(f"{name:17} {text}")
    findings = [_run(name, check, terminal) for name, check in checks.items()]
    failed = [finding.name for finding in findings if finding.ok is False]
    terminal.say(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}" if failed else "all is well")
    return {"ok": not failed, "machine": facts, "environment": environment(), "checks": [asdict(f) for f in findings]}


def _run(name: str, check: Callable[[], tuple[bool | None, str]], terminal: Terminal) -> Finding:
    started = time.perf_counter()
    try:
        ok, text = check()
    except Exception as error:  # a doctor reports what is broken, whatever it is
        ok, text = False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finding = Finding(name, ok, text, round(time.perf_counter() - started, 2))
    mark = {True: "ok  ", False: "FAIL", None: "    "}[ok]
    terminal.say(f"{name:17} {mark} {text}", style="red" if ok is False else "")
    return finding


def machine(device: torch.device) -> dict[str, str]:
    """Versions, device, precision, threads, memory, disk and caches, each as one line."""
    seen = environment()
    versions = ", ".join(f"{name} {seen[name]}" for name in ("schane", "python", "torch", "timm", "numpy"))
    gibibyte = 2**30
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / gibibyte
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / gibibyte
    shared = Path("/dev/shm")
    return {
        "versions": versions,
        "device": f"{device}" + (f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""),
        "precision": "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores ({seen['cpu']})",
        "memory": f"{available:.1f} of {memory:.1f} GiB free"
        + (f", /dev/shm {shutil.disk_usage(shared).total / gibibyte:.2f} GiB" if shared.is_dir() else ""),
        "disk": f"{shutil.disk_usage(_existing(RESULTS)).free / gibibyte:.1f} GiB free for {RESULTS.absolute()}",
        "data": _cache(Recipe().data.root.expanduser()),
        "weights": _cache(Path(constants.HF_HUB_CACHE)),
    }


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _cache(path: Path) -> str:
    if not path.is_dir():
        return f"{path} (nothing there yet)"
    return f"{path} ({', '.join(sorted(entry.name for entry in path.iterdir())[:6]) or 'empty'})"


def hub() -> tuple[None, str]:
    """Whether pretrained weights can be downloaded; not a failure, since everything else works without."""
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        return None, f"{constants.ENDPOINT} not reachable ({type(error).__name__}); weights must come from files"
    return None, f"{constants.ENDPOINT} reachable"
