"""Are the runs of a study those that were asked for, as many for everybody, in the right order?"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_study import small_study

from moeut.experiments.reproduction.runs import Effort, Run, best, chosen, runs_of, sweep, wanted

STUDY = small_study(Path("nowhere"))
OURS, DENSE = STUDY.entrants


def unknown(run: Run) -> None:
    return None


def test_a_run_says_what_it_is():
    run = Run(OURS, 0.002, 3)
    assert run.name == "moeut-small-lr0.002-seed3"
    config = run.config(Path("out"))
    assert (config.training.seed, config.training.optimizer.learning_rate) == (3, 0.002)
    assert replace(config.training, seed=0, optimizer=OURS.training.optimizer) == OURS.training
    assert config.data == "out/data/nowhere"


def test_every_entrant_comes_before_any_has_a_second_seed():
    names = [run.name for run in wanted(STUDY, Effort(seeds=3), unknown)]
    assert names == [f"{name}-small-lr0.001-seed{seed}" for seed in range(3) for name in ("moeut", "dense")]


def test_further_seeds_wait_for_the_best_learning_rate():
    effort = Effort(seeds=2, learning_rates=(0.1, 0.2, 0.3))
    assert [run.learning_rate for run in wanted(STUDY, effort, unknown)] == [0.1, 0.2, 0.3] * 2
    losses = {Run(OURS, 0.1, 0): 3.0, Run(OURS, 0.2, 0): 2.0, Run(OURS, 0.3, 0): 2.5, Run(DENSE, 0.3, 0): 1.0}
    assert best(OURS, effort, losses.get) == Run(OURS, 0.2, 0)
    assert best(DENSE, effort, losses.get) is None
    assert runs_of(OURS, effort, losses.get) == [Run(OURS, 0.2, 0), Run(OURS, 0.2, 1)]
    assert runs_of(DENSE, effort, losses.get) == []
    diverged = dict.fromkeys(sweep(OURS, effort), math.inf)
    assert best(OURS, effort, diverged.get) is None
    assert best(OURS, effort, (diverged | {Run(OURS, 0.1, 0): 9.0}).get) == Run(OURS, 0.1, 0)
    assert list(wanted(STUDY, effort, losses.get))[6:] == [Run(OURS, 0.2, 1)]


@given(
    seeds=st.integers(1, 4),
    rates=st.lists(st.sampled_from([0.001, 0.002, 0.004, 0.008]), unique=True, max_size=4).map(tuple),
    losses=st.lists(st.floats(0, 10), min_size=8, max_size=8),
)
def test_nobody_is_tuned_more_than_his_rival(seeds: int, rates: tuple[float, ...], losses: list[float]):
    effort = Effort(seeds, rates)
    known = dict(zip([run for entrant in STUDY.entrants for run in sweep(entrant, effort)], losses, strict=False))
    runs = list(wanted(STUDY, effort, known.get))
    assert len(runs) == len(set(runs))
    for entrant in STUDY.entrants:
        mine = [run for run in runs if run.entrant == entrant]
        assert len(mine) == max(1, len(rates)) + seeds - 1
        first = best(entrant, effort, known.get)
        assert first is not None
        assert known[first] == min(known[run] for run in sweep(entrant, effort))
        assert {run.learning_rate for run in mine if run.seed} <= {first.learning_rate}


def test_patterns_choose_runs_and_a_mistaken_one_is_refused():
    runs = list(wanted(STUDY, Effort(seeds=2), unknown))
    assert chosen(runs, []) == runs
    assert {run.entrant for run in chosen(runs, ["dense-*"])} == {DENSE}
    assert chosen(runs, ["*-seed1", "moeut-*-seed0"]) == [runs[0], *runs[2:]]
    with pytest.raises(ValueError, match=r"did you mean dense-small-lr0\.001-seed0"):
        chosen(runs, ["*", "dense-smal-lr0.001-seed0"])
