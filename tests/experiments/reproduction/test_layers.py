"""Do the studies of layers vary what they say?"""

from small_study import inequalities

from moeut.experiments.reproduction.layers import groups, norms
from moeut.experiments.reproduction.scales import PAPER, SMALL
from moeut.presets import preset


def test_groups():
    study = groups(PAPER)
    *by_group, aabb = study.entrants
    assert [entrant.model.group_size for entrant in by_group] == [1, 2, 3, 6, 9, 18]
    assert [entrant.place for entrant in by_group] == [f"G = {size}" for size in (1, 2, 3, 6, 9, 18)]
    assert (aabb.model.layer_order, aabb.model.group_size) == ("aabb", 2)
    assert by_group[-1].model == preset("sigma-moe-244m")
    assert {less.entrant.place for less, _ in inequalities(study)} == {"G = 2"}
    assert [entrant.model.group_size for entrant in groups(SMALL).entrants] == [1, 2, 4, 8, 2]


def test_norms():
    study = norms(PAPER)
    assert [entrant.model.norm for entrant in study.entrants] == ["peri", "pre", "post"] * 2
    assert [entrant.size for entrant in study.entrants] == ["44m"] * 3 + ["244m"] * 3
    assert all(less.entrant.model.norm == "peri" for less, _ in inequalities(study))
