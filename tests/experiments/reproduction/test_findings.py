"""Is what the paper says set beside what came out, without flattery?"""

import math
from pathlib import Path

import pytest
from small_study import found, small_study

from moeut.experiments.reproduction.findings import verdict
from moeut.experiments.reproduction.study import Quantity

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
