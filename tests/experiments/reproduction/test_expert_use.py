"""Are the numbers of figures 9 to 11 what the tables of an analysis say?"""

import math
from pathlib import Path

import pytest
import torch
from small_study import entrant, inequalities, prepared

from moeut.experiments.reproduction.expert_use import SPREAD, distinct, experts, looked_at, numbers_of_tables, overlap
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.reproduction.scales import PAPER, SMALL
from moeut.experiments.reproduction.study import Means
from moeut.experiments.reproduction.systems import MOEUT
from moeut.experiments.run import train
from moeut.training.progress import Progress


def test_numbers_by_hand():
    """Two layers, each run twice. One expert is used at one depth, one at two alike, one nowhere."""
    found = numbers_of_tables(
        routers=[{"layer": 0, "depths": [0, 2]}, {"layer": 1, "depths": [1, 3]}],
        experts=[{"uses": [5, 0]}, {"uses": [3, 3]}, {"uses": [0, 0]}],
        tokens=[
            {"layer": 0, "distinct_experts": [1, 4]},
            {"layer": 0, "distinct_experts": [2, 6]},
            {"layer": 1, "distinct_experts": [3, 2]},
        ],
        depths=[
            {"depth": 0, "other_depth": 0, "overlap": 1.0},
            {"depth": 0, "other_depth": 2, "overlap": 0.5},
            {"depth": 2, "other_depth": 0, "overlap": 0.5},
            {"depth": 1, "other_depth": 3, "overlap": 0.25},
        ],
    )
    assert found == pytest.approx(
        {SPREAD: 1.5, distinct(1): 1.5, distinct(2): 3.0, distinct(3): 5.0, distinct(4): 2.0, overlap(2): 0.375}
    )


def test_a_run_is_looked_at(tmp_path: Path):
    """A group of one layer that is run twice, 8 experts of which a token selects 2."""
    run = Run(entrant(MOEUT, prepared(tmp_path)), 0.001, 0)
    train(run.config(tmp_path), tmp_path / "run", quiet=True)
    found = looked_at(Means(torch.device("cpu"), None, Progress(quiet=True)))(tmp_path / "run")
    assert set(found) == {SPREAD, distinct(1), distinct(2), overlap(1)}
    assert 1 <= found[SPREAD] <= 2
    assert 0 <= found[overlap(1)] <= 1
    assert all(2 <= found[distinct(layer)] <= 8 for layer in (1, 2))
    assert all(map(math.isfinite, found.values()))
    figures = {path.name for path in (tmp_path / "run" / "analysis" / "figures").iterdir()}
    assert {f"{Path(path).name}.png" for path in experts(SMALL).pictures} <= figures
    assert (tmp_path / "run" / "analysis" / "index.html").is_file()


def test_the_middle_is_set_beside_both_ends():
    [moeut] = experts(PAPER).entrants
    assert (moeut.system, moeut.size) == ("MoEUT", "244m")
    pairs = [(less.metric, more.metric) for less, more in inequalities(experts(PAPER))]
    assert pairs == [(distinct(1), distinct(9)), (distinct(18), distinct(9))]
