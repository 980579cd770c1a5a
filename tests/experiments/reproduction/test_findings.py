"""Is what the paper says set beside what came out, without flattery?"""

import math
from pathlib import Path

import pytest
from small_study import small_study

from moeut.experiments.reproduction.findings import Findings, verdict
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.reproduction.study import Quantity

STUDY = small_study(Path("nowhere"))
OURS, DENSE = STUDY.entrants
[DIRECTION] = STUDY.directions


def findings(ours: list[float], dense: list[float]) -> Findings:
    """A study with so many seeds of each entrant and their losses."""
    judged = {
        entrant.name: [Run(entrant, 0.001, seed) for seed in range(len(losses))]
        for entrant, losses in ((OURS, ours), (DENSE, dense))
    }
    numbers = {
        run.name: {"cross_entropy": loss}
        for runs, losses in zip(judged.values(), (ours, dense), strict=True)
        for run, loss in zip(runs, losses, strict=True)
    }
    return Findings(STUDY, [run for runs in judged.values() for run in runs], judged, numbers, {}, {})


def test_estimates_are_means_over_finished_seeds():
    found = findings([1.0, 3.0], [5.0])
    assert found.estimate(Quantity(OURS)) == (2.0, 1.0, 2)
    assert found.estimate(Quantity(DENSE)) == (5.0, math.inf, 1)
    assert found.estimate(Quantity(OURS, "missing")) is None


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
    found = verdict(findings(ours, dense), DIRECTION)
    assert found.difference == pytest.approx(difference)
    assert found.standard_error == pytest.approx(error)
    assert found.held is held


def test_what_was_not_run_is_not_judged():
    found = verdict(findings([1.0], []), DIRECTION)
    assert found.less is not None
    assert found.more is None
    assert found.held is None
