"""Does every model get the figures that there is something to show in, and no others?"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from looked_at import DENSE, MOEUT, SUT, batches, build

from moeut.analysis import measures, record
from moeut.analysis.figures import SOURCES, figures, position_names, router_names, short
from moeut.analysis.selections import POSITION_RANGES

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'moeut[plot]'")
STREAM = {"update_sizes", "hidden_states", "logit_lens"}
OF_ROUTERS = {"distinct_by_rank", "usage", "position"}
OF_REPEATS = {"experts_across_depth", "overlap", "layer_similarity", "distinct_by_token"}


def names(kinds: set[str], *routers: str) -> set[str]:
    return {f"{kind}-{router}" for kind in kinds for router in routers}


def test_a_moeut_has_all_but_halting():
    found = dict(figures({"mine": record(build(MOEUT), {"a": batches(), "b": batches(seed=1)})}))
    routers = ("attention_value", "attention_output", "feed_forward")
    assert found.keys() == STREAM | names(OF_ROUTERS | OF_REPEATS | {"source"}, *routers)
    preference = found["experts_across_depth-attention_value"]
    shown: list[Any] = [axes for axes in preference.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["mine, layer 0", "mine, layer 1"]
    assert shown[1].images[0].get_array().shape == (3, 2 * 3), "three repeats; three experts in each of two heads"
    assert [label.get_text() for label in shown[1].get_yticklabels()] == ["1", "3", "5"]


def test_what_there_is_nothing_to_show_in_is_left_out():
    text = {"text": list(batches())}
    assert dict(figures({"dense": record(build(DENSE), text)})).keys() == STREAM
    sut = dict(figures({"sut": record(build(SUT), text)}))
    assert sut.keys() == STREAM | {"halting"} | names(OF_ROUTERS | OF_REPEATS, "attention", "feed_forward")
    unshared = record(build(replace(MOEUT, num_hidden_layers=2)), text)
    once = dict(figures({"once": unshared}))
    routers = ("attention_value", "attention_output", "feed_forward")
    assert once.keys() == STREAM | names(OF_ROUTERS, *routers)


def test_models_of_different_routers_side_by_side():
    text = {"text": list(batches())}
    configs = {"moeut": replace(MOEUT, attention=DENSE.attention), "sut": SUT, "dense": DENSE}
    recordings = {name: record(build(config), text) for name, config in configs.items()}
    assert router_names(recordings) == ["feed_forward", "attention"]
    found = dict(figures(recordings))
    shown = [axes.get_title() for axes in found["overlap-feed_forward"].axes if axes.images]
    assert shown == ["moeut, layer 0", "sut, layer 0", "moeut, layer 1"]
    assert [axes.get_title() for axes in found["overlap-attention"].axes if axes.images] == ["sut, layer 0"]
    assert len(found["logit_lens"].axes[0].get_lines()) == 3


def test_long_names_are_shortened():
    assert short(["a", "runs/b"]) == ["a", "runs/b"]
    long = [f"{kind}/with/a/very/long/path/to/the/final" for kind in "ab"]
    assert short(long) == ["1: …/long/path/to/the/final", "2: …/long/path/to/the/final"]
    assert short(["short", long[0]]) == ["short", "…/long/path/to/the/final"]


def test_the_largest_of_many_sources_are_drawn():
    """Of thirty, the last of which is twice as long as the others: it, and the first ones."""
    model = build(replace(MOEUT, attention=DENSE.attention, num_hidden_layers=2))
    texts = {f"{number}": batches(rows=1 + (number == 29), number=1, seed=number) for number in range(30)}
    recording = record(model, texts)
    [axes, *_] = dict(figures({"mine": recording}))["source-feed_forward"].axes
    shown: Any = axes.images[0].get_array()
    assert len(shown) == SOURCES
    lift = measures.lift(recording.routers[0].place_counts.sum(axis=1)[:, 0])
    with np.errstate(divide="ignore"):
        expected = np.clip(np.log2(lift), -2, 2)
    for row, source in ((0, 0), (SOURCES - 2, SOURCES - 2), (SOURCES - 1, 29)):
        assert np.sort(np.asarray(shown[row])) == pytest.approx(np.sort(expected[source]))


def test_ranges_of_positions_have_names():
    assert position_names()[:3] == ["1", "2", "3–4"]
    assert position_names()[-1] == "16,385–"
    assert len(position_names()) == POSITION_RANGES
