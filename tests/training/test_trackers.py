"""Do reports arrive where they are asked for, once each, whatever was stopped and done again?"""

import math
import os
import sys
import time
from pathlib import Path

import pytest

from moeut.training.trackers import LinesFile, TensorBoard, WeightsAndBiases, finite, read_lines, scalars


def line(step: int, split: str = "train", loss: float = 1.0) -> dict:
    return {"split": split, "step": step, "cross_entropy": loss, "dead_experts": {"0.feed_forward": 2}}


def test_numbers_of_a_report():
    assert dict(scalars(line(3))) == {"cross_entropy": 1.0, "dead_experts/0.feed_forward": 2}
    assert finite({"a": math.inf, "b": {"c": math.nan, "d": 1.0}}) == {"a": None, "b": {"c": None, "d": 1.0}}


def test_lines_of_steps_that_are_done_again_are_replaced(tmp_path: Path):
    path = tmp_path / "run" / "metrics.jsonl"
    file = LinesFile(path)
    file.resume(0)
    for step in (1, 2, 3):
        file.write(line(step))
    file.write(line(3, "held_out"))
    file.flush()
    file.close()
    with path.open("a") as torn:
        torn.write('{"split": "train", "st')
    again = LinesFile(path)
    again.resume(3)
    assert [(kept["split"], kept["step"]) for kept in read_lines(path)] == [("train", 1), ("train", 2), ("train", 3)]
    again.write(line(3, "held_out", loss=0.5))
    again.close()
    assert read_lines(path)[-1]["cross_entropy"] == 0.5


@pytest.mark.parametrize("line", [b"[1, 2]", b"\xff\xfe", b'{"split": "train", "st', b"{}", b'{"step": "1"}', b"NaN"])
def test_a_line_that_no_run_wrote_is_named(tmp_path: Path, line: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is not what a run wrote; remove it$"):
        read_lines(path)


def test_tensorboard_gets_every_number(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.resume(0)
    board.write(line(1, loss=3.0))
    board.write(line(2, loss=2.0))
    board.write(line(2, "held_out", loss=2.5))
    board.flush()
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/cross_entropy")] == [(1, 3.0), (2, 2.0)]
    assert [event.value for event in events.Scalars("held_out/cross_entropy")] == [2.5]
    assert events.Scalars("train/dead_experts/0.feed_forward")[0].value == 2


@pytest.mark.slow
def test_weights_and_biases_works_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = WeightsAndBiases(tmp_path, "moeut-test", {"seed": 1})
    tracker.resume(0)
    tracker.write(line(1))
    tracker.flush()
    tracker.close()
    [offline] = (tmp_path / "wandb").glob("offline-run-*")
    [record] = offline.glob("*.wandb")
    # wandb's own process writes it, and may do so a moment after it has said that it is done.
    deadline = time.monotonic() + 60
    while b"train/dead_experts/0.feed_forward" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.2)
    content = record.read_bytes()
    assert b"train/cross_entropy" in content
    assert b"train/dead_experts/0.feed_forward" in content


@pytest.mark.parametrize(
    ("build", "missing", "said"),
    [
        (lambda run: TensorBoard(run), "torch.utils.tensorboard", "--tensorboard needs tensorboard: pip install"),
        (lambda run: WeightsAndBiases(run, "p", {}), "wandb", "--wandb needs wandb: pip install"),
    ],
)
def test_what_is_not_installed_is_named(build, missing: str, said: str, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=said):
        build(tmp_path)
    assert os.listdir(tmp_path) == []
