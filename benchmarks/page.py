"""The page of `schane embed` at 10,000 points: its size, and how soon it answers a hover and a filter, in Chromium.

    python -m benchmarks.page [--data-root DIR] [--points 10000] [--checkpoints 1] [--times 20] [--page report.html]

Makes the page by the command, from a table of made-up 96-d embeddings of CIFAR-100's test images below --data-root
(without it: of noise, which compresses worse than any photograph), and opens it from its file. What is measured runs
from the event (the pointer's move, the click, the last letter) to the frame that shows the answer; the processor
seconds of all of Chromium's processes stand beside it, as other work on the machine stretches the wall. WebGL is
SwiftShader's, on the processor. --page measures a page that is there.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from schane_cli.datasets.load import source_parts
from schane_cli.recipe import build_recipe
from tests.browser import CHROMIUM, open_browser, open_page

GOALS = {"hover": 50, "filter": 200}  # milliseconds
SIZE_GOAL = 6_000_000  # bytes, of one checkpoint
CLASSES, DIMENSIONS = 100, 96

# `painted` resolves once the frame that shows what has just been done is there.
PROBE = """
window.painted = () => new Promise(resolve => requestAnimationFrame(() => {
  const {port1, port2} = new MessageChannel()
  port1.onmessage = () => resolve(performance.now())
  port2.postMessage(0)
}))
window.moved = 0
addEventListener('mousemove', event => { window.moved = event.timeStamp }, true)
window.answered = []
new MutationObserver(async () => {
  if (!document.getElementById('card').classList.contains('open')) return
  const from = window.moved
  window.answered.push(await window.painted() - from)
}).observe(document.getElementById('card'), {childList: true})
"""
PLACE = """
const plot = document.getElementById('scatter-0')
const {xaxis, yaxis} = plot._fullLayout, {x, y} = plot._fullData[0], box = plot.getBoundingClientRect()
const i = arguments[0]
return [box.left + xaxis._offset + xaxis.l2p(x[i]), box.top + yaxis._offset + yaxis.l2p(y[i])]
"""
CLICK = """
const done = arguments[1], button = document.querySelector(arguments[0]), from = performance.now()
button.click()
window.painted().then(to => done(to - from))
"""
SEARCH = """
const done = arguments[1], box = document.getElementById('search'), from = performance.now()
new MutationObserver((_, one) => { one.disconnect(); window.painted().then(to => done(to - from)) })
  .observe(document.getElementById('count'), {childList: true, characterData: true, subtree: true})
box.value = arguments[0]
box.dispatchEvent(new Event('input'))
"""


def made_table(folder: Path, points: int, data_root: str | None, seed: int) -> Path:
    """A table of embeddings: pictures, their labels, predictions of which one in five is wrong."""
    rng = np.random.default_rng(seed)
    if data_root is not None:
        images = source_parts(build_recipe({"data": {"dataset": "cifar100", "root": data_root}}).data)["test"]
        rows = np.random.default_rng(0).permutation(len(images))[:points]
        labels, names = np.asarray(images.labels)[rows], list(images.class_names)
        pictures: Iterator[np.ndarray] = (images.read(int(row)).permute(1, 2, 0).numpy() for row in rows)
    else:
        labels, names = np.random.default_rng(0).integers(0, CLASSES, points), [f"class {i}" for i in range(CLASSES)]
        pictures = (np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(points))
    files = [folder / "pictures" / f"{i:05d}.png" for i in range(len(labels))]
    files[0].parent.mkdir(exist_ok=True)
    for file, picture in zip(files, pictures, strict=False):
        if not file.is_file():
            Image.fromarray(picture).save(file, compress_level=1)
    means = np.random.default_rng(1).normal(size=(len(names), DIMENSIONS))
    vectors = (means[labels] + 1.4 * rng.normal(size=(len(labels), DIMENSIONS))).astype(np.float32)
    predicted = np.where(rng.random(len(labels)) < 0.2, rng.integers(0, len(names), len(labels)), labels)
    table = pd.DataFrame(
        {
            "id": [f"test/{names[label]}/{i:05d}.png" for i, label in enumerate(labels)],
            "path": [str(file) for file in files],
            "class_name": [names[label] for label in labels],
            "prediction": [names[label] for label in predicted],
            "confidence": rng.uniform(0.3, 1.0, len(labels)).astype(np.float32),
            "vector": list(vectors),
        }
    )
    table.to_parquet(folder / f"table{seed}.parquet")
    return folder / f"table{seed}.parquet"


def made_page(folder: Path, points: int, checkpoints: int, data_root: str | None) -> Path:
    """The page that `schane embed` writes of as many tables."""
    tables = [str(made_table(folder, points, data_root, seed)) for seed in range(checkpoints)]
    command = [sys.executable, "-m", "schane_cli", "embed", *tables, "--points", str(points)]
    subprocess.run([*command, "--out", str(folder / "run")], check=True)
    return folder / "run" / "report.html"


def processor_seconds() -> float:
    """What Chromium's processes have taken so far, all threads."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().startswith("chrom"):
                total += sum(float(task.read_text().split()[0]) for task in folder.glob("task/*/schedstat")) / 1e9
        except OSError:
            continue  # it ended meanwhile
    return total


