"""Do the studies of other Universal Transformers have them, and time them apart?"""

from small_study import inequalities

from moeut.experiments.reproduction.scales import PAPER, TINY
from moeut.experiments.reproduction.universal import sparse_universal, time_and_memory


def test_sut():
    study = sparse_universal(PAPER)
    assert [entrant.system for entrant in study.entrants] == ["MoEUT", "dense", "SUT", "SUT without ACT"] * 4
    assert [entrant.place for entrant in study.entrants[::4]] == ["44m c4", "244m c4", "44m pes2o", "244m pes2o"]
    assert study.entrants[2].model.halting is not None
    assert study.entrants[3].model.halting is None
    assert len(study.directions) == 4 * 5


def test_time_and_memory_come_from_a_few_steps():
    study = time_and_memory(PAPER)
    assert [entrant.system for entrant in study.entrants] == ["MoEUT", "dense", "Universal Transformer", "SUT"]
    for entrant in study.entrants:
        assert entrant.training.num_steps == 20
        assert entrant.training.batch_tokens == 64 * 1024
        assert entrant.name.startswith("timed-")
    faster = [(less.entrant.system, more.entrant.system) for less, more in inequalities(study)]
    assert faster[0] == ("dense", "MoEUT")
    assert {less for less, _ in faster[1:]} == {"MoEUT"}
    assert {entrant.name for entrant in study.entrants}.isdisjoint(
        {entrant.name for entrant in sparse_universal(TINY).entrants}
    )
