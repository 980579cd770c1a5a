"""How does a test look at a page? In Chromium without a window, where it is installed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement

from moeut.analysis.page import PageModel, page

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--window-size=1300,900",
)  # fmt: skip


def start(profile: Path) -> Chrome:
    """A browser that writes its own files into `profile`; skips the test where there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = browser
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options, Service(driver))


class View:
    """A page in a browser."""

    def __init__(self, driver: Chrome, file: Path) -> None:
        self.driver, self.file = driver, file

    def open(self, *models: PageModel, corpus: str = "12 tokens of nothing") -> None:
        """Write a page and open it."""
        self.file.write_text(page(models, corpus), "utf-8")
        self.driver.get(self.file.as_uri())

    def all(self, selector: str) -> list[WebElement]:
        """The elements that match, whether shown or not."""
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> WebElement:
        """The only element that matches."""
        [element] = self.all(selector)
        return element

    def text(self, selector: str) -> str:
        """What an element says, as it is shown: nothing where it is hidden."""
        return self.one(selector).text

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)
