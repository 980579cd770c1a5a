"""Does the search for dimensions find the paper's pairs, come as near as numbers allow, and say what it misses?"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeut.experiments.budget import Match, facts, goals, match, nearest, report
from moeut.model.cost import cost
from moeut.model.language_model import ModelConfig
from moeut.presets import PRESETS, preset
from moeut.validation import validate

SIZES = ["44m", "126m", "244m", "318m", "727m", "1b"]
PAIRS = [
    (rival, f"moeut-{size}")
    for size in SIZES
    for rival in (f"dense-{size}", f"sigma-moe-{size}", f"sut-{size}", f"sut-without-act-{size}")
    if rival in PRESETS
] + [(f"moeut-{group}-244m", "moeut-244m") for group in ("g1", "g3", "g6", "g9", "aabb")]  # fmt: skip
"""What the paper compares: models of equal parameters."""


def parameters(config: ModelConfig) -> int:
    return cost(config).parameters


def changed(found: Match) -> list[str]:
    return [line.split(":")[0] for line in found.changes]


@pytest.mark.parametrize(("rival", "moeut"), PAIRS)
def test_the_papers_pairs_come_out(rival: str, moeut: str):
    """From any number of experts or width: the paper's, to within half a percent of its parameters."""
    theirs, wanted = preset(rival), parameters(preset(moeut))
    dimension = "intermediate_size" if rival.startswith("dense") else "num_experts"
    elsewhere = replace(theirs, feed_forward=replace(theirs.feed_forward, **{dimension: 1000}))
    found = match(elsewhere, {"parameters": wanted})
    assert parameters(found.config) == pytest.approx(parameters(theirs), rel=0.005)
    assert abs(found.miss("parameters")) <= abs(parameters(theirs) / wanted - 1)
    if rival.startswith("sigma-moe"):
        assert found.config == theirs


@pytest.mark.parametrize("rival", [name for name in PRESETS if name.startswith(("moeut-gated", "sigma-moe-plain"))])
def test_presets_that_are_ours_are_what_it_finds(rival: str):
    size = rival.rpartition("-")[2]
    moeut = preset("tiny" if size == "tiny" else f"moeut-{size}")
    assert match(preset(rival), {"parameters": parameters(moeut)}).config == preset(rival)


@pytest.mark.parametrize("size", ["tiny", "44m", "244m"])
@pytest.mark.parametrize("variant", ["switchhead", "ut", "ut-act"])
def test_widths_are_what_it_finds(variant: str, size: str):
    moeut = preset("tiny" if size == "tiny" else f"moeut-{size}")
    assert match(preset(f"{variant}-{size}"), {"parameters": parameters(moeut)}).config == preset(f"{variant}-{size}")


def test_no_neighbour_is_nearer():
    wanted = 44_000_000
    for name in ("moeut-44m", "dense-44m", "sut-44m"):
        found = match(preset(name), {"parameters": wanted}).config
        dimension = "intermediate_size" if name == "dense-44m" else "num_experts"
        for step in (-1, 1):
            size = getattr(found.feed_forward, dimension) + step
            other = replace(found, feed_forward=replace(found.feed_forward, **{dimension: size}))
            assert abs(parameters(found) - wanted) <= abs(parameters(other) - wanted)


def test_both_parameters_and_computation():
    """σ-MoE selects more experts, a Universal Transformer runs more often; then each gets its size again."""
    wanted = goals(preset("dense-44m"), "both", None, None)
    found = match(preset("moeut-44m"), wanted)
    assert changed(found) == [
        "feed_forward.num_experts",
        "feed_forward.num_experts_per_tok",
    ]
    assert abs(found.miss("parameters")) < 0.005
    assert abs(found.miss("macs_per_token")) < 0.02
    found = match(preset("ut-44m"), {"parameters": 30_000_000, "macs_per_token": 600_000_000}, context_length=512)
    assert changed(found) == ["num_hidden_layers", "feed_forward.intermediate_size"]
    assert found.config.group_size == 1
    assert abs(found.miss("parameters")) < 0.001
    assert abs(found.miss("macs_per_token")) < 0.05
    assert found.found["macs_per_token"] == cost(found.config, 512).macs_per_token


def test_computation_alone():
    found = match(preset("moeut-44m"), goals(None, "parameters", None, 60_000_000))
    assert changed(found) == ["feed_forward.num_experts_per_tok"]
    assert abs(found.miss("macs_per_token")) < 0.02
    found = match(preset("ut-44m"), {"macs_per_token": 300_000_000})
    assert changed(found) == ["feed_forward.intermediate_size"]
    assert abs(found.miss("macs_per_token")) < 0.001


def test_more_are_selected_than_there_were():
    found = match(preset("sut-without-act-tiny"), {"macs_per_token": 30_000_000}).config
    assert found.feed_forward.num_experts_per_tok == found.feed_forward.num_experts > 28  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("dense-44m", {}, "nothing to match: name a model, a number of parameters"),
        ("dense-44m", {"parameters": 44_000_000, "macs_per_token": 50_000_000}, "a dense model that repeats no layer"),
        ("moeut-44m", {"parameters": 1000}, r"parameters: nothing is near 1,000; .*num_experts: 155, now 12"),
        ("dense-44m", {"macs_per_token": 1000}, "macs_per_token: nothing is near 1,000; the nearest has"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_refused_in_one_line(name: str, wanted: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        match(preset(name), wanted)
    assert len(str(caught.value).splitlines()) == 1


def test_goals_are_those_of_a_model_or_numbers():
    config = preset("dense-44m")
    costs = cost(config, 64)
    assert goals(config, "parameters", None, None, 64) == {"parameters": costs.parameters}
    assert goals(config, "macs", None, None, 64) == {"macs_per_token": costs.macs_per_token}
    assert goals(config, "parameters", None, 5, 64) == {"parameters": costs.parameters, "macs_per_token": 5}
    assert goals(config, "both", 4, None, 64) == {"parameters": 4, "macs_per_token": costs.macs_per_token}
    assert goals(None, "parameters", None, None) == {}


def test_a_match_in_words_and_values():
    found = match(preset("dense-44m"), {"parameters": 44_345_792})
    values = facts(found)
    assert validate(ModelConfig, values["config"]) == found.config
    assert values["misses"]["parameters"] == pytest.approx(472 / 44_345_792)
    assert report("rival", found, 1024) == [
        "rival: feed_forward.intermediate_size: 2053, now 2038",
        "parameters          44,346,264   wanted 44,345,792, 0.00% more",
        "multiply-adds       54,410,752",
    ]
    unchanged = match(preset("dense-44m"), {"parameters": 44_544_264 + 100})
    assert report("rival", unchanged, 1024)[0] == "rival: as it is"


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 10**6))
def test_nearest_finds_the_nearest(least: int, slope: int, wanted: int):
    found = nearest(lambda number: slope * number * number, wanted, least)
    assert found >= least
    rivals = [number for number in (found - 1, found + 1) if number >= least]
    assert all(abs(slope * found * found - wanted) <= abs(slope * other * other - wanted) for other in rivals)
