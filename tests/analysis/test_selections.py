"""Is every selection counted once, under its depth, token, position and source, and are sets compared as sets?"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from looked_at import DENSE, MOEUT, SUT, VOCAB_SIZE, batches, build

from moeut.analysis.selections import POSITION_RANGES, count, overlaps, position_ranges, router_tallies


def test_counting_by_hand():
    """Two groups of two experts and nobody; the same cell twice counts twice."""
    table = torch.zeros(3, 2, 3, dtype=torch.int32)
    experts = torch.tensor([[[0], [1]], [[0], [2]], [[1], [1]]])
    count(table, torch.tensor([2, 2, 0]), experts)
    assert table.tolist() == [[[0, 1, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]], [[2, 0, 0], [0, 1, 1]]]


def test_overlaps_by_hand():
    """One group, three depths, two positions: {0, 1}, {1, 2}, nothing; {3, 4}, {4, 3}, {0, 1}."""
    nobody = 5
    selected = torch.tensor([[[[0, 1], [1, 2], [nobody, nobody]]], [[[3, 4], [4, 3], [0, 1]]]])
    ratios, positions = overlaps(selected, nobody)
    assert positions.tolist() == [[[2, 2, 1], [2, 2, 1], [1, 1, 1]]]
    third = pytest.approx(1 / 3)
    assert ratios[0].tolist() == [[2, pytest.approx(4 / 3), 0], [pytest.approx(4 / 3), 2, 0], [0, 0, 1]]
    assert (ratios[0, 0, 1] - 1).item() == third, "{0, 1} and {1, 2} share one of three; {3, 4} all of two"


@settings(deadline=None, max_examples=30)
@given(
    positions=st.integers(1, 5), groups=st.integers(1, 2), repeats=st.integers(1, 4), experts=st.integers(2, 6),
    seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_overlaps_are_those_of_sets(positions, groups, repeats, experts, seed, data):
    selected_per_token = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(positions, groups, repeats, experts, generator=generator)
    selected = scores.topk(selected_per_token).indices
    selected = selected.masked_fill(torch.rand(selected.shape, generator=generator) < 0.4, experts)
    ratios, compared = overlaps(selected, experts)
    for group in range(groups):
        for a in range(repeats):
            for b in range(repeats):
                pairs = [(set(row[group][a]) - {experts}, set(row[group][b]) - {experts}) for row in selected.tolist()]
                pairs = [(one, other) for one, other in pairs if one and other]
                assert compared[group, a, b] == len(pairs)
                expected = sum(len(one & other) / len(one | other) for one, other in pairs)
                assert ratios[group, a, b].item() == pytest.approx(expected)


def test_ranges_double():
    assert position_ranges(9).tolist() == [0, 1, 2, 2, 3, 3, 3, 3, 4]
    assert position_ranges(2**14)[-1] == POSITION_RANGES - 2
    assert position_ranges(2**16)[-1] == position_ranges(2**15)[-1] == POSITION_RANGES - 1


@pytest.mark.parametrize("config", [MOEUT, SUT], ids=["moeut", "sut"])
def test_a_tally_counts_what_the_model_selected(config):
    """Selection by selection, with those of halted tokens left out, for every router of every layer."""
    model = build(config).eval()
    tallies = router_tallies(model, 2)
    [(inputs, _), (others, _)] = batches()
    expected = {(tally.layer, tally.name): np.zeros(tally.counts.shape, np.int64) for tally in tallies}
    placed = {(tally.layer, tally.name): np.zeros(tally.place_counts.shape, np.int64) for tally in tallies}
    for source, ids in enumerate((inputs, others)):
        with torch.no_grad():
            routing = model(torch.from_numpy(ids), return_routing=True).routing
        ranges = torch.from_numpy(np.tile(position_ranges(9), 3))
        for tally in tallies:
            tally.add(routing, torch.arange(27), torch.from_numpy(ids.flatten()), ranges, source)
        for depth, layer in enumerate(config.schedule):
            for name, selection in routing[depth].items():
                repeat = [d for d, index in enumerate(config.schedule) if index == layer].index(depth)
                for (row, position, group, _), expert in np.ndenumerate(selection.experts.numpy()):
                    expected[layer, name][repeat, ids[row, position], group, expert] += 1
                    place = position.bit_length()
                    placed[layer, name][source, place, group, expert] += 1
    halted = 0
    for tally in tallies:
        found = tally.recording()
        assert found.depths == tuple(d for d, index in enumerate(config.schedule) if index == found.layer)
        assert (found.counts == expected[found.layer, found.name][..., :-1]).all()
        assert (found.place_counts == placed[found.layer, found.name][..., :-1]).all()
        assert found.counts.shape[1] == VOCAB_SIZE
        halted += int(expected[found.layer, found.name][..., -1].sum())
    assert (halted > 0) == (config is SUT)


def test_no_experts_no_tallies():
    assert router_tallies(build(DENSE), 1) == []
