"""Do the studies of layers vary what they say?"""

from dataclasses import replace

import pytest
from small_study import inequalities

from moeut.experiments.reproduction.layers import LONG, SHORT, embedding_length, groups, norms
from moeut.experiments.reproduction.scales import PAPER, SMALL, Scale
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


@pytest.mark.parametrize("scale", [SMALL, PAPER], ids=lambda scale: scale.name)
def test_embedding_length(scale: Scale):
    """Short and long of each, otherwise the same; one of the two is the model of the other studies."""
    entrants = embedding_length(scale).entrants
    assert [entrant.place for entrant in entrants] == [SHORT, LONG] * 3
    for short, long in zip(entrants[::2], entrants[1::2], strict=True):
        assert (short.system, short.model.norm) == (long.system, long.model.norm)
        assert short.model.embedding_scale is None
        assert long.model == replace(short.model, embedding_scale=short.model.hidden_size**0.5)
    others = {one.name: one for study in (norms(scale), groups(scale)) for one in study.entrants}
    assert sum(entrant.name in others for entrant in entrants) == 2, "peri and pre are trained for other studies too"


def test_only_short_trainings_begin_with_long_embeddings():
    """The paper's runs do not; with peri-layernorm it would make no difference."""
    assert {entrant.model.embedding_scale for entrant in norms(PAPER).entrants} == {None}
    [peri, pre, post] = norms(SMALL).entrants
    assert (peri.model.embedding_scale, post.model.embedding_scale) == (None, None)
    assert pre.model.embedding_scale == pre.model.hidden_size**0.5
