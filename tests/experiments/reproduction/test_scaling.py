"""Do the studies of sizes have everybody at every size?"""

from moeut.experiments.reproduction.scales import PAPER, SMALL
from moeut.experiments.reproduction.scaling import code, scaling


def test_scaling():
    entrants = scaling(PAPER).entrants
    assert [entrant.system for entrant in entrants] == ["MoEUT", "dense", "σ-MoE"] * 5 + ["MoEUT", "dense"]
    assert len(scaling(PAPER).directions) == 11
    assert {direction.less.entrant.system for direction in scaling(SMALL).directions} == {"MoEUT"}
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
