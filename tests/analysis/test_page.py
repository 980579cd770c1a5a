"""Is in the file what was given, and nothing that a browser would take for something else?"""

import hashlib
import json
import re
from base64 import b64decode, b64encode
from html.parser import HTMLParser
from typing import Any

import numpy as np
from pages import HOSTILE, model, reading

from moeut.analysis.page import SCRIPTS, TEMPLATE, page


class Elements(HTMLParser):
    """The elements of a page: (tag, attributes, the text right inside)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}, ""))  # what follows is not inside of it

    def handle_data(self, data: str) -> None:
        tag, attributes, text = self.found.pop() if self.found else ("", {}, "")
        self.found.append((tag, attributes, text + data))

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


def data_of(text: str) -> dict[str, Any]:
    [data] = [text for attributes, text in Elements(text).all("script") if attributes.get("id") == "data"]
    return json.loads(data)


def decoded(written: dict[str, Any]) -> np.ndarray:
    array = np.frombuffer(b64decode(written["base64"]), np.dtype(written["dtype"]).newbyteorder("<"))
    return array.reshape(written["shape"])


def test_the_data_are_what_was_given():
    given = [model(reading(halting=True), "first"), model(reading(seed=1, num_layers=4), "second")]
    data = data_of(page(given, "12 tokens of nothing"))
    assert data["corpus"] == "12 tokens of nothing"
    assert [one["name"] for one in data["models"]] == ["first", "second"]
    for written, (read, profiles) in zip(data["models"], [(one.reading, one.profiles) for one in given], strict=True):
        assert written["pieces"] == list(read.pieces)
        assert written["numLayers"] == read.num_layers
        np.testing.assert_array_equal(decoded(written["losses"]), read.losses)
        if read.expected_layers is None:
            assert written["layers"] is None
        else:
            np.testing.assert_array_equal(decoded(written["layers"]), read.expected_layers)
        assert len(written["routers"]) == len(read.routers) == 4
        for found, router, profile in zip(written["routers"], read.routers, profiles, strict=True):
            assert (found["layer"], found["name"], found["numExperts"]) == (
                router.layer,
                router.name,
                router.num_experts,
            )
            assert tuple(found["depths"]) == router.depths
            np.testing.assert_array_equal(decoded(found["experts"]), router.experts)
            np.testing.assert_array_equal(decoded(found["usage"]), profile.usage)
            flat = [[list(token) for token in tokens] for group in profile.top_tokens for tokens in group]
            assert found["topTokens"] == flat


def test_more_experts_than_a_byte_can_tell():
    read = reading(names=[("feed_forward", 1, 300, 280)])
    [first, _] = data_of(page([model(read)], ""))["models"][0]["routers"]
    assert first["experts"]["dtype"] == "uint16"
    np.testing.assert_array_equal(decoded(first["experts"]), read.routers[0].experts)


def test_text_is_never_markup():
    text = page([model(reading(HOSTILE), name) for name in ("</title><script>1</script>", '"><img src=x>')], HOSTILE[0])
    elements = Elements(text)
    assert len(elements.all("script")) == 2
    assert not elements.all("img")
    data = data_of(text)
    assert data["corpus"] == HOSTILE[0]
    assert data["models"][0]["pieces"] == list(HOSTILE)
    [(_, title)] = elements.all("title")
    assert title == '</title><script>1</script> and "><img src=x> · moeut'


def test_the_policy_lets_in_nothing_but_the_page_itself():
    elements = Elements(page([model(reading())], ""))
    [policy] = [attributes["content"] for attributes, _ in elements.all("meta") if "http-equiv" in attributes]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    [(_, style)] = elements.all("style")
    [script] = [text for attributes, text in elements.all("script") if attributes.get("type") == "module"]
    digests = [f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (style, script)]
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "style-src": digests[0], "script-src": digests[1],
        "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    links = [
        value for _, attributes, _ in elements.found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert links == ["data:,"]


def test_the_script_is_short_and_all_of_it_is_used():
    files = {file.name for file in TEMPLATE.iterdir()}
    assert files == {*SCRIPTS, "page.css", "page.html"}
    text = "".join((TEMPLATE / name).read_text("utf-8") for name in SCRIPTS)
    assert len(text.splitlines()) < 500
    defined = re.findall(r"^(?:async )?function (\w+)|^const (\w+) =", text, re.MULTILINE)
    unused = [name for pair in defined for name in pair if name and len(re.findall(rf"\b{name}\b", text)) < 2]
    assert not unused
