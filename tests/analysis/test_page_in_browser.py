"""Does the page do what it says, by mouse and by keyboard? In a real browser, whose console stays empty."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from browser import View, start
from pages import HOSTILE, NAMES, SENTENCE, model, reading
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

FEED_FORWARD = 1
"""The place of the feed-forward router of layer 0 in the readings of these tests."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    chrome = start(tmp_path_factory.mktemp("profile"))
    yield chrome
    chrome.quit()


@pytest.fixture
def view(driver: Chrome, tmp_path: Path) -> Iterator[View]:
    width(driver, 1300)
    prefer(driver, "light")
    yield View(driver, tmp_path / "page.html")
    assert driver.get_log("browser") == []


def width(driver: Chrome, pixels: int) -> None:
    metrics = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(driver: Chrome, theme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": theme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def hover(view: View, element: WebElement) -> None:
    ActionChains(view.driver).move_to_element(element).perform()


def press(view: View, *keys: str) -> WebElement:
    """The element that has the focus after some keys."""
    for key in keys:
        view.driver.switch_to.active_element.send_keys(key)
    return view.driver.switch_to.active_element


def token(view: View, place: int) -> WebElement:
    return view.all("#text span")[place]


def chips(view: View) -> list[list[str]]:
    """What the table of choices says at each depth."""
    return view.run(
        "return [...document.querySelectorAll('#choices tbody tr')].map("
        "row => [...row.querySelectorAll('.chip')].map(chip => chip.textContent))"
    )


def labels(view: View, fieldset: str) -> list[str]:
    """The choices that are offered."""
    return [label.text for label in view.all(f"#{fieldset} label")] if view.one(f"#{fieldset}").is_displayed() else []


def choose(view: View, fieldset: str, label: str) -> None:
    [found] = [one for one in view.all(f"#{fieldset} label") if one.text == label]
    found.click()


def colours(view: View, selector: str, what: str) -> list[list[float]]:
    """Red, green and blue of all elements that match."""
    found = view.run(
        "return [...document.querySelectorAll(arguments[0])].map(node => getComputedStyle(node)[arguments[1]])",
        selector, what,
    )  # fmt: skip
    return [[float(part) for part in re.findall(r"[\d.]+", colour)[:3]] for colour in found]


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance, by the definition of WCAG 2."""
    share = np.array(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_text_is_all_there(view: View):
    view.open(model(reading()))
    shown = view.run("return document.getElementById('text').textContent")
    assert shown == "".join(SENTENCE * 5).replace("\n", "↵\n")
    assert view.text("#summary") == "Tokens: 60. Executed layers: 6."
    assert view.run("return performance.getEntriesByType('resource').length") == 0


def test_hovering_shows_the_experts_at_each_depth(view: View):
    read = reading()
    view.open(model(read))
    Select(view.one("#router")).select_by_visible_text("layer 0 · feed forward")
    for place in (17, 3):
        hover(view, token(view, place))
        assert chips(view) == [[str(expert) for expert in row[0]] for row in read.routers[FEED_FORWARD].experts[place]]
        assert f"token {place + 1} of 60" in view.text("#facts")
        assert f"{read.losses[place]:.3g} nats" in view.text("#facts")
    hover(view, view.one("h1"))
    assert "token 1 of 60" in view.text("#facts")


def test_heads_stand_beside_each_other(view: View):
    read = reading()
    view.open(model(read))
    assert [cell.text for cell in view.all("#choices thead th")] == ["depth, head", "0", "1"]
    assert [cell.text for cell in view.all("#choices tbody th")] == ["0", "2", "4"]
    assert chips(view) == [[str(expert) for expert in row.flat] for row in read.routers[0].experts[0]]


def test_clicking_an_expert_shows_its_tokens_its_depths_and_its_top_tokens(view: View):
    read = reading()
    shown = model(read)
    view.open(shown)
    Select(view.one("#router")).select_by_visible_text("layer 0 · feed forward")
    assert not view.one("#profile").is_displayed()
    token(view, int((read.routers[FEED_FORWARD].experts == 0).any((1, 2, 3)).argmax())).click()
    chip = view.all("#choices .chip[value='0']")[0]
    chip.click()
    assert "depths that choose expert 0 0" in " ".join(view.text("#legend").split())
    choose(view, "colours", "Loss")
    uses = (read.routers[FEED_FORWARD].experts == 0).sum((1, 2, 3))
    marked = [span.get_attribute("class") == "uses" for span in view.all("#text span")]
    assert marked == (uses > 0).tolist()
    assert view.text("#name") == f"expert 0: {(uses > 0).sum()} of this text’s tokens choose it"
    usage = shown.profiles[FEED_FORWARD].usage[:, 0]
    shares = usage[:, 0] / usage.sum(1)
    assert [row.text.split()[0] for row in view.all("#bars tr")] == ["0", "2", "4"]
    assert [float(row.text.split()[1].rstrip("%")) for row in view.all("#bars tr")] == pytest.approx(
        100 * shares, rel=0.01
    )
    assert [item.text for item in view.all("#top li")] == ["␣fox ×23.5", "↵ ×2"]
    view.all("#choices .chip:not([value='0'])")[0].click()
    assert view.all("#top li") == []
    view.all("#choices .chip[value='0']")[0].click()
    assert {chip.get_attribute("value") for chip in view.all("#choices .chip[aria-pressed='true']")} == {"0"}
    assert labels(view, "colours") == ["Loss", "Distinct experts", "expert 0"]
    view.one("#clear").click()
    assert not view.one("#profile").is_displayed()
    assert not view.all("#text .uses")
    assert labels(view, "colours") == ["Loss", "Distinct experts"]


def test_the_picked_colour_comes_back(view: View):
    view.open(model(reading()))
    choose(view, "colours", "Distinct experts")
    view.all("#choices .chip")[0].click()
    assert "depths that choose head 0, expert" in view.text("#legend")
    press(view, Keys.ESCAPE)
    assert "distinct experts" in view.text("#legend")
    view.all("#choices .chip")[0].click()
    view.all("#choices .chip[aria-pressed='true']")[0].click()
    assert "distinct experts" in view.text("#legend")


def test_colours_follow_the_numbers_and_can_be_read(view: View):
    read = reading(halting=True)
    distinct = [
        sum(len(np.unique(chosen[chosen < 3])) for chosen in by_head.swapaxes(0, 1))
        for by_head in read.routers[0].experts
    ]
    highest = np.sort(read.losses)[57]  # 98 in 100 of 60
    measures = {
        "Loss": read.losses.clip(max=highest),
        "Halting depth": read.expected_layers,
        "Distinct experts": distinct,
    }
    for theme, sign in (("light", -1), ("dark", 1)):
        prefer(view.driver, theme)
        view.open(model(read))
        for label, values in measures.items():
            choose(view, "colours", label)
            order = np.argsort(values, kind="stable")
            fills, inks = (np.array(colours(view, "#text span", what))[order] for what in ("backgroundColor", "color"))
            brighter = sign * np.diff([luminance(fill) for fill in fills])
            assert (brighter > -0.003).all()  # a browser rounds red, green and blue
            assert (brighter[np.diff(np.sort(values)) > 0.02 * np.ptp(values)] > 0).all()
            assert min(map(contrast, fills, inks)) > 4.5


def test_arrow_keys_go_through_the_text(view: View):
    view.open(model(reading()))
    assert len(view.all("#text [tabindex='0']")) == 1
    view.run("document.getElementById('router').focus()")
    assert press(view, Keys.TAB) == token(view, 0)
    assert press(view, Keys.RIGHT, Keys.RIGHT) == token(view, 2)
    assert "token 3 of 60" in view.text("#facts")
    assert press(view, Keys.DOWN) == token(view, 6)  # the text has four tokens and a line's end in its first line
    assert press(view, Keys.UP) == token(view, 2)
    assert press(view, Keys.LEFT, Keys.HOME) == token(view, 0)
    assert press(view, Keys.LEFT, Keys.UP) == token(view, 0)
    assert press(view, Keys.END, Keys.RIGHT, Keys.DOWN) == token(view, 59)
    assert [span.get_attribute("aria-selected") for span in view.all("#text span")] == [None] * 59 + ["true"]
    assert len(view.all("#text [tabindex='0']")) == 1


def test_experts_are_within_reach_of_the_keyboard(view: View):
    view.open(model(reading()))
    token(view, 5).click()
    rows = chips(view)
    assert press(view, Keys.TAB).text == rows[0][0]
    chip = press(view, Keys.DOWN, Keys.RIGHT)
    assert chip.text == rows[1][1]
    press(view, Keys.ENTER)
    assert view.text("#name").startswith(f"head 1, expert {rows[1][1]}: ")
    assert view.driver.switch_to.active_element == chip
    assert "token 6 of 60" in view.text("#facts")
    press(view, Keys.ESCAPE)
    assert not view.one("#profile").is_displayed()


def test_the_map_says_what_is_under_the_pointer_and_the_cursor(view: View):
    shown = model(reading())
    view.open(shown)
    Select(view.one("#router")).select_by_visible_text("layer 0 · feed forward")
    usage = shown.profiles[FEED_FORWARD].usage[:, 0]
    canvas = view.one("#map")
    view.run("document.getElementById('map').focus()")
    press(view, Keys.DOWN, Keys.RIGHT, Keys.RIGHT)
    assert view.text("#cell").startswith("Depth 2, expert 2: ")
    assert view.text("#cell").endswith(f", {usage[1, 2]} times")
    press(view, Keys.ENTER)
    assert view.text("#name").startswith("expert 2: ")
    press(view, *[Keys.RIGHT] * 20, *[Keys.DOWN] * 5)
    assert view.text("#cell") == "Depth 4, expert 11: 0%, 0 times"
    left, top = (canvas.size["width"] // 2, canvas.size["height"] // 2)
    ActionChains(view.driver).move_to_element_with_offset(canvas, 34 + 18 - left, 9 - top).click().perform()
    assert view.text("#cell").endswith(f", {usage[0, 0]} times")
    assert view.text("#name").startswith("expert 0: ")


def test_columns_from_early_to_late(view: View):
    shown = model(reading())
    view.open(shown)
    Select(view.one("#router")).select_by_visible_text("layer 0 · feed forward")
    usage = shown.profiles[FEED_FORWARD].usage[:, 0].astype(float)
    shares = usage / usage.sum(1, keepdims=True)
    used = shares.sum(0) > 0
    centres = np.full(12, np.inf)
    centres[used] = (np.arange(3) @ shares[:, used]) / shares[:, used].sum(0)
    view.one("#early").click()
    view.run("document.getElementById('map').focus()")
    press(view, Keys.DOWN, Keys.UP)
    met = []
    for _ in range(12):
        met.append(int(view.text("#cell").split("expert ")[1].split(":")[0]))
        press(view, Keys.RIGHT)
    assert met == np.argsort(centres, kind="stable").tolist()


def test_two_models_between_which_one_switches(view: View):
    first, second = reading(), reading(seed=1)
    view.open(model(first, "before"), model(second, "after"))
    Select(view.one("#router")).select_by_visible_text("layer 1 · feed forward")
    token(view, 7).click()
    assert labels(view, "models") == ["before", "after"]
    legend = view.text("#legend")
    choose(view, "models", "after")
    assert chips(view) == [[str(expert) for expert in row.flat] for row in second.routers[3].experts[7]]
    assert f"{second.losses[7]:.3g} nats" in view.text("#facts")
    assert view.text("#legend") == legend


def test_a_shorter_text_under_the_pointer(view: View):
    view.open(model(reading(), "long"), model(reading(["a"]), "short"))
    token(view, 50).click()
    view.run("document.querySelector('#models input').focus()")
    press(view, Keys.RIGHT)
    assert "token 1 of 1" in view.text("#facts")


def test_what_does_not_apply_is_not_offered(view: View):
    view.open(model(reading()))
    assert labels(view, "models") == []
    assert labels(view, "colours") == ["Loss", "Distinct experts"]
    assert not view.one("#none").is_displayed()
    view.open(model(reading(num_layers=2)))
    assert labels(view, "colours") == []
    view.open(model(reading(halting=True, num_layers=1, group_size=1, names=NAMES[1:])))
    assert labels(view, "colours") == ["Loss", "Halting depth"]
    assert not view.one("#routers").is_displayed()
    view.open(model(reading(group_size=0)))
    assert labels(view, "colours") == []
    assert view.text("#none").startswith("This model has no experts")
    assert not any(view.one(f"#{part}").is_displayed() for part in ("routers", "choices", "expert", "usage"))
    assert "loss, nats" in view.text("#legend")
    hover(view, token(view, 4))
    assert "token 5 of 60" in view.text("#facts")


def test_a_model_with_experts_beside_one_without(view: View):
    view.open(model(reading(group_size=0), "dense"), model(reading(), "moeut"))
    assert not view.one("#usage").is_displayed()
    choose(view, "models", "moeut")
    assert view.one("#usage").is_displayed()
    view.all("#choices .chip")[0].click()
    choose(view, "models", "dense")
    assert not view.one("#usage").is_displayed()
    assert not view.all("#text .uses")


def test_one_token(view: View):
    view.open(model(reading(["a"])))
    assert view.text("#summary") == "Tokens: 1. Executed layers: 6."
    view.all("#choices .chip")[0].click()
    choose(view, "colours", "Loss")
    assert len(view.all("#text .uses")) == 1


def test_halted_tokens_choose_nobody(view: View):
    view.open(model(reading(halting=True)))
    assert [set(row) == {"–"} for row in chips(view)] == [False, True, True]
    view.all("#choices .chip")[-1].click()
    assert not view.one("#profile").is_displayed()
    token(view, 0).click()
    assert press(view, Keys.TAB, Keys.END).text == "–"


def test_hostile_text_is_only_text(view: View):
    view.open(model(reading(HOSTILE), HOSTILE[0]), model(reading(HOSTILE, seed=1), HOSTILE[1]), corpus=HOSTILE[1])
    assert view.run("return window.hacked === undefined")
    assert [span.get_attribute("textContent") for span in view.all("#text span")] == list(HOSTILE)
    assert view.all("img") == []
    hover(view, token(view, 1))
    assert HOSTILE[1].replace(" ", "␣") in view.text("#facts")
    assert view.text("h1") == f"{HOSTILE[0]} and {HOSTILE[1]}"


def test_dark_and_light(view: View):
    prefer(view.driver, "dark")
    view.open(model(reading()))
    for dark in (True, False, True):
        [card], [paper] = (colours(view, selector, "backgroundColor") for selector in ("#reading", "body"))
        [ink], [quiet] = (colours(view, selector, "color") for selector in ("#reading", "#summary"))
        assert (luminance(card) < luminance(ink)) is dark
        assert min(contrast(ground, colour) for ground in (card, paper) for colour in (ink, quiet)) > 4.5
        assert view.one("#theme").get_attribute("aria-pressed") == str(dark).lower()
        view.one("#theme").click()


@pytest.mark.parametrize("pixels", [400, 1300])
def test_nothing_sticks_out(view: View, pixels: int):
    width(view.driver, pixels)
    view.open(model(reading(), "a_long_name/" * 8), model(reading(seed=1), "another"))
    for index in range(4):
        Select(view.one("#router")).select_by_index(index)
        view.all("#choices .chip")[0].click()
        assert view.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_everything_has_a_name(view: View):
    """What one can reach by Tab says what it is, and nothing that is shown takes more than one stop for many things."""
    view.open(model(reading(halting=True)), model(reading(halting=True, seed=1), "other"))
    view.run("document.activeElement.blur()")
    names = []
    for _ in range(12):
        focused = press(view, Keys.TAB)
        if focused.tag_name == "body":
            break
        names.append(focused.accessible_name)
    assert names == [
        "Dark", "runs/mine", "Loss", "Experts of", "The", chips(view)[0][0], "experts from early to late",
        "Share of each expert at each depth. Arrow keys move, Enter picks the expert.",
    ]  # fmt: skip
