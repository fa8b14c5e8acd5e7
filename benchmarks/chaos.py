"""Kill, starve, lock out and crowd every command that writes, and count what survives: results/benchmarks/chaos.md.

    python benchmarks/chaos.py --write [--minutes 30] [--commands finetune eval]

Each case forks a process that runs one command on the embedded digits. An audit hook sees every open for writing,
rename, mkdir, truncate and remove below the working folder. The process is killed at one of these writes, or after a
random time; or from one of them on the disk is full, or read-only; or the run folder is removed just before one; or the
disk is really full (a tmpfs too small for the command) or really read-only, which needs root on Linux. Then the command
that a user would give next is run to its end, with room again, and its figures are compared with those of a run that
nothing happened to. A case is survived when

- the broken command showed no traceback (a full, read-only or removed disk is one sentence),
- what lay beside it, such as the runs that it read, is as it was,
- the next command ended with the same weights and figures, and
- no temporary or lock file is left.

`one of two processes killed` starts two processes as torchrun does, kills one, and after 20 seconds ends the other if
it has not noticed; `two at once` gives the same command to two processes that know nothing of each other: one does the
work, the other is refused or finds it done. Pictures are blank here: drawing them would take most of the time, and they
are written all the same.

With --write each case is a line of chaos.jsonl, with the commit that it was tried on. A later call tries what is
missing and what was not survived, so that the counts may be reached in pieces.
"""

import argparse
import contextlib
import errno
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # processes are forked, which threads do not survive

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

import schane_cli
import schane_cli.commands.average
import schane_cli.commands.compare
import schane_cli.commands.embed
import schane_cli.commands.export
import schane_cli.commands.fewshot
import schane_cli.commands.predict
import schane_cli.commands.review
import schane_cli.commands.study
import schane_cli.commands.study_queue
import schane_cli.reports.report
from schane_cli.cli import main as schane
from schane_cli.models.files import read_tensors
from schane_cli.reports import plots
from schane_cli.run import RunFolder

TINY = ["--device=cpu", "--set=data.train_per_class=5", "--set=data.workers=0", "--set=train.batch_size=25",
        "--set=train.warmup_epochs=0", "--set=data.test_fraction=0.03", "--set=data.val_fraction=0.03"]  # fmt: skip
TRAIN = ["finetune", "--epochs=2", *TINY]
FEWSHOT = ["--set=fewshot.episodes=10", "--ways=3", "--shots=1", "--queries=3", "--classifier=centroid"]
STUDY = """{recipe: digits, heartbeat_seconds: 1, arms: {ce: {loss.name: ce}, schane: {loss.name: schane}}, set: {
device: cpu, data.train_per_class: 5, data.workers: 0, train.batch_size: 25, train.warmup_epochs: 0, train.epochs: 1,
data.test_fraction: 0.03, data.val_fraction: 0.03}}"""
HUNG_SECONDS = 600.0
CHANGES = (
    "second",
    "bytes",
    "percent",
    "joules",
    "extracted_images",
)  # in names of figures that differ from run to run
RESULTS = Path(__file__).parent.parent / "results" / "benchmarks" / "chaos.md"
LINES = RESULTS.with_suffix(".jsonl")
CASES = 5  # of a fault, where nothing else is said
RANDOM_KILLS = {"finetune": 41, "embed": 40, "finetune --seeds": 11, "fewshot (base training)": 9, "study": 8}
ERRORS = {"full": (errno.ENOSPC, "No space left on device"), "read-only": (errno.EROFS, "Read-only file system")}


@dataclass(frozen=True)
class Command:
    """A command to break: what starts it, and what a user gives after it broke (the same again when None)."""

    start: Sequence[str]
    again: Sequence[str] | None = None
    stopped: Sequence[str] | None = None  # where the folder holds a stopped run
    weights: bool = False  # best.pt is compared, too

    def next(self, run: RunFolder) -> Sequence[str]:
        """The command to give after this one broke."""
        if self.stopped is not None and run.state in {"stopped", "finished"}:
            return self.stopped
        return self.again or self.start


