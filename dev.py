#!/usr/bin/env python3
"""Set up and go, on a fresh machine with Python >= 3.11 and nothing else.

    python3 dev.py demo     set up, fine-tune on the embedded digits, draw the embedding report
    python3 dev.py test     set up, then lint, types and all tests (arguments after `test` go to pytest)
    python3 dev.py setup    only set up; afterwards .venv/bin/schane is ready
    python3 dev.py docs     set up, then build the documentation into site/ (--serve shows it while you write)
    python3 dev.py plotly   take the plotly.js of the page of `schane embed` again, from the newest plotly on PyPI

The environment is .venv beside this file, with the versions of constraints.txt; it is made once and kept until
pyproject.toml or constraints.txt change.
"""

import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "schane-installed"


def say(text: str) -> None:
    print(f"[dev] {text}", flush=True)


def call(*command: object) -> None:
    """Run a command from the project's folder; its failure ends this script with the same code.

    Compiled Python is kept whatever the shell says: without it every process compiles torch again, for ten seconds.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([str(part) for part in command], cwd=HERE, env=environment, check=False)
    if done.returncode:
        say(f"failed ({done.returncode}): {' '.join(str(part) for part in command)}")
        sys.exit(done.returncode)


def setup() -> None:
    """Make .venv with the pinned versions and the package in editable form, unless it is there already."""
    wanted = hashlib.sha256(
        b"".join((HERE / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    ).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    started = time.monotonic()
    say(f"making {VENV} with {sys.version.split()[0]}, versions from constraints.txt")
    if not PYTHON.exists():
        call(sys.executable, "-m", "venv", VENV)
    call(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt", "uv")
    call(
        PYTHON, "-m", "uv", "pip", "install", "--quiet", "--python", PYTHON,
        "-c", "constraints.txt", "-e", ".[dev]",
    )  # fmt: skip
    STAMP.write_text(wanted)
    say(f"set up in {time.monotonic() - started:.0f} s")


def demo() -> None:
    """The main job: fine-tune on digits, then the embedding report of that run."""
    run = HERE / "results" / "demo" / time.strftime("%Y%m%d-%H%M%S")
    call(BIN / "schane", "finetune", "--out", run)
    call(BIN / "schane", "embed", run, "--out", run / "embed")


def test(arguments: list[str]) -> None:
    """What CI runs."""
    call(PYTHON, "-m", "ruff", "check", ".")
    call(PYTHON, "-m", "ruff", "format", "--check", ".")
    in_our_order = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")  # tests/conftest.py: long files first
    tests = ("-m", "pytest", *in_our_order, *arguments)
    with ThreadPoolExecutor() as pool:  # mypy keeps one core for a minute, and pytest sets itself up on another
        for done in [pool.submit(call, PYTHON, "-m", "mypy"), pool.submit(call, PYTHON, *tests)]:
            done.result()


def docs(arguments: list[str]) -> None:
    """The site in site/; any dead link or page outside the navigation fails it."""
    serve = "--serve" in arguments
    call(PYTHON, "-m", "mkdocs", *(["serve"] if serve else ["build", "--strict", "--quiet"]))


def plotly() -> None:
    """The one JavaScript file of the package plotly (62 MB), compressed, with its licence and version."""
    target = HERE / "schane_cli" / "reports" / "plotly"
    with tempfile.TemporaryDirectory() as place:
        call(PYTHON, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", place, "plotly")
        code = (Path(place) / "plotly" / "package_data" / "plotly.min.js").read_bytes()
        (info,) = Path(place).glob("plotly-*.dist-info")
        (target / "LICENSE.txt").write_bytes((info / "licenses" / "LICENSE.txt").read_bytes())
    (target / "plotly.min.js.gz").write_bytes(gzip.compress(code, 9, mtime=0))
    version = code[:200].decode().split("plotly.js v")[1].split()[0]
    package = info.name.removesuffix(".dist-info").replace("-", " ")
    (target / "VERSION.txt").write_text(
        f"plotly.js {version}, from the package {package} of PyPI (MIT, see LICENSE.txt). "
        "`python3 dev.py plotly` takes the newest.\n"
    )
    say((target / "VERSION.txt").read_text().strip())


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs on whatever python3 is)
        sys.exit(f"schane needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: python3.12 dev.py ...")
    command, *arguments = sys.argv[1:] or ["help"]
    if command not in {"demo", "test", "setup", "docs", "plotly"} or (arguments and command not in {"test", "docs"}):
        sys.exit(__doc__)
    setup()
    if command == "demo":
        demo()
    elif command == "plotly":
        plotly()
    elif command == "test":
        test(arguments)
    elif command == "docs":
        docs(arguments)


if __name__ == "__main__":
    main()
