"""Does the report say what was found, all of it, and nothing else?"""

import csv
from dataclasses import replace
from pathlib import Path

from small_study import found, prepared, write_metrics

from moeut.data.tokens import read_manifest
from moeut.experiments.reproduction.study import Direction, Quantity, gap
from moeut.experiments.reproduction.study_report import (
    directions,
    entrant_rows,
    report,
    results,
    run_rows,
    runs,
    sizes,
    texts,
    write_csv,
    write_report,
)
from moeut.model.cost import cost


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_sizes_stand_beside_the_first_of_their_size():
    study = found([1.0], [2.0]).study
    ours, dense = (cost(entrant.model, 16) for entrant in study.entrants)
    _, first, second = sizes(study)
    assert first == (
        "MoEUT", "small", f"{ours.parameters:,}", "+0.00%", f"{ours.active_parameters:,}", f"{ours.macs_per_token:,}",
        "128",
    )  # fmt: skip
    assert second[3] == f"{dense.parameters / ours.parameters - 1:+.2%}"


def test_results_are_means_with_errors():
    study = found([], []).study
    _, ours, dense = results(
        replace(found([1.0, 3.0], [5.0]), study=replace(study, metrics=("cross_entropy", "hours")))
    )
    assert ours == ("MoEUT", "small", "0.001", "2", "2 ± 1", "0.5 ± 0")
    assert dense == ("dense", "small", "0.001", "1", "5", "0.5")
    assert results(found([], [5.0]))[1][3:] == ("0", "?", "?")


def test_bytes_are_told_as_such():
    findings = found([1.0], [5.0])
    assert results(replace(findings, study=replace(findings.study, metrics=("memory_bytes",))))[1][-1] == "2 MB"


def test_directions_are_told_as_they_came_out():
    said = "MoEUT small < dense small in cross entropy"
    for losses, numbers, held in (
        (([1.0], [2.0]), "1, 2", "yes (+1, one seed)"),
        (([2.0], [1.0]), "2, 1", "no (-1, one seed)"),
        (([1.0, 3.0], [1.5, 3.5]), "2 ± 1, 2.5 ± 1", "cannot be told (+0.5, ± 1.4)"),
        (([1.0, 1.2], [2.0, 2.2]), "1.1 ± 0.1, 2.1 ± 0.1", "yes (+1, ± 0.14)"),
        (([1.0], []), "1, ?", "not run"),
    ):
        assert directions(found(*losses))[1:] == [(said, numbers, held)]


def test_gaps_are_told_as_differences():
    findings = found([1.0], [4.0])
    ours, dense = findings.study.entrants
    of_gap = Direction(Quantity(ours), gap(ours, dense))
    findings = replace(findings, study=replace(findings.study, directions=[of_gap]))
    assert directions(findings)[1:] == [
        ("MoEUT small < dense small − MoEUT small in cross entropy", "1, 3", "yes (+2, one seed)")
    ]


def test_pictures_of_runs_are_copied(tmp_path: Path):
    """Those of the first seed that is finished; what nobody drew is not told."""
    findings = found([1.0, 2.0], [])
    seen = replace(findings.study, pictures={"inside/map": "where it is", "inside/none": "nothing"})
    drawn = tmp_path / "runs" / "moeut-small-lr0.001-seed0" / "inside"
    drawn.mkdir(parents=True)
    (drawn / "map.png").write_bytes(b"pixels")
    write_metrics(findings, tmp_path)
    write_report(replace(findings, study=seen), tmp_path / "report", [])
    copy = "moeut-small-lr0.001-seed0-map"
    assert (tmp_path / "report" / f"{copy}.png").read_bytes() == b"pixels"
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"![MoEUT small, where it is]({copy}.png)" in text
    assert "nothing" not in text


def test_every_run_and_number_is_written(tmp_path: Path):
    findings = found([1.0, 3.0], [5.0])
    assert [row[:3] for row in runs(findings)[1:]] == [
        ("`moeut-small-lr0.001-seed0`", "1.0000", "30 min 0 s"),
        ("`moeut-small-lr0.001-seed1`", "3.0000", "30 min 0 s"),
        ("`dense-small-lr0.001-seed0`", "5.0000", "30 min 0 s"),
    ]
    write_csv(tmp_path / "runs.csv", run_rows(findings))
    assert [(row["run"], row["seed"], row["cross_entropy"]) for row in rows(tmp_path / "runs.csv")] == [
        ("moeut-small-lr0.001-seed0", "0", "1.0"),
        ("moeut-small-lr0.001-seed1", "1", "3.0"),
        ("dense-small-lr0.001-seed0", "0", "5.0"),
    ]
    write_csv(tmp_path / "entrants.csv", entrant_rows(findings))
    [loss] = [
        row
        for row in rows(tmp_path / "entrants.csv")
        if row["entrant"] == "moeut-small" and row["metric"] == "cross_entropy"
    ]
    assert (loss["mean"], loss["standard_error"], loss["seeds"]) == ("2.0", "1.0", "2")
    assert {row["standard_error"] for row in rows(tmp_path / "entrants.csv") if row["entrant"] == "dense-small"} == {""}


def test_the_report_is_whole(tmp_path: Path):
    manifest = read_manifest(prepared(tmp_path))
    findings = replace(found([1.0], []), left={"dense-small-lr0.001-seed0": "not run yet"}, texts={"words": manifest})
    write_metrics(findings, tmp_path)
    write_report(findings, tmp_path / "report", ["moeut reproduce small"])
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {
        "report.md", "by-size.png", "by-size.svg", "learning-curves.png", "learning-curves.svg", "runs.csv",
        "entrants.csv",
    }  # fmt: skip
    text = (tmp_path / "report" / "report.md").read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "What was asked", "What the paper found", "Who was compared", "On which text", "What came out",
        "What the paper says, and what was found", "What is not finished", "Every run", "How to do it again",
    ]  # fmt: skip
    for words in (
        "Which is better?",
        "Nothing.",
        "![held-out nats a token by size](by-size.png)",
        "![how everybody learnt](learning-curves.png)",
        "- `dense-small-lr0.001-seed0`: not run yet",
    ):
        assert words in text
    assert "```bash\nmoeut reproduce small\n```" in text
    assert "by-learning-rate" not in text
    assert texts(findings)[1][0] == "`words`"
    assert f"{manifest.splits['held_out'].tokens:,}" in texts(findings)[1]
    inside = Direction(Quantity(findings.study.entrants[0], "update of layer 1"), Quantity(findings.study.entrants[0]))
    within = replace(findings, study=replace(findings.study, directions=[inside]))
    assert directions(within)[1][0] == "MoEUT small: update of layer 1 < cross entropy"
    finished = report(replace(findings, left={}), {}, [])
    assert "## What is not finished" not in finished


def test_a_sweep_is_drawn(tmp_path: Path):
    """Every learning rate that was tried, also those that nobody is judged by."""
    findings = found([1.0], [2.0])
    higher = replace(findings.runs[0], learning_rate=0.002)
    findings = replace(
        findings,
        runs=[*findings.runs, higher],
        numbers={**findings.numbers, higher.name: findings.numbers[findings.runs[0].name]},
        texts={"words": read_manifest(prepared(tmp_path))},
    )
    write_metrics(findings, tmp_path)
    write_report(findings, tmp_path / "report", ["moeut reproduce small"])
    assert (tmp_path / "report" / "by-learning-rate.png").is_file()
    assert "(by-learning-rate.png)" in (tmp_path / "report" / "report.md").read_text()