def commands(template: Path) -> dict[str, Command]:
    """Every command that writes, on the runs in `template`."""
    base, other = str(template / "base"), str(template / "other")
    return {
        "finetune": Command([*TRAIN, "--out=x"], [*TRAIN, "--resume=auto", "--out=x"], weights=True),
        "finetune --seeds": Command(
            [*TRAIN, "--seeds=0,1", "--out=x"], [*TRAIN, "--seeds=0,1", "--resume=auto", "--out=x"]
        ),
        "fewshot (base training)": Command(
            ["fewshot", "--epochs=1", *TINY, *FEWSHOT, "--out=x"],
            ["fewshot", "--epochs=1", *TINY, *FEWSHOT, "--resume=auto", "--out=x"],
            weights=True,
        ),
        "fewshot CHECKPOINT": Command(["fewshot", base, "--allow-seen-classes", *FEWSHOT, "--device=cpu", "--out=x"]),
        "eval": Command(["eval", base, "--device=cpu", "--out=x"]),
        "predict": Command(
            ["predict", base, str(template / "photos"), "--device=cpu", "--out=x"], stopped=["predict", "--resume=x"]
        ),
        "embed": Command(["embed", base, "--perplexity=10", "--device=cpu", "--out=x"]),
        "review": Command(["review", base, "--split=val", "--device=cpu", "--out=x"]),
        "export": Command(["export", base, "--out=x"]),
        "average": Command(["average", base, other, "--device=cpu", "--out=x"], weights=True),
        "compare": Command(["compare", base, other, "--out=x"]),
        "study": Command(["study", str(template / "study.yaml"), "--out=x"]),
    }


class Fault:
    """An audit hook that counts the writes below a folder, and from the `number`-th on does as `mode` says.

    `kill` ends the process; `full` and `read-only` refuse what needs space, or any write; `removed` takes the run
    folder away, once.
    """

    def __init__(self, mode: str, number: int, below: Path) -> None:
        self.mode, self.number, self.below, self.count = mode, number, str(below), 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in {"os.rename", "os.mkdir", "os.truncate", "os.remove"}
        if not writes or not _is_path(arguments[0]) or self.count < 0:
            return
        path = os.fsdecode(arguments[0])
        if not os.path.abspath(path).startswith(self.below):
            return
        self.count += 1
        if self.mode == "kill" and self.count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "removed" and self.count == self.number:
            count, self.count = self.count, -1  # its own removals are none of the command's
            shutil.rmtree(os.path.join(self.below, "x"), ignore_errors=True)
            self.count = count
        if self.mode in ERRORS and self.count >= self.number and (event != "os.remove" or self.mode == "read-only"):
            raise OSError(*ERRORS[self.mode], path)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


def run(
    arguments: Sequence[str], place: Path, mode: str = "none", number: int = 0, seconds: float = 0.0
) -> tuple[int, str]:
    """Run a command in a forked process: (exit code, or minus the signal that ended it; what it said)."""
    said = place.with_name(f"{place.name}.said")
    return _ended(_forked(arguments, place, said, mode, number), said, seconds)


def _ended(child: int, said: Path, seconds: float = 0.0) -> tuple[int, str]:
    """Wait for a child, which is killed after `seconds` if they are given."""
    deadline = time.monotonic() + (seconds or HUNG_SECONDS)
    code = None
    while code is None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = -9 if seconds else -99
        else:
            time.sleep(0.02)
    return code, said.read_text(errors="replace") if said.exists() else ""


