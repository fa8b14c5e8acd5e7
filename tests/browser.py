"""A headless Chromium for the tests of pages, or the reason why there is none."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed (pip install 'schane[dev]')")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="chromium and chromedriver are not on this machine (apt-get install chromium-driver)",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",  # WebGL on the CPU
)


def open_browser(profile: Path) -> Iterator[Any]:
    """A browser that logs its console and every request; closed at the end."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def open_page(browser: Any, page: Path) -> None:
    """Open a page as on a fresh light screen; what the logs held before it is dropped."""
    set_media(browser, "")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())


def requested(browser: Any) -> list[str]:
    """The addresses that the page has asked for since the logs were last read."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def is_quiet_and_alone(browser: Any) -> None:
    """Fail where the page put an error on the console, or asked for anything but its own file and what it carries."""
    assert [entry for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "ERROR"}] == []
    asked = requested(browser)
    assert [url for url in asked if not url.startswith(("data:", "blob:", "file:", "chrome:"))] == []
    assert sum(url.startswith("file:") for url in asked) == 1


def set_media(browser: Any, media: str, *, dark: bool = False) -> None:
    """Show the page as on a screen or in print, light or dark."""
    features = [{"name": "prefers-color-scheme", "value": "dark"}] if dark else []
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def phone(browser: Any) -> None:
    """A screen of 390 by 844 CSS pixels."""
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
