"""Do the studies of sizes have everybody at every size?"""

from small_study import inequalities

from moeut.experiments.reproduction.scales import PAPER, SMALL
from moeut.experiments.reproduction.scaling import code, scaling
from moeut.experiments.reproduction.study import Direction, gap


def test_scaling():
    entrants = scaling(PAPER).entrants
    assert [entrant.system for entrant in entrants] == ["MoEUT", "dense", "σ-MoE"] * 5 + ["MoEUT", "dense"]
    better = inequalities(scaling(PAPER))
    assert len(better) == 11
    assert {less.entrant.system for less, _ in better} == {"MoEUT"}
    moeut_44m, dense_44m, *_, moeut_1b, dense_1b = entrants
    assert scaling(PAPER).directions[-1] == Direction(gap(moeut_44m, dense_44m), gap(moeut_1b, dense_1b))
    by_parameters, by_computation = scaling(SMALL).charts
    moeut, dense, _ = entrants[:3]
    [ours], [rivals] = by_computation.points(moeut), by_computation.points(dense)
    assert ours < rivals
    assert by_parameters.logarithmic


def test_code():
    study = code(PAPER)
    assert [entrant.name for entrant in study.entrants] == [
        "moeut-244m-the-stack", "dense-244m-the-stack", "moeut-727m-the-stack", "dense-727m-the-stack",
    ]  # fmt: skip
    assert [entrant.name for entrant in code(SMALL).entrants] == ["moeut-4m-stdlib", "dense-4m-stdlib"]