def _forked(
    arguments: Sequence[str], place: Path, said: Path, mode: str = "none", number: int = 0, **environment: object
) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.environ |= {name: str(value) for name, value in environment.items()}
        os.chdir(place)
        sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        torch.set_num_threads(1)
        fault = Fault(mode, number, place)
        sys.addaudithook(fault)
        schane(list(arguments))
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            place.with_name("count").write_text(str(fault.count))
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def outcome(place: Path, command: Command) -> Any:
    """The figures of a finished folder that must not depend on what happened on the way; None where it is not whole."""
    folder = RunFolder(place / "x")
    if not folder.summary_file.exists():
        return sorted(path.name for path in folder.path.iterdir()) if folder.path.is_dir() else None
    figures = {
        key: value for key, value in _flat(folder.read_summary()).items() if not any(word in key for word in CHANGES)
    }
    weights = read_tensors(folder.best)["state_dict"] if command.weights else {}
    return figures | {f"weights {key}": tensor.double().sum().item() for key, tensor in weights.items()}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: item for key in value for name, item in _flat(value[key], f"{prefix}{key}.").items()}
    if isinstance(value, list):
        return {name: item for i, part in enumerate(value) for name, item in _flat(part, f"{prefix}{i}.").items()}
    return {prefix: value}


def emptied(folder: Path) -> Path:
    """The folder that a case runs in."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def recovered(command: Command, place: Path, expected: Any) -> str:
    """What the next command came to: "" where all is as if nothing had happened, else what is wrong."""
    before = RunFolder(place / "x")
    whole = before.page.exists() or (command.start[0] == "export" and before.path.exists())
    if not whole or command.again is not None:
        arguments = command.next(before)
        code, said = run(arguments, place)
        if code != 0:
            return f"{' '.join(arguments[:2])} ended with {code}: {said.strip().splitlines()[-1:]}"
    reached = outcome(place, command)
    if reached != expected:
        return f"other figures: {_differing(reached, expected)}"
    left = [*(place / "x").rglob(".*"), *place.glob(".x*"), *(place / "x").rglob("parts")]
    return f"left {left[0].name}" if left else ""


def _differing(reached: Any, expected: Any) -> str:
    if not isinstance(reached, dict) or not isinstance(expected, dict):
        return str(reached)[:200]
    keys = [key for key in {**reached, **expected} if reached.get(key) != expected.get(key)]
    return f"{len(keys)}, such as {keys[0]} {reached.get(keys[0])} for {expected.get(keys[0])}"


def case(command: Command, place: Path, expected: Any, mode: str, number: int, seconds: float) -> str:
    """One case: "" where it is survived, else what went wrong."""
    emptied(place)
    code, said = run(command.start, place, mode, number, seconds)
    problem = _broken_badly(code, said, {0, -9} if mode == "kill" else {0, 1, 2})
    problem = problem or recovered(command, place, expected)
    return f"{mode} at {number or round(seconds, 2)}: {problem}" if problem else ""


def _broken_badly(code: int, said: str, allowed: set[int]) -> str:
    if "Traceback" in said:
        return f"traceback: {said.strip().splitlines()[-1]}"
    if code == -99:
        return "hung"
    return "" if code in allowed else f"exit code {code}: {said.strip().splitlines()[-1:]}"


def full_disk(command: Command, place: Path, expected: Any, share: float, needed: int) -> str:
    """The command on a file system with room for a `share` of the bytes that it needs, then again with more."""
    emptied(place)
    size = max(int(share * needed) // 1024, 8)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place], check=False).returncode:
        raise SystemExit("a real full disk needs root and tmpfs")
    try:
        code, said = run(command.start, place)
        problem = _broken_badly(code, said, {0, 1, 2})
        subprocess.run(["mount", "-o", f"remount,size={needed // 256 + 65536}k", place], check=True)
        problem = problem or recovered(command, place, expected)
    finally:
        subprocess.run(["umount", place], check=True)
    return f"{size} KiB of {needed // 1024}: {problem}" if problem else ""


def read_only_disk(command: Command, place: Path, expected: Any, seconds: float) -> str:
    """The command on a file system that becomes read-only after `seconds`, then again on one that can be written."""
    emptied(place)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=False).returncode:
        raise SystemExit("a real read-only disk needs root and tmpfs")
    try:
        said = place.with_name(f"{place.name}.said")
        child, began = _forked(command.start, place, said), time.monotonic()
        locked = 1
        while locked and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.01)
            if time.monotonic() - began > seconds:  # refused as long as a file is open for writing
                locked = subprocess.run(
                    ["mount", "-o", "remount,ro", place], check=False, stderr=subprocess.DEVNULL
                ).returncode
        code, text = _ended(child, said)
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        problem = _broken_badly(code, text, {0, 1, 2}) or recovered(command, place, expected)
    finally:
        subprocess.run(["umount", place], check=True)
    return f"read-only after {seconds:.2f} s: {problem}" if problem else ""


def unbroken(command: Command, place: Path) -> tuple[int, float, int, Any]:
    """(number of writes, seconds, bytes, figures) of a command that nothing happens to."""
    emptied(place)
    began = time.monotonic()
    code, said = run(command.start, place)
    if code != 0:
        raise SystemExit(f"{command.start} failed unbroken ({code}):\n{said}")
    seconds = time.monotonic() - began
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return int(place.with_name("count").read_text()), seconds, size, outcome(place, command)


def two_at_once(command: Command, place: Path, expected: Any) -> str:
    """Two processes given the same command for the same folder: one does it, the other is refused or finds it done."""
    emptied(place)
    said = [place.with_name(f"{name}.said") for name in ("first", "second")]
    children = [_forked(command.start, place, file) for file in said]
    ended = [_ended(child, file) for child, file in zip(children, said, strict=True)]
    codes, text = sorted(code for code, _ in ended), "".join(text for _, text in ended)
    if "Traceback" in text or codes not in ([0, 2], [0, 0]):
        return f"exit codes {codes}: {text.strip().splitlines()[-1]}"
    reached = outcome(place, command)
    return "" if reached == expected else f"other figures: {_differing(reached, expected)}"


def pair(arguments: Sequence[str], place: Path, kill_after: float | None = None) -> list[tuple[int, str]]:
    """Two processes of one launch, the second of which may be killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": 2}
    said = [place.with_name(f"rank{rank}.said") for rank in range(2)]
    children = [_forked(arguments, place, file, RANK=rank, LOCAL_RANK=rank, **shared) for rank, file in enumerate(said)]
    killed = _ended(children[1], said[1], kill_after or 0.0)
    if kill_after is not None and not _ends_within(children[0], 20.0):
        os.kill(children[0], signal.SIGTERM)  # as torchrun ends the others
    return [_ended(children[0], said[0]), killed]


