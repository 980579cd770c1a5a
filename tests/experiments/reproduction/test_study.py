"""Do the directions and axes of a study say what they mean?"""

from pathlib import Path

import pytest
from small_study import small_study

from moeut.experiments.reproduction.scales import PAPER
from moeut.experiments.reproduction.study import (
    Direction,
    Quantity,
    below,
    by_number,
    by_place,
    falling,
    gap,
    non_embedding,
    quantities,
    training_macs,
)
from moeut.experiments.reproduction.systems import DENSE, MOEUT, SIGMA_MOE

OURS, RIVAL = small_study(Path("nowhere")).entrants


def test_directions():
    assert below([OURS], RIVAL) == [Direction(Quantity(OURS, "cross_entropy"), Quantity(RIVAL, "cross_entropy"))]
    first, second = falling([OURS, RIVAL, OURS], "hours")
    assert first == Direction(Quantity(RIVAL, "hours"), Quantity(OURS, "hours"))
    assert second == Direction(Quantity(OURS, "hours"), Quantity(RIVAL, "hours"))


def test_gaps():
    """Of two losses 1 and 3 the gap is 3 − 1."""
    ahead = gap(OURS, RIVAL)
    assert ahead == (Quantity(OURS), Quantity(RIVAL))
    assert quantities(ahead) == [(Quantity(RIVAL), 1), (Quantity(OURS), -1)]
    assert quantities(Quantity(OURS)) == [(Quantity(OURS), 1)]


def test_charts():
    assert by_place("name", "size").points(OURS) == {"small": "cross_entropy"}
    assert by_number("name", "number", lambda entrant: 7).points(OURS) == {7: "cross_entropy"}


@pytest.mark.parametrize(("system", "macs"), [(DENSE, 3.363e17), (MOEUT, 2.957e17), (SIGMA_MOE, 2.607e17)])
def test_a_trainings_computation_is_the_papers(system, macs: float):
    """The authors' formula for the 44M models, worked out from the published code."""
    assert training_macs(PAPER.entrant(system, "44m", "c4")) == pytest.approx(macs, rel=2e-4)


def test_parameters_without_embedding_and_head():
    """44,345,792 in all; 8,000 vectors of 412 twice, and a bias for each. The paper leaves out the last norm too."""
    assert non_embedding(PAPER.entrant(MOEUT, "44m", "c4")) == 37_745_792 == 37_744_968 + 2 * 412
