"""Does a run learn, and does it go on after any stop to the same numbers, to the last bit?"""

import math
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tiny_run import (
    DROPOUT,
    KILLED_RUN,
    final_state,
    metrics,
    run_training,
    tiny_model,
    tiny_training,
)

from moeut.training.checkpoint import checkpoints
from moeut.training.loop import TrainingConfig
from moeut.training.optimizer import OptimizerConfig
from moeut.training.schedule import ConstantSchedule


def test_a_run_learns(tmp_path):
    result = run_training(tmp_path / "run", tiny_training(num_steps=150, evaluate_every_steps=75))
    assert result.step == 150
    assert result.interrupted_by is None
    assert result.held_out is not None
    first, last = (line for line in metrics(tmp_path / "run") if line["split"] == "held_out")
    assert last["cross_entropy"] == result.held_out.cross_entropy < first["cross_entropy"]
    # Each token is one of three that can follow: ln 3 = 1.10; knowing nothing costs ln 23 = 3.14.
    assert result.held_out.cross_entropy < 1.7


def test_lines_stand_for_their_steps(tmp_path):
    run_training(tmp_path / "run", tiny_training())
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if line["split"] == "train"] == [3, 6, 9, 12, 15, 18, 20]
    assert [line["step"] for line in lines if line["split"] == "held_out"] == [6, 12, 18, 20]
    assert all(line["tokens"] == 36 * line["step"] for line in lines)
    # The learning rate is that of the line's last step: step 3, counted from 0, is step 2 of a warm-up over 5.
    assert lines[0]["learning_rate"] == pytest.approx(1e-2 * 3 / 5)
    every = tiny_training(report_every_steps=1)
    run_training(tmp_path / "every", every)
    single = [line for line in metrics(tmp_path / "every") if line["split"] == "train"]
    assert lines[0]["cross_entropy"] == pytest.approx(sum(line["cross_entropy"] for line in single[:3]) / 3)
    assert all(line["perplexity"] == pytest.approx(math.exp(line["cross_entropy"])) for line in lines)


@pytest.mark.parametrize(("dropout", "stop_at"), [(0.0, 10), (0.2, 1), (0.2, 7), (0.2, 12)])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, dropout, stop_at):
    model = tiny_model(hidden_dropout=dropout, feed_forward=replace(tiny_model().feed_forward, expert_dropout=dropout))
    run_training(tmp_path / "whole", tiny_training(), model)

    def terminate(step: int) -> None:
        if step == stop_at - 1:
            signal.raise_signal(signal.SIGTERM)

    stopped = run_training(tmp_path / "parts", tiny_training(), model, before_step=terminate)
    assert (stopped.step, stopped.interrupted_by) == (stop_at, signal.SIGTERM)
    assert (tmp_path / "parts/final").resolve().name == f"step-{stop_at:08d}"
    steps: list[int] = []
    resumed = run_training(tmp_path / "parts", tiny_training(), model, before_step=steps.append)
    assert steps == list(range(stop_at, 20))
    assert resumed.interrupted_by is None
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert final_state(tmp_path / "parts") == final_state(tmp_path / "whole")


def test_dropout_draws_from_the_saved_random_state(tmp_path):
    """Without its random state a resumed run would differ: the comparison above sees it."""
    model = tiny_model(hidden_dropout=0.2)
    run_training(tmp_path / "whole", tiny_training(), model)

    def disturb(step: int) -> None:
        if step == 10:
            torch.manual_seed(1)

    run_training(tmp_path / "other", tiny_training(), model, before_step=disturb)
    assert final_state(tmp_path / "other") != final_state(tmp_path / "whole")
    assert metrics(tmp_path / "other")[:3] == metrics(tmp_path / "whole")[:3]


def test_stopped_during_the_evaluation_of_its_last_step(tmp_path):
    """The checkpoint comes before the evaluation, which is then done again; and a finished run stays as it is."""
    run_training(tmp_path / "run", tiny_training())
    expected = metrics(tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]) + '{"split": "held_')
    steps: list[int] = []
    result = run_training(tmp_path / "run", tiny_training(), before_step=steps.append)
    assert (steps, result.step) == ([], 20)
    assert metrics(tmp_path / "run") == expected


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    training = tiny_training(optimizer=OptimizerConfig(learning_rate=1e30, max_grad_norm=None))
    with pytest.raises(ValueError, match=r"^step \d+: the (loss|length of the gradient) is (nan|inf); lower"):
        run_training(tmp_path / "run", training)
    assert all(torch.isfinite(torch.tensor(line["cross_entropy"])) for line in metrics(tmp_path / "run"))


def test_training_in_another_thread(tmp_path):
    """Only the main thread may listen to signals; a notebook's worker trains all the same."""
    results = []
    training = tiny_training(num_steps=5)
    thread = threading.Thread(target=lambda: results.append(run_training(tmp_path / "run", training)))
    thread.start()
    thread.join()
    assert results[0].step == 5


def test_progress_outside_a_terminal(tmp_path, capsys):
    run_training(tmp_path / "run", tiny_training(), quiet=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 6", "step 12", "step 18", "train", "step 20"]
    assert lines[3].startswith("train  20/20  cross entropy ")
    run_training(tmp_path / "quiet", tiny_training())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("num_steps", "kills"), [(24, 5), pytest.param(120, 50, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, num_steps, kills):
    training = tiny_training(num_steps=num_steps, **KILLED_RUN)
    run_training(tmp_path / "whole", training, tiny_model(hidden_dropout=DROPOUT))
    program = Path(__file__).with_name("tiny_run.py")
    command = [sys.executable, *map(str, (program, tmp_path / "killed", num_steps, kills, 0))]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "whole")
    assert len(checkpoints(tmp_path / "killed")) == 2
    assert not list((tmp_path / "killed").rglob("*.partial"))


def test_configurations_are_read_and_refused():
    kind = TypeAdapter(TrainingConfig)
    config = kind.validate_json(
        '{"num_steps": 10, "batch_size": 1, "context_length": 8, "schedule": {"kind": "constant", "cooldown_steps": 4}}'
    )
    assert config.schedule == ConstantSchedule(cooldown_steps=4)
    with pytest.raises(ValidationError, match="schedule: 0 warm-up and 11 cool-down steps do not fit into 10"):
        replace(config, schedule=ConstantSchedule(cooldown_steps=11))
    with pytest.raises(ValidationError):
        replace(config, num_steps=0)