def _ends_within(child: int, seconds: float) -> bool:
    """Whether a child has ended by then; it is still to be waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.02)
    return False


def one_of_two(command: Command, place: Path, unbroken_pair: Callable[[], Any], seconds: float) -> str:
    """One of two processes is killed; the other must end, and both resumed reach what two unbroken ones reach."""
    expected = unbroken_pair()
    emptied(place)
    (code, said), _ = pair(command.start, place, seconds)
    problem = _broken_badly(code, said, {0, 1, -signal.SIGTERM, 128 + signal.SIGTERM})
    if not problem:
        again = pair(command.next(RunFolder(place / "x")), place)
        problem = next((_broken_badly(code, said, {0}) for code, said in again if code != 0), "")
    reached = outcome(place, command)
    if not problem and reached != expected:
        problem = f"other figures: {_differing(reached, expected)}"
    return f"killed after {seconds:.2f} s: {problem}" if problem else ""


def draw_nothing() -> None:
    """Put a blank picture in the place of every figure."""
    plots.Figure.savefig = lambda figure, path, **_: Image.new("RGB", (8, 8)).save(path)


def prepare(folder: Path) -> Path:
    """The folder that every case starts from: two finished runs, a study file, photos."""
    folder.mkdir(parents=True)
    for name, loss in (("base", "schane"), ("other", "ce")):
        code, said = run([*TRAIN, f"--loss={loss}", f"--out={name}"], folder)
        if code != 0:
            raise SystemExit(said)
    (folder / "study.yaml").write_text(STUDY)
    (folder / "photos").mkdir()
    for number, pixels in enumerate(load_digits().images[:20]):
        image = Image.fromarray((pixels * 15.9375).astype(np.uint8)).convert("RGB")
        image.save(folder / "photos" / f"{number}.png")
    return folder


def kept(template: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file that the cases read; none may change them, but for the links in a run's page."""
    files = [path for path in template.rglob("*") if path.is_file() and path.name != "report.html"]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@dataclass(frozen=True)
