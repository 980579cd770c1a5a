"""How does one look inside? One HTML file in which a text, its experts and their use can be walked through.

It needs nothing but a browser: data, style and script are in it, and its policy forbids it to load or send anything.
Letters: T tokens of the text, R repeats of a layer, G groups of experts, E experts in a group.
"""

import hashlib
import html
import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeut.analysis.reading import Reading, RouterReading

TEMPLATE = Path(__file__).with_name("template")
SCRIPTS = ("data.js", "colours.js", "keyboard.js", "heat_map.js", "measures.js", "panels.js", "page.js")


@dataclass(frozen=True)
class RouterProfile:
    """What one router of one shared layer selected in a whole corpus.

    layer, name: as in `moeut.analysis.reading.RouterReading`. usage: [R, G, E], how often each expert was selected at
    each depth. top_tokens: for each group and each of its experts the text of the tokens that prefer it and their lift
    P(token | expert) / P(token), the highest first.
    """

    layer: int
    name: str
    usage: NDArray[np.integer[Any]]
    top_tokens: Sequence[Sequence[Sequence[tuple[str, float]]]]


@dataclass(frozen=True)
class PageModel:
    """A model on the page: its name, what it made of the text, and a profile for each router of the reading."""

    name: str
    reading: Reading
    profiles: Sequence[RouterProfile]


def page(models: Sequence[PageModel], corpus: str) -> str:
    """The page of one model, or of two between which one can switch.

    corpus: what the profiles are of, as in "1,000,000 tokens of data/stdlib".
    """
    style = (TEMPLATE / "page.css").read_text("utf-8")
    script = "".join((TEMPLATE / name).read_text("utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    data = json.dumps({"corpus": corpus, "models": [_model(model) for model in models]}, allow_nan=False)
    return Template((TEMPLATE / "page.html").read_text("utf-8")).substitute(
        title=html.escape(" and ".join(model.name for model in models)),
        policy=html.escape(policy),
        style=style,
        script=script,
        data=data.replace("<", "\\u003c"),  # nothing in it can end the element
    )


def _model(model: PageModel) -> dict[str, Any]:
    reading = model.reading
    layers = reading.expected_layers
    return {
        "name": model.name,
        "pieces": reading.pieces,
        "losses": _array(reading.losses.astype("<f4")),
        "layers": None if layers is None else _array(layers.astype("<f4")),
        "numLayers": reading.num_layers,
        "routers": [_router(router, profile) for router, profile in zip(reading.routers, model.profiles, strict=True)],
    }


def _router(router: RouterReading, profile: RouterProfile) -> dict[str, Any]:
    assert (router.layer, router.name) == (profile.layer, profile.name)
    assert profile.usage.shape == (len(router.depths), router.experts.shape[2], router.num_experts)
    return {
        "layer": router.layer,
        "name": router.name,
        "depths": router.depths,
        "numExperts": router.num_experts,
        "experts": _array(router.experts.astype(np.min_scalar_type(router.num_experts).newbyteorder("<"))),
        "usage": _array(profile.usage.astype("<f8")),
        "topTokens": [tokens for group in profile.top_tokens for tokens in group],
    }


def _array(array: NDArray[Any]) -> dict[str, Any]:
    """An array as `decode` in data.js reads it: little-endian bytes in base64."""
    return {"dtype": array.dtype.name, "shape": array.shape, "base64": b64encode(array.tobytes()).decode()}


def _digest(text: str) -> str:
    """What a policy calls an inline style or script that it allows."""
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()
