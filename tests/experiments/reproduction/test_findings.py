"""Is what the paper says set beside what came out, without flattery?"""

import math
from pathlib import Path

import pytest
from small_study import found, small_study

from moeut.experiments.reproduction.findings import verdict
from moeut.experiments.reproduction.study import Direction, Quantity, gap

STUDY = small_study(Path("nowhere"))
OURS, DENSE = STUDY.entrants
[DIRECTION] = STUDY.directions


def test_estimates_are_means_over_finished_seeds():
    known = found([1.0, 3.0], [5.0])
    assert known.estimate(Quantity(OURS)) == (2.0, 1.0, 2)
    assert known.estimate(Quantity(DENSE)) == (5.0, math.inf, 1)
    assert known.estimate(Quantity(OURS, "missing")) is None


@pytest.mark.parametrize(
    ("ours", "dense", "difference", "error", "held"),
    [
        ([1.0], [2.0], 1.0, math.inf, True),
        ([2.0], [1.0], -1.0, math.inf, False),
        ([1.0, 1.2], [2.0, 2.2], 1.0, math.sqrt(0.02), True),
        ([2.0, 2.2], [1.0, 1.2], -1.0, math.sqrt(0.02), False),
        ([1.0, 3.0], [1.5, 3.5], 0.5, math.sqrt(2.0), None),
        ([1.0, 1.1], [2.0], 0.95, math.inf, True),
    ],
)
def test_verdicts(ours: list[float], dense: list[float], difference: float, error: float, held: bool | None):
    judged = verdict(found(ours, dense), DIRECTION)
    assert judged.difference == pytest.approx(difference)
    assert judged.standard_error == pytest.approx(error)
    assert judged.held is held


def test_what_was_not_run_is_not_judged():
    judged = verdict(found([1.0], []), DIRECTION)
    assert judged.less is not None
    assert judged.more is None
    assert judged.held is None


def test_gaps_are_set_beside_each_other():
    """Seeds of ours 1, 3 (error 1), of the rival 6, 8 (error 1): ours is 5 better."""
    known = found([1.0, 3.0], [6.0, 8.0])
    ahead = gap(OURS, DENSE)
    judged = verdict(known, Direction(Quantity(OURS), ahead))
    assert judged.less == (2.0, 1.0, 2)
    assert judged.more == (5.0, pytest.approx(math.sqrt(2.0)), 2)
    assert judged.difference == pytest.approx(3.0)
    # rival − 2 · ours: what stands on both sides is not two numbers with errors of their own
    assert judged.standard_error == pytest.approx(math.sqrt(1.0 + 4.0))
    assert judged.held is None


def test_what_cancels_has_no_error():
    judged = verdict(found([1.0, 3.0], [6.0, 8.0]), Direction(gap(OURS, DENSE), gap(OURS, DENSE)))
    assert (judged.difference, judged.standard_error) == (0.0, 0.0)


def test_a_gap_to_what_was_not_run_is_unknown():
    judged = verdict(found([1.0], []), Direction(Quantity(OURS), gap(OURS, DENSE)))
    assert judged.less is not None
    assert judged.more is None
    assert judged.held is None
