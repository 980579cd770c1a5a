"""Do the lines of the metrics say what happened, once and only once?"""

import json
import math

import pytest

from moeut.evaluation.perplexity import Perplexity
from moeut.training.progress import Progress
from moeut.training.report import Reporter, finished, read_metrics
from moeut.training.step import StepResult
from moeut.training.trackers import LinesFile

HELD_OUT = Perplexity(2.0, math.exp(2.0), 1.5, 100, 300, 0.1)


def result(cross_entropy: float = 3.0, *, applied: bool = True) -> StepResult:
    return StepResult(cross_entropy, -0.25, 2.0, 1e-3, 0.5, applied)


def build(run, every: int = 2) -> Reporter:
    return Reporter(
        [LinesFile(run / "metrics.jsonl")], Progress(quiet=True), num_steps=9, tokens_per_step=100, every=every
    )


def test_a_line_holds_means(tmp_path):
    with build(tmp_path / "run") as reporter:
        reporter.resume(0, {})
        for step, loss in enumerate((1.0, 2.0, 5.0, 6.0), 1):
            reporter.step(step, result(loss))
        reporter.held_out(4, HELD_OUT)
    assert read_metrics(tmp_path / "run") == [
        {
            "split": "train", "step": 2, "tokens": 200, "cross_entropy": 1.5, "perplexity": math.exp(1.5),
            "regulariser": -0.25, "learning_rate": 1e-3, "gradient_norm": 2.0, "skipped_steps": 0,
            "tokens_per_second": 200.0, "seconds": 1.0,
        },
        {
            "split": "train", "step": 4, "tokens": 400, "cross_entropy": 5.5, "perplexity": math.exp(5.5),
            "regulariser": -0.25, "learning_rate": 1e-3, "gradient_norm": 2.0, "skipped_steps": 0,
            "tokens_per_second": 200.0, "seconds": 2.0,
        },
        {
            "split": "held_out", "step": 4, "tokens": 400, "cross_entropy": 2.0, "perplexity": math.exp(2.0),
            "bits_per_byte": 1.5, "standard_error": 0.1, "scored_tokens": 100, "scored_bytes": 300,
        },
    ]  # fmt: skip


@pytest.mark.parametrize("resumed_at", range(6))
def test_lines_after_a_resumption_are_those_of_one_run(tmp_path, resumed_at):
    """The first run gets to step 6; its checkpoint is that of `resumed_at`, and the evaluation there is done again."""

    def steps(reporter: Reporter, first: int) -> dict[int, dict]:
        states = {}
        for step in range(first, 7):
            if step and step % 3 == 0:
                reporter.held_out(step, HELD_OUT)
            if step < 6:
                reporter.step(step + 1, result(step * 0.5))
                states[step + 1] = reporter.state()
        return states

    with build(tmp_path) as reporter:
        reporter.resume(0, {})
        states = {0: {}} | steps(reporter, 0)
    expected = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(expected + '{"split": "train", "step": 8, "cro')
    with build(tmp_path) as reporter:
        reporter.resume(resumed_at, json.loads(json.dumps(states[resumed_at])))
        steps(reporter, resumed_at)
    assert (tmp_path / "metrics.jsonl").read_text() == expected


def test_a_skipped_step_is_counted_and_no_part_of_the_means(tmp_path):
    with build(tmp_path) as reporter:
        reporter.resume(0, {})
        reporter.step(1, result(math.nan, applied=False))
        reporter.step(2, result(4.0))
        reporter.step(3, result(math.inf, applied=False))
        reporter.step(4, result(math.inf, applied=False))
    first, second = read_metrics(tmp_path)
    assert (first["cross_entropy"], first["skipped_steps"]) == (4.0, 1)
    assert (second["cross_entropy"], second["perplexity"], second["skipped_steps"]) == (None, None, 3)


def test_what_a_finished_run_said_is_found(tmp_path):
    with build(tmp_path) as reporter:
        reporter.resume(0, {})
        reporter.held_out(6, HELD_OUT)
    assert finished(tmp_path, 6) == HELD_OUT
    assert finished(tmp_path, 9) is None
    (tmp_path / "metrics.jsonl").write_text('{"split": "held_out", "step": 6}\n{"step": 6}\n')
    assert finished(tmp_path, 6) is None


def test_infinity_is_null(tmp_path):
    with build(tmp_path, every=1) as reporter:
        reporter.resume(0, {})
        reporter.step(1, result(5000.0))
    (line,) = read_metrics(tmp_path)
    assert (line["cross_entropy"], line["perplexity"]) == (5000.0, None)


def test_a_folder_without_metrics(tmp_path):
    with pytest.raises(ValueError, match="this is no run folder"):
        read_metrics(tmp_path)
