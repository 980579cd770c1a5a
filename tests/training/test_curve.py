"""Is the picture drawn from a run's metrics?"""

import json

import pytest

from moeut.training.curve import plot_curve, smooth


def write_metrics(run):
    run.mkdir()
    lines = [{"split": "train", "step": step, "cross_entropy": 5 / step} for step in range(1, 30)]
    lines.append({"split": "held_out", "step": 29, "cross_entropy": 0.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib", reason="plots are an extra")
    write_metrics(tmp_path / "run")
    plot_curve(tmp_path / "run", tmp_path / "curve.png")
    content = (tmp_path / "curve.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20]) == 960  # its width


def test_without_metrics(tmp_path):
    pytest.importorskip("matplotlib", reason="plots are an extra")
    with pytest.raises(ValueError, match="no run folder"):
        plot_curve(tmp_path, tmp_path / "curve.png")


def test_smoothing_by_hand():
    assert smooth([4.0, 1.0], 2) == [4.0, pytest.approx((0.5 * 4 + 1) / 1.5)]
    assert smooth([2.0] * 5, 10) == pytest.approx([2.0] * 5)
    assert smooth([1.0, 3.0], 1) == [1.0, 3.0]
