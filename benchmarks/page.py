"""How soon can one look inside? The page of `moeut analyse`, from opening it to its first picture, and its answers.

    python benchmarks/page.py [--tokens 2000] [--layers 18] [--experts 155] [--choices 16] [--heads 10]

A page of random choices in two layers that share their weights with half of the depths each: feed-forward experts, and
ten value and ten output experts for each head, of which two are chosen. Results are lines of Markdown, medians of
Chromium's own clock. Ends with code 2 where there is no Chromium.
"""

import argparse
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
from measure.browser import start
from measure.machine import hardware
from selenium.webdriver import Chrome

from moeut.analysis.page import PageModel, RouterProfile, page
from moeut.analysis.reading import Reading, RouterReading

SHOWN = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())))"
FEED_FORWARD = "const choice = arguments[0]; choice.selectedIndex = 2; choice.dispatchEvent(new Event('change'))"
ANSWER = """
const [tokens, chips] = ['#text span', '#choices .chip'].map((kind) => document.querySelectorAll(kind));
const times = Array.from({ length: 20 }, (_, turn) => {
  const token = tokens[Math.floor((turn * tokens.length) / 20)];
  const start = performance.now();
  if (arguments[0] === 'hover') token.dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
  else chips[turn % chips.length].click();
  document.body.getBoundingClientRect();
  return performance.now() - start;
});
return times.sort((one, other) => one - other)[10];
"""
"""The time until everything is laid out again, without that until it is on the screen."""


def random_model(arguments: argparse.Namespace, seed: int) -> PageModel:
    """Every expert is as likely as any other, and has ten top tokens."""
    random = np.random.default_rng(seed)
    routers, profiles = [], []
    heads, experts, choices = arguments.heads, arguments.experts, arguments.choices
    for layer in (0, 1):
        depths = tuple(range(layer, arguments.layers, 2))
        for name, (groups, width, chosen) in {
            "attention_value": (heads, 10, 2),
            "attention_output": (heads, 10, 2),
            "feed_forward": (1, experts, choices),
        }.items():
            scores = random.random((arguments.tokens, len(depths), groups, width), dtype=np.float32)
            routers.append(RouterReading(layer, name, depths, width, scores.argsort(axis=-1)[..., :chosen]))
            usage = random.poisson(10_000, (len(depths), groups, width))
            top = [[[(f" token{place}", 9.5) for place in range(10)]] * width] * groups
            profiles.append(RouterProfile(layer, name, usage, top))
    pieces = tuple(random.choice(["the", " of", " experts", "\n", " choose", "."], arguments.tokens).tolist())
    losses = random.exponential(3, arguments.tokens).astype(np.float32)
    return PageModel(f"model {seed}", Reading(pieces, losses, arguments.layers, None, tuple(routers)), profiles)


def report(chrome: Chrome, arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    yield "| models | MB | loaded, s | first picture, s | a token under the pointer, ms | an expert picked, ms |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for count in (1, 2):
        file = folder / f"{count}.html"
        file.write_text(page([random_model(arguments, seed) for seed in range(count)], "a random corpus"), "utf-8")
        loaded, shown, hovered, picked = [], [], [], []
        for _ in range(arguments.repetitions):
            chrome.get(file.as_uri())
            shown.append(chrome.execute_async_script(SHOWN))
            loaded.append(chrome.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
            chrome.execute_script(FEED_FORWARD, chrome.find_element("id", "router"))
            hovered.append(chrome.execute_script(ANSWER, "hover"))
            picked.append(chrome.execute_script(ANSWER, "pick"))
        yield (
            f"| {count} | {file.stat().st_size / 1e6:.1f} | {median(loaded) / 1e3:.2f} | {median(shown) / 1e3:.2f} "
            f"| {median(hovered):.1f} | {median(picked):.1f} |"
        )


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--experts", type=int, default=155)
    parser.add_argument("--choices", type=int, default=16)
    parser.add_argument("--heads", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        try:
            chrome = start(Path(folder) / "profile")
        except FileNotFoundError as error:
            print(f"skipped: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        try:
            version = chrome.capabilities["browserVersion"]
            print(
                f"{hardware()}, Chromium {version} without a window, Python {platform.python_version()}, "
                f"{datetime.now(UTC):%Y-%m-%d}; medians of {arguments.repetitions}.",
            )
            print(f"Command: `python benchmarks/page.py {shlex.join(words)}`.\n", flush=True)
            for line in report(chrome, arguments, Path(folder)):
                print(line, flush=True)
        finally:
            chrome.quit()


if __name__ == "__main__":
    main(sys.argv[1:])
