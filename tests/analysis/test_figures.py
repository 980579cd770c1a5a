"""Does every model get the figures that there is something to show in, and no others?"""

from dataclasses import replace
from typing import Any

import pytest
from looked_at import DENSE, MOEUT, SUT, batches, build

from moeut.analysis import record
from moeut.analysis.figures import figures, position_names, router_names
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


def test_ranges_of_positions_have_names():
    assert position_names()[:3] == ["1", "2", "3–4"]
    assert position_names()[-1] == "16,385–"
    assert len(position_names()) == POSITION_RANGES
