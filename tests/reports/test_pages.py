"""Pages from templates: text from outside stays text, tables sort by keyboard, pages link one another."""

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from schane_cli.commands.compare import compare
from schane_cli.errors import BadRequest
from schane_cli.reports import plots
from schane_cli.reports.compare import write_comparison
from schane_cli.reports.pages import TEMPLATES, environment, render
from schane_cli.reports.predictions import pair_rows
from schane_cli.reports.report import report
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal
from tests.browser import is_quiet_and_alone, needs_browser, open_browser, open_page, phone, set_media
from tests.reports.folders import HOSTILE, eval_run, finetune_run, seeds_run

WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait
QUIET = Terminal(quiet=True)


class _Text(HTMLParser):
    """The text and the tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))


def links(page: Path) -> dict[str, str]:
    """Text of each link in the navigation and in tables -> the file it leads to, which must be there."""
    anchors = re.findall(r'<a href="([^"]+)">([^<]+)</a>', page.read_text())
    assert all((page.parent / href).is_file() for href, _ in anchors), anchors
    return {name: str((page.parent / href).resolve()) for href, name in anchors}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/finetune/one, results/eval/two (of one), results/finetune/several/s0..s2, each with its page."""
    place = tmp_path_factory.mktemp("results")
    run = finetune_run(place / "finetune" / "one")
    report(run, QUIET)
    report(eval_run(place / "eval" / "two", run), QUIET)
    report(seeds_run(place / "finetune" / "several"), QUIET)
    return place


@pytest.mark.parametrize("name", ["finetune/one", "eval/two"])
def test_names_from_outside_are_text_on_every_page(results: Path, name: str) -> None:
    html = (results / name / "report.html").read_text()
    page = _Text(html)
    assert "alert(1)</script>" not in html
    assert "<script>alert(1)</script>" in page.text
    assert "[/red]" in page.text
    assert "\x1b" not in html
    assert "␛[31mred␛[0m" in page.text
    assert not [tag for tag, _ in page.tags if tag in {"i", "b"}]


def test_a_template_that_is_not_given_a_value_fails() -> None:
    with pytest.raises(UndefinedError, match="'note' is undefined"):
        render("study", title="t", columns=[], rows=[])


def test_every_template_is_one_that_jinja_reads() -> None:
    for path in TEMPLATES.glob("*.html.j2"):
        environment().get_template(path.name)


def test_a_run_and_its_evaluation_link_each_other(results: Path) -> None:
    one, two = (results / name / "report.html" for name in ("finetune/one", "eval/two"))
    assert str(two.resolve()) in links(one).values()
    assert str(one.resolve()) in links(two).values()


def test_a_seeds_page_links_its_runs_and_they_it_and_one_another(results: Path) -> None:
    above = results / "finetune" / "several" / "report.html"
    pages = {str((above.parent / f"s{seed}" / "report.html").resolve()) for seed in (0, 1, 2)}
    assert pages <= set(links(above).values())
    beside = set(links(above.parent / "s1" / "report.html").values())
    assert beside >= pages - {str((above.parent / "s1" / "report.html").resolve())} | {str(above.resolve())}


def test_a_moved_run_makes_its_page_again_from_its_folder(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "before")
    report(run, QUIET)
    shutil.move(run, tmp_path / "after")
    before = (tmp_path / "after" / "report.html").read_text()
    (tmp_path / "after" / "report.html").unlink()
    shutil.rmtree(tmp_path / "after" / "figures")
    page = report(tmp_path / "after", QUIET)
    assert page.read_text().replace("after", "before") == before.replace("after", "before")
    assert (tmp_path / "after" / "figures" / "confusion.png").is_file()


def test_a_run_of_the_first_version_has_a_page_without_its_predictions(tmp_path: Path) -> None:
    html = report(finetune_run(tmp_path / "old", tables=False), QUIET).read_text()
    assert "Training" in html
    assert "Confusion" not in html


def test_a_comparison_makes_its_page_again_without_its_runs(tmp_path: Path) -> None:
    for name, base in (("ce", 0.70), ("schane", 0.74)):
        for seed in (0, 1, 2):
            accuracy = base + (0.001 if name == "ce" else 0.0015) * seed
            place = tmp_path / "runs" / f"{name}{seed}"
            finetune_run(place, seed=seed, recipe={"loss.name": name}, accuracy=accuracy, tables=False)
    blocks, notes = compare([str(tmp_path / "runs")], metric=None, baseline=None, common_seeds=False)
    (tmp_path / "compare").mkdir()
    write_comparison(blocks, notes, RunFolder(tmp_path / "compare"), QUIET)
    before = (tmp_path / "compare" / "report.html").read_text()
    shutil.rmtree(tmp_path / "runs")
    assert report(tmp_path / "compare", QUIET).read_text() == before
    assert "points of test top-1 accuracy" in before


