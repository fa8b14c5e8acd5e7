"""The page of `schane embed` in headless Chromium: quiet, alone, and alive."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schane_cli.reports.pages import data_url
from schane_cli.reports.thumbnails import SHEET_BYTES
from tests.browser import is_quiet_and_alone, needs_browser, open_browser, open_page
from tests.cli.test_embed import DIGITS
from tests.cli.test_finetune import run_cli
from tests.jobs import blank_pictures

By = pytest.importorskip("selenium.webdriver.common.by").By

pytestmark = needs_browser
# Where a point of a scatter is on the screen, as [x, y].
PLACE = """
const plot = document.getElementById('scatter-' + arguments[0])
plot.scrollIntoView({block: 'center'})
const {xaxis, yaxis} = plot._fullLayout, {x, y} = plot._fullData[0], box = plot.getBoundingClientRect()
const i = arguments[1]
return [box.left + xaxis._offset + xaxis.l2p(x[i]), box.top + yaxis._offset + yaxis.l2p(y[i])]
"""
SHOWN = "return document.getElementById('scatter-' + arguments[0])._fullData[0].x.length"
COUNT = "return document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two checkpoints side by side."""
    place = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        with blank_pictures():
            assert run_cli("finetune", *DIGITS, "--out", "schane") == 0
            assert run_cli("finetune", *DIGITS, "--loss", "ce", "--out", "ce") == 0
        assert run_cli("embed", "ce", "schane", "--out", "page") == 0
    return place / "page" / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from open_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def browser(chromium: Any, page: Path) -> Any:
    """The page, freshly loaded and drawn; what was logged before it is gone."""
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    open_page(chromium, page)
    until(chromium, "return document.documentElement.dataset.ready")
    return chromium


