"""Are all studies fair, whole, and of one piece with each other?"""

import re
from pathlib import Path

import pytest

from moeut.experiments.reproduction.catalogue import studies, study_named
from moeut.experiments.reproduction.results import trained_numbers
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.reproduction.scales import PAPER, SMALL, TINY, Scale, scale
from moeut.experiments.reproduction.study import Study, quantities
from moeut.model.cost import cost

SCALES = [TINY, SMALL, PAPER]
STUDIES = [(scale, study) for scale in SCALES for study in studies(scale)]
TOLERANCE = {"tiny": 0.03, "small": 0.02, "paper": 0.008}


def name(value: object) -> str:
    return value.name if isinstance(value, Scale | Study) else ""


@pytest.mark.parametrize(("scale", "study"), STUDIES, ids=name)
def test_rivals_are_matched(scale: Scale, study: Study):
    """All of a size have as many parameters, and learn for as long from as many tokens."""
    for entrant in study.entrants:
        wanted = cost(scale.moeuts[entrant.size]).parameters
        assert cost(entrant.model).parameters == pytest.approx(wanted, rel=TOLERANCE[scale.name])
    by_size = {entrant.size: entrant.training for entrant in study.entrants}
    assert all(entrant.training == by_size[entrant.size] for entrant in study.entrants)


@pytest.mark.parametrize(("scale", "study"), STUDIES, ids=name)
def test_what_is_said_and_drawn_is_there(scale: Scale, study: Study):
    names = [entrant.name for entrant in study.entrants]
    assert len(set(names)) == len(names)
    sides = [side for direction in study.directions for side in direction]
    assert {quantity.entrant.name for side in sides for quantity, _ in quantities(side)} <= set(names)
    assert study.directions
    assert all(direction.less != direction.more for direction in study.directions)
    for chart in study.charts:
        places = [(entrant.system, x) for entrant in study.entrants for x in chart.points(entrant)]
        assert len(set(places)) == len(places), "one point hides another"
    assert study.found.endswith(".")
    assert study.question.endswith("?")


@pytest.mark.parametrize("scale", SCALES, ids=name)
def test_runs_of_one_name_are_one_run(scale: Scale):
    """Studies share run folders, so a name must mean one model and one training."""
    of_name = {}
    for study in studies(scale):
        for entrant in study.entrants:
            what = (entrant.model, entrant.training, entrant.corpus)
            assert of_name.setdefault(entrant.name, what) == what, entrant.name


def test_a_study_is_found_by_its_name():
    assert study_named("norms", TINY).source == "figure 8"
    with pytest.raises(ValueError, match="'norm' is no study; did you mean norms"):
        study_named("norm", TINY)
    with pytest.raises(ValueError, match="there are scaling, code"):
        study_named("xyz", TINY)


def test_our_own_runs_are_runs_of_todays_studies():
    """Otherwise nobody could use their records, nor make the reports in docs/results again."""
    records = sorted((Path(__file__).parents[3] / "docs" / "results" / "runs").iterdir())
    assert records
    for record in records:
        told = re.fullmatch(r"(.*)-lr([\d.e-]+)-seed(\d+)", record.name)
        assert told is not None, record.name
        entrant_name, rate, seed = told.groups()
        text = {"prose": "prose.jsonl.xz", "stdlib": None}[entrant_name.rsplit("-", 1)[1]]
        entrants = (entrant for study in studies(scale("small", text)) for entrant in study.entrants)
        run = Run(next(entrant for entrant in entrants if entrant.name == entrant_name), float(rate), int(seed))
        assert run.name == record.name
        numbers = trained_numbers(record, run.config(Path("reproduce") / "small"))
        assert numbers is not None
        assert 1 < numbers["cross_entropy"] < 5
