"""Do figures show what was found, in order?"""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

from small_study import found, small_study, write_metrics

from moeut.experiments.reproduction.charts import (
    curves,
    draw,
    draw_learning,
    draw_tuning,
    learning_curves,
    tuning_curves,
)
from moeut.experiments.reproduction.study import Chart, by_place

OURS, DENSE = small_study(Path("nowhere")).entrants


def test_curves_go_from_left_to_right_with_errors_where_there_are_seeds():
    findings = found([1.0, 3.0], [5.0])
    chart = Chart("depth", "layer", "size", lambda entrant: {3: "cross_entropy", 1: "cross_entropy", 2: "missing"})
    assert curves(chart, findings) == {
        "MoEUT": [(1, 2.0, 1.0), (3, 2.0, 1.0)],
        "dense": [(1, 5.0, 0.0), (3, 5.0, 0.0)],
    }


def test_places_stay_in_the_order_of_the_entrants():
    findings = found([1.0], [2.0])
    study = findings.study
    entrants = [
        replace(entrant, system="both", place=place) for entrant, place in zip((OURS, DENSE), "zy", strict=True)
    ]
    findings = replace(findings, study=replace(study, entrants=entrants))
    assert curves(by_place("name", "size"), findings) == {"both": [("z", 1.0, 0.0), ("y", 2.0, 0.0)]}


def test_learning_curves_are_those_of_the_first_seed_after_the_beginning(tmp_path: Path):
    """The first 2 of 100 steps are left out, as is what nobody has trained."""
    findings = found([1.0, 3.0], [])
    write_metrics(findings, tmp_path)
    (tmp_path / "runs" / "moeut-small-lr0.001-seed1" / "metrics.jsonl").unlink()
    learnt = learning_curves(findings, tmp_path)
    assert learnt == {"MoEUT small": [(32 * step, 100.0 - step) for step in range(3, 101)]}
    draw_learning(learnt, tmp_path)
    svg = (tmp_path / "learning-curves.svg").read_text()
    for words in ("tokens learnt from", "MoEUT small"):
        assert f"<!-- {words} -->" in svg


def test_tuning_curves_have_every_rate_of_the_first_seed(tmp_path: Path):
    """Seeds after the first are tried at one rate alone; so is nobody tuned whose runs all have one."""
    findings = found([3.0, 9.0], [5.0])
    assert tuning_curves(findings) == {}
    first = findings.runs[0]
    lower = replace(first, learning_rate=0.0005)
    with_lower = replace(
        findings,
        runs=[*findings.runs, lower, replace(first, learning_rate=0.002)],
        numbers={**findings.numbers, lower.name: {"cross_entropy": 4.0}},
    )
    tuned = tuning_curves(with_lower)
    assert tuned == {"MoEUT small": [(0.0005, 4.0, 0.0), (0.001, 3.0, 0.0)], "dense small": [(0.001, 5.0, 0.0)]}
    draw_tuning(tuned, tmp_path)
    assert "<!-- learning rate -->" in (tmp_path / "by-learning-rate.svg").read_text()


def test_figures_are_pictures_with_their_words(tmp_path: Path):
    chart = by_place("by-size", "size of the models")
    draw(chart, curves(chart, found([1.0, 2.0], [3.0])), tmp_path)
    assert (tmp_path / "by-size.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "by-size.svg").read_text()
    ElementTree.fromstring(svg)
    for words in ("size of the models", "held-out nats a token", "MoEUT", "dense", "small"):
        assert f"<!-- {words} -->" in svg