class Case:
    """What was tried: a command, a fault, the case's number, and, once tried, its problem ("" where it survived)."""

    command: str
    fault: str
    number: int
    commit: str
    problem: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What a later try of the same case has, too."""
        return self.command, self.fault, self.number


def read_cases() -> list[Case]:
    """The cases tried so far, in the order of their tries; half a line is left out."""
    cases = []
    for line in LINES.read_text().splitlines() if LINES.is_file() else []:
        with contextlib.suppress(ValueError):
            cases.append(Case(**json.loads(line)))
    return cases


GONE = "the command makes no such write any more"  # as the problem of a case that was not survived before
Plans = dict[str, dict[int, Callable[[], str]]]


def bench(
    names: Sequence[str],
    wanted: Sequence[str],
    most: int | None,
    minutes: float,
    tmpfs: bool,
    done: Sequence[Case],
    tried: Callable[[Case], None],
) -> None:
    """Try the cases of the `wanted` faults (none: all) that are not `done` or not survived, within `minutes`.

    Each is given to `tried`.
    """
    deadline = time.monotonic() + 60 * minutes
    survived = {one.key for one in done if not one.problem}
    with tempfile.TemporaryDirectory() as temporary:
        template, place = prepare(Path(temporary) / "template"), Path(temporary) / "case"
        known, before = commands(template), kept(template)
        for left, name in zip(range(len(names), 0, -1), names, strict=True):
            until = time.monotonic() + (deadline - time.monotonic()) / left
            begun: set[str] = set()  # of each fault one case is tried, however little time there is
            plans = faults(name, known[name], place, most, tmpfs)
            for one in {one.key: one for one in done if one.command == name}.values():
                if one.problem not in ("", GONE) and one.number not in plans.get(one.fault, {one.number: None}):
                    tried(Case(name, one.fault, one.number, commit(), GONE))
            for fault, number, attempt in in_turns(plans):
                if wanted and fault not in wanted:
                    continue
                if (name, fault, number) in survived or (time.monotonic() > until and fault in begun):
                    continue
                begun.add(fault)
                problem = attempt()
                if not before.items() <= kept(template).items():
                    problem = problem or "it changed what it read"
                tried(Case(name, fault, number, commit(), problem))


def commit() -> str:
    """The commit that the code is of."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()


def in_turns(plans: Plans) -> Iterator[tuple[str, int, Callable[[], str]]]:
    """A case of each fault, then another of each: should the time not suffice, no fault is left out."""
    for turn in zip_longest(*([(fault, *item) for item in cases.items()] for fault, cases in plans.items())):
        yield from filter(None, turn)


