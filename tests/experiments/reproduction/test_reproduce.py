"""Does a study go from its runs to its report?"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from small_study import prepared, small_study

from moeut.experiments.reproduction.execution import Manner
from moeut.experiments.reproduction.reproduce import Undertaking, expected, reproduce
from moeut.experiments.reproduction.results import trained_numbers
from moeut.experiments.reproduction.runs import Effort
from moeut.experiments.reproduction.scales import TINY
from moeut.experiments.run import train
from moeut.model.cost import cost


def test_from_runs_to_a_report(tmp_path: Path):
    """Three learning rates, two seeds at the best; the runs themselves are trained here, by no child process."""
    study, out = small_study(prepared(tmp_path)), tmp_path / "out"
    effort = Effort(seeds=2, learning_rates=(0.001, 0.01, 0.1))
    undertaking = Undertaking(study, TINY, effort, Manner(out=out, device="cpu", quiet=True))
    for known in (6, 8):
        runs = undertaking.runs()
        assert len(runs) == known
        for run in runs:
            train(run.config(out), run.folder(out), quiet=True)
    findings, outcome = reproduce(undertaking, task_folder=None, command="moeut reproduce")
    assert outcome == ({}, {}, {})
    assert findings.left == {}
    for entrant in study.entrants:
        tried = [run for run in runs if run.entrant == entrant and run.seed == 0]
        best = min(tried, key=lambda run: findings.numbers[run.name]["cross_entropy"])
        assert list(findings.judged[entrant.name]) == [best, replace(best, seed=1)]
        losses = [findings.numbers[run.name]["cross_entropy"] for run in findings.judged[entrant.name]]
        assert findings.estimates[entrant.name]["cross_entropy"].mean == pytest.approx(sum(losses) / 2)
    assert undertaking.report_folder == out / "small"
    assert (out / "small" / "report.md").is_file()
    other = replace(undertaking, scale=replace(TINY, text="texts/verse.txt"))
    assert other.report_folder == out / "small-verse"


def test_a_learning_rate_that_is_too_large_is_no_one_s_best(tmp_path: Path):
    """It is tried once, told, and the further seeds go to the other rate."""
    study, out = small_study(prepared(tmp_path), num_steps=20), tmp_path / "out"
    study = replace(study, entrants=study.entrants[:1], directions=[])
    effort = Effort(seeds=2, learning_rates=(1e30, 0.001))
    undertaking = Undertaking(study, TINY, effort, Manner(out=out, device="cpu", quiet=True))
    findings, outcome = reproduce(undertaking, task_folder=None, command="moeut reproduce")
    [(name, why)] = outcome.given_up.items()
    assert name == "moeut-small-lr1e+30-seed0"
    assert re.match(r"step \d+: not finite is the ", why)
    assert (outcome.failed, outcome.taken, findings.left) == ({}, {}, {name: why})
    assert [run.learning_rate for run in findings.judged["moeut-small"]] == [0.001, 0.001]
    files = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert reproduce(undertaking, task_folder=None, command="")[1] == outcome
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == files


def test_what_was_not_asked_for_is_named_as_not_run(tmp_path: Path):
    study, out = small_study(prepared(tmp_path)), tmp_path / "out"
    undertaking = Undertaking(study, TINY, Effort(), Manner(out=out, device="cpu", quiet=True), ["moeut-*"])
    [run] = undertaking.runs()
    train(run.config(out), run.folder(out), quiet=True)
    findings, outcome = reproduce(undertaking, task_folder=None, command="moeut reproduce")
    assert outcome == ({}, {}, {})
    assert findings.left == {"dense-small-lr0.001-seed0": "not run yet"}
    assert "- `dense-small-lr0.001-seed0`: not run yet" in (undertaking.report_folder / "report.md").read_text()
    other = replace(
        undertaking,
        study=replace(
            study, entrants=[replace(study.entrants[0], training=replace(study.entrants[0].training, num_steps=5))]
        ),
    )
    with pytest.raises(ValueError, match=r"another configuration \(training\.num_steps: 4, now 5\)"):
        reproduce(other, task_folder=None, command="")


def test_what_cannot_be_measured_is_refused_before_anything_is_trained(tmp_path: Path):
    def refuse(means):
        raise ValueError("no items")

    study = replace(small_study(prepared(tmp_path)), measure=refuse)
    undertaking = Undertaking(study, TINY, Effort(), Manner(out=tmp_path / "out", device="cpu", quiet=True))
    with pytest.raises(ValueError, match="no items"):
        reproduce(undertaking, task_folder=None, command="")
    assert not (tmp_path / "out" / "runs").exists()


def test_what_runs_would_be_is_known_before(tmp_path: Path):
    study = small_study(prepared(tmp_path))
    undertaking = Undertaking(study, TINY, Effort(), Manner(out=tmp_path / "out", device="cpu", quiet=True))
    ours, _ = expected(undertaking)
    costs = cost(study.entrants[0].model, 16)
    assert (ours.parameters, ours.tokens) == (costs.parameters, 4 * 32)
    assert ours.macs == 4 * 32 * costs.training_macs_per_token
    assert ours.seconds > 0
    assert not (tmp_path / "out").exists()
    assert (
        trained_numbers(undertaking.runs()[0].folder(tmp_path / "out"), undertaking.runs()[0].config(tmp_path)) is None
    )
