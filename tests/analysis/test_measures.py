"""Does each measure give what one works out by hand, and the paper's figures what its code does?"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moeut.analysis import measures

NAN = float("nan")


def test_layer_preference():
    """Columns add up to one; the expert that nobody used has no preference."""
    counts = np.array([[1, 0, 0, 5], [3, 2, 0, 5]])
    expected = [[0.25, 0, NAN, 0.5], [0.75, 1, NAN, 0.5]]
    assert measures.layer_preference(counts) == pytest.approx(np.array(expected), nan_ok=True)


def test_the_order_of_experts():
    """Three depths, by hand. The 0.9-quantile of three values is 0.8 of the way from the middle one to the largest, so
    that only the largest is above it: the score is its depth times its share, 0 where it ties with the middle one.
    """
    preference = np.array(
        [
            [0.2, 0.1, NAN, 0.8, 0.2, 1 / 3],
            [0.2, 0.6, NAN, 0.1, 0.4, 1 / 3],
            [0.6, 0.3, NAN, 0.1, 0.4, 1 / 3],
        ]
    )
    # Scores: 2 · 0.6, 1 · 0.6, none, 0 · 0.8, nothing above 0.4, nothing above 1/3.
    assert measures.preference_order(preference).tolist() == [3, 4, 5, 1, 0, 2]


def test_the_order_with_several_above_the_quantile():
    """Of twenty-one depths the quantile is the third largest share: two are above it."""
    preference = np.zeros((21, 2))
    preference[[20, 19, 18], 0] = [0.5, 0.3, 0.2]
    preference[[10, 3], 1] = [0.9, 0.1]
    scores = [20 * 0.5 + 19 * 0.3, 10 * 0.9 + 3 * 0.1]
    assert scores[0] > scores[1]
    assert measures.preference_order(preference).tolist() == [1, 0]
    # Not renormalised: an expert with little above its quantile comes before one of an earlier depth.
    preference[:, 0] = 0.045
    preference[20, 0] = 0.1
    assert scores[1] > 20 * 0.1
    assert measures.preference_order(preference).tolist() == [0, 1]


def test_one_depth_has_one_order():
    assert measures.preference_order(np.array([[1.0, NAN, 1.0]])).tolist() == [0, 2, 1]


def test_distinct_experts():
    """Two depths, three tokens, four experts."""
    counts = np.array([[[1, 9, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]])
    assert measures.distinct_experts(counts).tolist() == [[2, 0, 3], [2, 0, 1]]
    assert measures.ranked(measures.distinct_experts(counts)[0]).tolist() == [2, 3]
    expected = [[2 / 3, NAN, 1], [2 / 3, NAN, 1 / 3]]
    assert measures.distinct_share(counts) == pytest.approx(np.array(expected), nan_ok=True)


def test_overlap_is_a_mean_of_ratios():
    """Group 0: 1/2 and 1 at two positions, nothing to compare with the last depth; group 1: 1/4 at one."""
    sums = np.array([[[2, 1.5, 0], [1.5, 2, 0], [0, 0, 0]], [[1, 0.25, 0.5], [0.25, 1, 0.5], [0.5, 0.5, 1]]])
    positions = np.array([[[2, 2, 0], [2, 2, 0], [0, 0, 0]], [[1, 1, 1]] * 3])
    expected = [[1, 0.5, NAN], [0.5, 1, NAN], [NAN, NAN, NAN]]
    assert measures.overlap(sums, positions) == pytest.approx(np.array(expected), nan_ok=True)


def test_layer_similarity():
    """(1/2, 1/2, 0) and (0, 1/4, 3/4) share 1/4, in a second group all: 5/8."""
    counts = np.array([[[2, 2, 0], [1, 1, 1]], [[0, 1, 3], [5, 5, 5]]])
    assert measures.layer_similarity(counts) == pytest.approx(np.array([[1, 0.625], [0.625, 1]]))
    counts[1, 1] = 0
    assert measures.layer_similarity(counts) == pytest.approx(np.array([[1, NAN], [NAN, NAN]]), nan_ok=True)


def test_between_depths():
    assert measures.between_depths(np.array([[1, 0.2, 0.4], [9, 1, 0.6], [9, 9, 1]])) == pytest.approx(0.4)
    assert measures.between_depths(np.array([[1, 0.2, NAN], [9, 1, NAN], [9, 9, NAN]])) == pytest.approx(0.2)
    assert math.isnan(measures.between_depths(np.array([[1.0]])))


def test_usage():
    """Four alike; one alone; two of four; nothing at all."""
    counts = np.array([[5, 5, 5, 5], [0, 7, 0, 0], [3, 0, 3, 0], [0, 0, 0, 0]])
    assert measures.usage_entropy(counts) == pytest.approx(np.array([math.log(4), 0, math.log(2), NAN]), nan_ok=True)
    assert measures.usage_perplexity(counts) == pytest.approx(np.array([1, 0.25, 0.5, NAN]), nan_ok=True)
    assert [measures.dead_experts(row) for row in counts] == [0, 3, 2, 4]


def test_mutual_information():
    """Independent: nothing. Each case has an expert of its own: ln 2. By hand: (3, 1) and (1, 3) of eight."""
    assert measures.mutual_information(np.array([[2, 4], [3, 6]])) == pytest.approx(0)
    assert measures.mutual_information(np.array([[5, 0, 0], [0, 5, 0]])) == pytest.approx(math.log(2))
    assert measures.mutual_information(np.array([[3, 1], [1, 3]])) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    assert math.isnan(measures.mutual_information(np.zeros((2, 3), np.int64)))


@given(arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.integers(0, 9)))
def test_mutual_information_is_between_nothing_and_the_entropy_of_use(counts):
    if counts.sum():
        found = measures.mutual_information(counts)
        assert -1e-9 <= found <= measures.usage_entropy(counts.sum(axis=0)) + 1e-9


def test_lift():
    """Case 0 is 1/4 of everything and 1/2 of expert 0; expert 2 was never used."""
    counts = np.array([[2, 0, 0], [2, 4, 0]])
    expected = [[2, 0, NAN], [2 / 3, 4 / 3, NAN]]
    assert measures.lift(counts) == pytest.approx(np.array(expected), nan_ok=True)
    large = np.full((2, 2), 2**40)
    assert measures.lift(large) == pytest.approx(np.ones((2, 2)))


def test_top_tokens():
    """The rare token has the highest lift, and is left out; equal lifts: the frequent one first."""
    counts = np.array([[1, 0], [20, 0], [40, 0], [30, 30], [0, 100]])
    first, second = measures.top_tokens(counts, number=3, minimum=20)
    assert first.tokens.tolist() == [2, 1, 3]
    assert first.counts.tolist() == [40, 20, 30]
    assert first.lifts == pytest.approx([221 / 91, 221 / 91, 221 / 91 / 2])
    assert second.tokens.tolist() == [4, 3]
    with_rare = measures.top_tokens(counts, number=3, minimum=1)[0]
    assert with_rare.tokens.tolist() == [2, 1, 0]
    assert measures.top_tokens(np.zeros((3, 1), np.int64))[0].tokens.tolist() == []