def faults(name: str, command: Command, place: Path, most: int | None, tmpfs: bool) -> Plans:
    """The cases of one command by fault; at most `most` of each, spread over the command's writes."""
    writes, seconds, size, expected = unbroken(command, place)
    chance = random.Random(name)

    def at(mode: str, count: int) -> dict[int, Callable[[], str]]:
        numbers = [int(number) for number in np.unique(np.linspace(1, writes, min(count, writes)).round())]
        chance.shuffle(numbers)
        return {number: partial(case, command, place, expected, mode, number, 0.0) for number in numbers}

    def moments(count: int) -> dict[int, float]:
        return {number: chance.uniform(0.02, seconds) for number in range(count)}

    plans: Plans = {
        "killed at each write": at("kill", most or writes),
        "killed at a random time": {
            number: partial(case, command, place, expected, "kill", 0, moment)
            for number, moment in moments(most or RANDOM_KILLS.get(name, CASES)).items()
        },
        "no space from a write on": at("full", most or CASES),
        "read-only from a write on": at("read-only", most or CASES),
        "run folder removed at a write": at("removed", most or CASES),
    }
    if name != "study":  # whose workers share their folder
        plans["two at once"] = {
            number: partial(two_at_once, command, place, expected) for number in range(min(most or 3, 3))
        }
    if tmpfs:
        plans["a real full disk"] = {
            number: partial(full_disk, command, place, expected, chance.random(), size)
            for number in range(most or CASES)
        }
        plans["a real read-only disk"] = {
            number: partial(read_only_disk, command, place, expected, moment)
            for number, moment in moments(most or CASES).items()
        }
    if name == "finetune":

        @cache
        def together() -> Any:
            emptied(place)
            pair(command.start, place)
            return outcome(place, command)

        plans["one of two processes killed"] = {
            number: partial(one_of_two, command, place, together, moment)
            for number, moment in moments(most or CASES).items()
        }
    return plans


def table(tried: Sequence[Case]) -> str:
    """The counts in Markdown, then what did not survive, or did so only after something was mended."""
    whole = {one.key: one for one in tried}
    last = {key: one for key, one in whole.items() if one.problem != GONE}
    rows: dict[tuple[str, str], list[Case]] = {}
    for one in last.values():
        rows.setdefault((one.command, one.fault), []).append(one)
    lines = ["| command | fault | tried | survived |", "| --- | --- | ---: | ---: |"]
    for (name, fault), cases in rows.items():
        lines.append(f"| {name} | {fault} | {len(cases)} | {sum(not one.problem for one in cases)} |")
    lines.append(f"| all | | {len(last)} | {sum(not one.problem for one in last.values())} |")
    bad = [one for one in last.values() if one.problem]
    failed = [one for one in tried if one.problem not in ("", GONE)]
    mended = [one for one in failed if not whole[one.key].problem]
    gone = [one for one in failed if whole[one.key].problem == GONE]
    for title, cases in (
        ("Not survived:", bad),
        ("Survived at a later commit, not at the one named:", mended),
        ("Not survived at the commit named; the command has fewer writes since it was mended:", gone),
    ):
        if cases:
            lines += ["", title, "", *(f"- {one.command}, {one.fault}, {one.commit}: {one.problem}" for one in cases)]
    return "\n".join(lines)


def write_page(text: str) -> None:
    """The counts into results/benchmarks/chaos.md."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, schane {schane_cli.__version__}"
    RESULTS.write_text(f"# Chaos\n\n{__doc__}\n{platform.system()}, {versions}.\n\n{text}\n")


def main() -> None:
    """Run the cases and print the table; --write keeps them, and puts it into results/benchmarks/chaos.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(commands(Path()))
    parser.add_argument("--cases", type=int, help="cases per command and fault; by default as many as chaos.md says")
    parser.add_argument("--commands", nargs="*", default=names, choices=names)
    parser.add_argument("--faults", nargs="*", default=[], help="only these, by their names in chaos.md")
    parser.add_argument("--minutes", type=float, default=60.0, help="shared by the commands; what fits is tried")
    parser.add_argument("--no-tmpfs", action="store_true", help="leave out the full disk that needs root")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    draw_nothing()
    before = read_cases() if given.write else []
    tried: list[Case] = []

    def keep(one: Case) -> None:
        tried.append(one)
        print(f"{one.command:<24} {one.fault:<30} {one.number:3} {one.problem or 'survived'}", flush=True)
        if given.write:
            with LINES.open("a") as file:
                file.write(json.dumps(vars(one)) + "\n")

    bench(given.commands, given.faults, given.cases, given.minutes, not given.no_tmpfs, before, keep)
    text = table([*before, *tried])
    print(text)
    if given.write:
        write_page(text)
    if any(one.problem not in ("", GONE) for one in tried):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
