"""Does a run learn, and does it go on after any stop to the same numbers, to the last bit?"""

import math
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import (
    DROPOUT,
    KILLED_RUN,
    final_state,
    metrics,
    run_training,
    tiny_model,
    tiny_training,
)

from moeut.model.language_model import LanguageModel
from moeut.training.optimizer import OptimizerConfig
from moeut.training.report import given_up
from moeut.training.retention import checkpoints


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


@pytest.mark.parametrize(
    ("dropout", "stop_at", "training", "how"),
    [
        (0.0, 10, {}, {}),
        (0.2, 1, {}, {}),
        (0.2, 7, {}, {}),
        (0.2, 12, {"sample_every_steps": 4}, {}),
        (0.2, 10, {"micro_batch_size": 2}, {}),
        (0.2, 10, {"gradient_checkpointing": True}, {}),
        (0.0, 10, {"precision": "bfloat16"}, {}),
        (0.2, 10, {"micro_batch_size": 2}, {"compile": "aot_eager"}),
    ],
    ids=str,
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, dropout, stop_at, training, how):
    model = tiny_model(hidden_dropout=dropout, feed_forward=replace(tiny_model().feed_forward, expert_dropout=dropout))
    config = tiny_training(**training)
    run_training(tmp_path / "whole", config, model, **how)

    def terminate(step: int) -> None:
        if step == stop_at - 1:
            signal.raise_signal(signal.SIGTERM)

    stopped = run_training(tmp_path / "parts", config, model, before_step=terminate, **how)
    assert (stopped.step, stopped.interrupted_by) == (stop_at, signal.SIGTERM)
    assert (tmp_path / "parts/final").resolve().name == f"step-{stop_at:08d}"
    steps: list[int] = []
    resumed = run_training(tmp_path / "parts", config, model, before_step=steps.append, **how)
    assert steps == list(range(stop_at, 20))
    assert resumed.interrupted_by is None
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert final_state(tmp_path / "parts") == final_state(tmp_path / "whole")
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("parts", "whole")]
    assert samples[0] == samples[1]
    assert len(samples[0].splitlines()) == (5 if "sample_every_steps" in training else 0)


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


def test_a_run_that_is_not_finite_any_more_ends_and_says_where(tmp_path):
    """Weights of 1e30 and more after the second step: skipped from then on, and a checkpoint to go back to."""
    training = tiny_training(
        optimizer=OptimizerConfig(learning_rate=1e30, max_grad_norm=None), save_every_steps=1, max_skipped_steps=3,
        report_every_steps=1,
    )  # fmt: skip
    message = (
        r"^step (\d+): 3 steps in a row had no finite loss and gradient; not finite is the output of [^;]+; "
        r"the last good checkpoint is \S+checkpoints/step-\d{8}; lower training.optimizer.learning_rate"
    )
    with pytest.raises(ValueError, match=message) as error:
        run_training(tmp_path / "run", training)
    *lines, last = metrics(tmp_path / "run")
    assert [line["skipped_steps"] for line in lines[-4:]] == [0, 1, 2, 3]
    assert [line["cross_entropy"] for line in lines[-3:]] == [None] * 3
    assert f"step {lines[-1]['step']}:" in str(error.value)
    assert (last["split"], last["step"]) == ("given_up", lines[-1]["step"])
    assert last["not_finite"] in str(error.value)
    assert given_up(tmp_path / "run") == f"step {last['step']}: not finite is {last['not_finite']}"


def test_a_step_that_is_not_finite_is_skipped(tmp_path):
    """The batch of that step counts for nothing: weights and optimizer are as before; the run goes on."""
    broken: list[LanguageModel] = []

    def spoil(step: int) -> None:
        [model] = broken
        hook = model.norm.register_forward_hook(lambda *call: call[-1] * math.nan)
        if step == 3:
            handles.append(hook)
        else:
            hook.remove()
            if handles:
                handles.pop().remove()

    handles: list[Any] = []
    training = tiny_training(report_every_steps=1, save_every_steps=1, keep_checkpoints=20)
    run_training(tmp_path / "run", training, before_step=spoil, change=broken.append)
    lines = [line for line in metrics(tmp_path / "run") if line["split"] == "train"]
    assert [line["skipped_steps"] for line in lines] == [0] * 3 + [1] * 17
    assert [line["step"] for line in lines if line["cross_entropy"] is None] == [4]
    folders = [tmp_path / f"run/checkpoints/step-{step:08d}" for step in (3, 4, 5)]
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        before, skipped, after = ((folder / name).read_bytes() for folder in folders)
        assert before == skipped != after


def test_accumulating_gradients_is_training_on_the_whole_batch(tmp_path):
    """Sums in another order, so nearly; the same steps in micro-batches of 1, 2 (and a rest) and 3 sequences."""
    curves = []
    for size in (1, 2, 3):
        run_training(tmp_path / str(size), tiny_training(micro_batch_size=size, optimizer=OptimizerConfig()))
        curves.append([line["cross_entropy"] for line in metrics(tmp_path / str(size))])
    assert curves[0] == pytest.approx(curves[2], rel=1e-4)
    assert curves[1] == pytest.approx(curves[2], rel=1e-4)


def test_compiled_is_eager(tmp_path):
    curves = []
    for compile in (None, "aot_eager"):
        run = tmp_path / str(compile)
        run_training(run, tiny_training(optimizer=OptimizerConfig()), compile=compile)
        curves.append([line["cross_entropy"] for line in metrics(run)])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


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
    assert lines[3].startswith("train  20/20  loss ")
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
