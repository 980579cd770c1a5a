"""How did learning go, at a glance? A picture of a run's losses."""

from collections.abc import Sequence
from pathlib import Path

from moeut.files import replacing
from moeut.training.report import read_metrics


def plot_curve(run: Path, png: Path, smoothing_lines: float = 5.0) -> None:
    """Draw the training loss of a run, smoothed over about so many lines of its metrics, and the held-out points.

    Raises ValueError if the run has no metrics or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'moeut[plot]'") from None
    lines = [line for line in read_metrics(run) if line["cross_entropy"] is not None]
    train = [line for line in lines if line["split"] == "train"]
    held_out = [line for line in lines if line["split"] == "held_out"]
    losses = [line["cross_entropy"] for line in train]
    # A figure of its own instead of pyplot, which keeps every figure and chooses a window system.
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in train]
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(steps, smooth(losses, smoothing_lines), color="tab:blue", label="training, smoothed")
    axes.plot(
        [line["step"] for line in held_out], [line["cross_entropy"] for line in held_out],
        "o", color="tab:orange", label="held out",
    )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("cross entropy (nats per token)")
    axes.set_title(run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(png) as file:
        figure.savefig(file, format="png", dpi=120)


def smooth(values: Sequence[float], length: float) -> list[float]:
    """Exponential moving average: s_i = Σ_{j≤i} a^{i−j} v_j / Σ_{j≤i} a^{i−j} with a = 1 − 1/length."""
    decay = 1 - 1 / length
    weighted, weight = 0.0, 0.0
    result: list[float] = []
    for value in values:
        weighted, weight = decay * weighted + value, decay * weight + 1
        result.append(weighted / weight)
    return result