def test_what_has_no_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no finished run at"):
        report(tmp_path, QUIET)
    RunFolder(tmp_path).finish({"command": "bake"})
    with pytest.raises(BadRequest, match="kind 'bake', which has no page"):
        report(tmp_path, QUIET)


def test_a_page_names_the_next_commands_with_its_own_folder(results: Path) -> None:
    text = _Text((results / "finetune" / "one" / "report.html").read_text()).text
    for command in ("predict", "eval", "embed", "review", "export"):
        assert re.search(rf"schane {command} .*one", text)


def test_pictures_have_a_dark_twin(results: Path) -> None:
    tags = _Text((results / "finetune" / "one" / "report.html").read_text()).tags
    dark = [attributes["srcset"] for tag, attributes in tags if tag == "source"]
    assert len(dark) == 2
    assert not set(dark) & {attributes["src"] for tag, attributes in tags if tag == "img"}


def test_the_last_row_of_a_forest_plot_is_inside_the_axes() -> None:
    points = [(f"group {i}", 0.5, (0.4, 0.6), [0.4, 0.6]) for i in range(7)]
    axes = plots.group_intervals([{"title": "t", "label": "%", "points": points}]).axes[0]
    bottom, top = axes.get_ylim()
    assert bottom >= 6.5
    assert top <= -0.5


def test_a_rank_deficient_spectrum_keeps_its_axis() -> None:
    import numpy as np

    values = np.concatenate([np.geomspace(1, 0.01, 10), np.full(6, 1e-15)])
    axes = plots.spectrum([("run", values)]).axes[0]
    assert axes.get_ylim()[0] > 1e-6
    assert "10 of 16" in axes.get_legend().get_texts()[0].get_text()


def test_the_most_frequent_mistakes_come_first() -> None:
    import numpy as np

    counts = np.array([[5, 4, 1], [0, 9, 1], [0, 0, 10]])
    assert pair_rows(counts, ["a", "b", "c"]) == [
        ("a", "b", "4", "40.00"),
        ("a", "c", "1", "10.00"),
        ("b", "c", "1", "10.00"),
    ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from open_browser(tmp_path_factory.mktemp("profile"))


@needs_browser
def test_a_table_sorts_by_keyboard_and_says_so(results: Path, browser: Any) -> None:
    open_page(browser, results / "finetune" / "several" / "report.html")
    button = browser.find_element("css selector", "th:nth-child(2) button")
    cells = (
        "return [...document.querySelector('table').tBodies[0].rows].map(row => parseFloat(row.cells[1].textContent))"
    )
    orders = []
    for order in ("descending", "ascending"):
        button.send_keys("\n")
        orders.append(browser.execute_script(cells))
        assert button.find_element("xpath", "..").get_attribute("aria-sort") == order
    assert orders[0] == sorted(orders[0], reverse=True)
    assert orders[1] == sorted(orders[1])
    is_quiet_and_alone(browser)


@needs_browser
@pytest.mark.parametrize("name", ["finetune/one", "eval/two", "finetune/several"])
def test_on_a_phone_long_names_wrap(results: Path, browser: Any, name: str) -> None:
    open_page(browser, results / name / "report.html")
    phone(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    wide = "return [...document.querySelectorAll('td:first-child')].map(cell => cell.offsetWidth)"
    assert max(browser.execute_script(wide)) <= 200


@needs_browser
def test_the_dark_picture_is_shown_on_a_dark_screen_and_the_light_one_in_print(results: Path, browser: Any) -> None:
    open_page(browser, results / "finetune" / "one" / "report.html")
    tags = _Text((results / "finetune" / "one" / "report.html").read_text()).tags
    light = next(attributes["src"] for tag, attributes in tags if tag == "img")
    dark = next(attributes["srcset"] for tag, attributes in tags if tag == "source")
    shown = "return document.querySelector('picture img').currentSrc === arguments[0]"
    for media, is_dark, expected in (("screen", False, light), ("screen", True, dark), ("print", True, light)):
        set_media(browser, media, dark=is_dark)
        WebDriverWait(browser, 20).until(lambda driver, address=expected: driver.execute_script(shown, address))


def test_long_names_are_shortened_in_pictures() -> None:
    assert plots.short(HOSTILE[-1]) == "a" * 12 + "…" + "a" * 11
    assert plots.short("two\nlines") == "two lines"
