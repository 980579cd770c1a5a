"""How does a test look at a page? In a browser, as benchmarks/page.py does."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.remote.webelement import WebElement

from moeut.analysis.page import PageModel, page

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def start(profile: Path) -> Chrome:
    """The browser of the benchmarks; skips the test where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        try:
            return import_module("measure.browser").start(profile)
        except FileNotFoundError as error:
            pytest.skip(str(error))


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