def until(browser: Any, script: str, *arguments: Any) -> Any:
    """The first truthy answer of `script` within ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if answer := browser.execute_script(script, *arguments):
            return answer
        time.sleep(0.05)
    raise TimeoutError(script)


def hover(browser: Any, view: int, point: int) -> None:
    """Move the pointer onto a point; plotly wants a second move to see a first."""
    browser.execute_script(PLACE, view, point)
    time.sleep(0.2)
    x, y = browser.execute_script(PLACE, view, point)
    for shift in (2, 0):
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + shift, "y": y})
        time.sleep(0.2)
    until(browser, "return document.getElementById('card').classList.contains('open')")


def background(browser: Any, selector: str) -> str:
    return str(browser.execute_script(f"return getComputedStyle(document.querySelector('{selector}')).backgroundColor"))


def test_it_loads_without_an_error_and_without_asking_any_network(browser: Any) -> None:
    hover(browser, 0, 3)
    is_quiet_and_alone(browser)


def test_nothing_on_the_page_sends_the_data_away(browser: Any) -> None:
    buttons = browser.execute_script("return [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert len(buttons) > 0
    assert not [title for title in buttons if any(word in title.lower() for word in ("cloud", "share", "edit", "link"))]


def test_hover_shows_thumbnail_label_predictions_and_neighbours(browser: Any) -> None:
    hover(browser, 0, 7)
    card = browser.find_element(By.ID, "card")
    assert "label: " in card.text
    assert "ce: " in card.text
    assert "schane: " in card.text
    large = card.find_element(By.CSS_SELECTOR, "header .thumb")
    assert large.size == {"width": 96, "height": 96}
    assert large.value_of_css_property("background-image").startswith('url("data:image/webp;base64,')
    assert len(card.find_elements(By.CSS_SELECTOR, ".row .thumb")) == 16
    assert large.screenshot_as_png != card.find_element(By.CSS_SELECTOR, ".row .thumb").screenshot_as_png


def test_the_thumbnail_is_the_image_that_is_named(browser: Any) -> None:
    hover(browser, 0, 7)
    index = browser.execute_script("return document.getElementById('scatter-0')._fullData[0].customdata[7]")
    data = json.loads(browser.execute_script("return document.getElementById('data').textContent"))
    style = browser.find_element(By.CSS_SELECTOR, "#card header .thumb").get_attribute("style")
    assert data["ids"][index] in browser.find_element(By.ID, "card").text
    assert f"--x: {index % data['columns']}" in style.replace("--x:", "--x: ").replace("  ", " ")
    assert f"--y: {index // data['columns']}" in style.replace("--y:", "--y: ").replace("  ", " ")


def test_the_same_sample_is_ringed_in_both_scatters(browser: Any) -> None:
    hover(browser, 1, 11)
    rings = "return document.getElementById('scatter-' + arguments[0]).layout.shapes"
    for view in (0, 1):
        held, *neighbours = until(browser, f"{rings}", view)
        assert held["line"]["width"] > neighbours[0]["line"]["width"]
        assert len(neighbours) == 8
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 2, "y": 2})
    until(browser, "return !document.getElementById('card').classList.contains('open')")


def test_a_class_filter_hides_its_points_in_both_scatters(browser: Any) -> None:
    assert browser.execute_script(SHOWN, 0) == 359
    browser.find_element(By.CSS_SELECTOR, "#chips button[data-label='3']").click()
    left = until(browser, "return document.getElementById('scatter-0')._fullData[0].x.length < 359 && " + SHOWN[7:], 0)
    assert left == browser.execute_script(SHOWN, 1)
    assert browser.execute_script(COUNT) == f"{left} of 359 shown"
    browser.find_element(By.ID, "none").click()
    assert browser.execute_script(COUNT) == "0 of 359 shown"
    browser.find_element(By.ID, "all").click()
    assert browser.execute_script(SHOWN, 0) == 359


def test_only_mistakes_leaves_those_that_a_checkpoint_gets_wrong(browser: Any) -> None:
    browser.find_element(By.ID, "mistakes").click()
    symbols = [
        browser.execute_script(f"return document.getElementById('scatter-{v}').data[0].marker.symbol") for v in (0, 1)
    ]
    assert 0 < len(symbols[0]) < 359
    assert all("x" in pair for pair in zip(*symbols, strict=True))


def test_search_counts_and_fades_what_does_not_match(browser: Any) -> None:
    browser.find_element(By.ID, "search").send_keys("digits/0031")
    assert until(browser, COUNT + ".includes('1 match') ? 'yes' : ''") == "yes"
    colours = browser.execute_script("return document.getElementById('scatter-0').data[0].marker.color")
    assert sorted({colour[7:] for colour in colours}) == ["14", "d9"]
    assert sum(colour.endswith("d9") for colour in colours) == 1


def test_a_search_for_a_class_marks_its_images_and_what_is_taken_for_it(browser: Any) -> None:
    browser.execute_script("document.querySelector('#search').value = '7'")
    script = """
    const data = JSON.parse(document.getElementById('data').textContent)
    const words = text => new Uint16Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer)
    const sides = [words(data.labels), ...data.views.map(view => words(view.prediction))]
    const named = index => data.classes[index].name.includes('7')
    return data.ids.filter((id, i) => id.includes('7') || sides.some(side => named(side[i]))).length
    """
    matches = browser.execute_script(script)
    browser.execute_script("document.querySelector('#search').dispatchEvent(new Event('input'))")
    assert 0 < matches < 359
    assert until(browser, COUNT + f".endsWith(', {matches} match') ? 'yes' : ''") == "yes"


def test_a_point_takes_few_enough_bytes_for_10_000_of_them_in_6_mb(page: Path) -> None:
    data = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])
    view = data["views"][0]
    packed = ("prediction", "confidence", "tsne", "pca", "neighbours", "cosines")
    per_point = (len(json.dumps(data["ids"])) + len(data["labels"]) + sum(len(view[key]) for key in packed)) / 359
    pictures = len(data_url((page.parent / "thumbnails.webp").read_bytes(), "webp"))
    fixed = len(page.read_bytes()) - len(json.dumps(data)) - pictures
    assert fixed + 10_000 * per_point + 4 / 3 * SHEET_BYTES < 6_000_000


def test_the_scatters_draw_one_pixel_for_one_on_the_screen(browser: Any) -> None:
    canvas = "const canvas = document.querySelector('#scatter-0 canvas'); return [canvas.width, canvas.offsetWidth]"
    drawn, shown = until(browser, canvas)
    assert abs(drawn - shown) <= 1


def test_the_switch_goes_to_pca_and_back(browser: Any) -> None:
    axis = "return document.getElementById('scatter-0').layout.xaxis.title.text"
    assert browser.execute_script(axis) == "t-SNE 1"
    browser.find_element(By.CSS_SELECTOR, "button[value=pca]").click()
    assert "PCA 1 (" in browser.execute_script(axis)
    browser.find_element(By.CSS_SELECTOR, "button[value=tsne]").click()
    assert browser.execute_script(axis) == "t-SNE 1"


def test_zoom_narrows_the_range(browser: Any) -> None:
    width = "const [a, b] = document.getElementById('scatter-0')._fullLayout.xaxis.range; return b - a"
    before = browser.execute_script(width)
    browser.execute_script(PLACE, 0, 0)
    browser.find_element(By.CSS_SELECTOR, "#scatter-0 .modebar-btn[data-val=in]").click()
    until(browser, width.replace("return b - a", "return b - a < arguments[0] * 0.9"), before)


def test_a_click_on_a_head_sorts_the_table(browser: Any) -> None:
    browser.execute_script(
        "[...document.querySelectorAll('.changes th')].find(th => th.textContent === 'difference').click()"
    )
    cells = browser.execute_script(
        "return [...document.querySelectorAll('.changes tr td:nth-child(4)')].map(td => td.textContent)"
    )
    numbers = [float(cell.split()[0].replace("%", "")) for cell in cells]
    assert len(numbers) == 28
    assert numbers == sorted(numbers, reverse=True)


def test_dark_restyles_page_and_plots(browser: Any) -> None:
    ink = "return document.getElementById('scatter-0').layout.font.color"
    light = browser.execute_script(ink), background(browser, "body")
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    until(browser, f"return ({ink.removeprefix('return ')}) !== arguments[0]", light[0])
    assert background(browser, "body") != light[1]


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    until(browser, "return innerWidth === 390 && document.getElementById('scatter-0').offsetWidth < 390")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    hover(browser, 0, 3)
    card = browser.find_element(By.ID, "card").rect
    assert card["x"] >= 0
    assert card["x"] + card["width"] <= 390


def test_print_leaves_the_controls_out_and_a_still_picture_in(browser: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert browser.execute_script(shown, ".bar") == "none"
    assert browser.execute_script(shown, ".explorer") == "none"
    assert browser.execute_script(shown, ".print") == "block"
    assert len(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]) > 50_000