def hovers(browser: Any, rows: list[int]) -> Iterator[float]:
    """Milliseconds from the pointer's move onto each point until its card is painted."""
    browser.execute_script("document.getElementById('scatter-0').scrollIntoView({block: 'center'})")
    time.sleep(0.5)
    for row in rows:
        x, y = browser.execute_script(PLACE, row)
        browser.execute_script("window.answered = []")
        for shift in (3, 0):  # plotly wants a second move to see a first
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + shift, "y": y})
            time.sleep(0.3)
        yield from browser.execute_script("return window.answered")[-1:]


def clicks(browser: Any, selectors: list[str]) -> Iterator[float]:
    for selector in selectors:
        yield browser.execute_async_script(CLICK, selector)
        time.sleep(0.2)


def searches(browser: Any, words: list[str]) -> Iterator[float]:
    for word in words:
        yield browser.execute_async_script(SEARCH, word)
        time.sleep(0.2)


def measure(page: Path, times: int, folder: Path) -> None:
    print(f"page {page.stat().st_size / 1e6:.2f} MB (goal {SIZE_GOAL / 1e6:g})", flush=True)
    with browser_of(folder) as browser:
        started = time.perf_counter()
        open_page(browser, page)
        while not browser.execute_script("return document.documentElement.dataset.ready"):
            time.sleep(0.05)
        print(f"open {time.perf_counter() - started:.1f} s, Chromium {browser.capabilities['browserVersion']}")
        browser.execute_script(PROBE)
        n = int(browser.execute_script("return document.getElementById('scatter-0')._fullData[0].x.length"))
        classes = np.random.default_rng(0).permutation(CLASSES)[: times // 2]
        chips = [f"#chips button[data-label='{label}']" for label in classes for _ in range(2)]  # off and on again
        runs: dict[str, Callable[[], Iterator[float]]] = {
            "hover": lambda: hovers(browser, np.random.default_rng(0).integers(0, n, times).tolist()),
            "filter, a class": lambda: clicks(browser, chips),
            "filter, only mistakes": lambda: clicks(browser, ["#mistakes"] * times),
            "filter, none and all": lambda: clicks(browser, ["#none", "#all"] * (times // 2)),
            "filter, search": lambda: searches(browser, [f"/{i:05d}" for i in range(times)]),
        }
        for name, run in runs.items():
            before = processor_seconds()
            taken = list(run())
            processor = 1000 * (processor_seconds() - before) / len(taken)
            goal = GOALS[name.split(",")[0]]
            print(
                f"{name:22s} n = {len(taken):2d}: median {statistics.median(taken):4.0f} ms, worst {max(taken):4.0f} "
                f"(goal {goal}); {processor:4.0f} ms of the processor",
                flush=True,
            )


@contextmanager
def browser_of(folder: Path) -> Iterator[Any]:
    opened = open_browser(folder / "profile")
    yield next(opened)
    next(opened, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=1)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    if CHROMIUM is None:
        parser.error("no chromium on this machine")
    with tempfile.TemporaryDirectory() as made:
        page = asked.page or made_page(Path(made), asked.points, asked.checkpoints, asked.data_root)
        measure(page.resolve(), asked.times, Path(made))


if __name__ == "__main__":
    main()
