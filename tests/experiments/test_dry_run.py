"""Does a dry run say what a run would be, and write nothing?"""

from dataclasses import replace
from pathlib import Path

import pytest
from small_run import prepared, small_run

from moeut.experiments.dry_run import dry_run, duration, report
from moeut.model.cost import cost


def test_everything_is_said_and_nothing_written(tmp_path: Path):
    config = small_run(prepared(tmp_path), micro_batch_size="auto", evaluate_every_steps=3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    facts = dry_run(config, quiet=True)
    assert facts is not None
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert facts["parameters"] == cost(config.model).parameters
    assert (facts["steps"], facts["tokens"], facts["evaluations"]) == (8, 8 * 32, 3)
    assert facts["config"]["training"]["micro_batch_size"] == 2
    steps, scoring = 8 * facts["step_seconds"], 3 * facts["evaluation_seconds"]
    assert facts["expected_seconds"] == pytest.approx(steps + scoring)
    assert facts["step_seconds"] > 0
    lines = report(facts)
    assert "nothing was written" in lines[-1]
    assert any(f"{facts['parameters']:,}" in line for line in lines)
    assert any("8" in line and "of 32 tokens, 2 of 2 sequences" in line for line in lines)


def test_what_cannot_be_trained_is_refused(tmp_path: Path):
    config = small_run(prepared(tmp_path))
    with pytest.raises(ValueError, match=r"more than model\.vocab_size 100"):
        dry_run(replace(config, model=replace(config.model, vocab_size=100)), quiet=True)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (12, "12 s"), (200, "3 min 20 s"), (18_120, "5 h 2 min"), (273_600, "3 d 4 h")],
)
def test_durations(seconds: float, words: str):
    assert duration(seconds) == words
