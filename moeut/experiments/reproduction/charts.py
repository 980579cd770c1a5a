"""How does a study look? A curve for each system with error bars over seeds; how everybody learnt, and was tuned."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moeut.experiments.reproduction.findings import Findings
from moeut.experiments.reproduction.study import LOSS, LOSS_LABEL, Chart, Quantity
from moeut.files import replacing
from moeut.training.report import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")
MARKERS = "osD^vPX"
LEARNING, TUNING = "learning-curves", "by-learning-rate"
BEGINNING = 0.02
"""Of a training; its loss is not drawn, because next to it nothing else can be told apart."""
Point = tuple[float | str, float, float]
"""x, y, and the standard error of y, 0 where nothing is known of it."""


def curves(chart: Chart, findings: Findings) -> dict[str, list[Point]]:
    """The points of each system, from left to right; places that are no numbers stay in the order of the entrants."""
    found: dict[str, list[Point]] = defaultdict(list)
    for entrant in findings.study.entrants:
        for x, metric in chart.points(entrant).items():
            known = findings.estimate(Quantity(entrant, metric))
            if known is not None:
                found[entrant.system].append((x, known.mean, known.standard_error if known.seeds > 1 else 0.0))
    return {
        system: points if any(isinstance(point[0], str) for point in points) else sorted(points)
        for system, points in found.items()
    }


def learning_curves(findings: Findings, out: Path) -> dict[str, list[tuple[float, float]]]:
    """Tokens and cross entropy in training of each entrant's first finished run; `out` has the runs."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entrant, run in findings.first_runs():
        lines = [line for line in read_metrics(run.folder(out)) if line["split"] == "train"]
        found[entrant.label] = [
            (line["tokens"], line["cross_entropy"])
            for line in lines
            if line["tokens"] > BEGINNING * lines[-1]["tokens"] and line["cross_entropy"] is not None
        ]
    return found


def tuning_curves(findings: Findings) -> dict[str, list[Point]]:
    """Held-out loss of each entrant's first seed by learning rate; nothing where all that is known has one rate."""
    found: dict[str, list[Point]] = defaultdict(list)
    for run in sorted(findings.runs, key=lambda run: run.learning_rate):
        if run.seed == 0 and run.name in findings.numbers:
            known = findings.numbers[run.name][LOSS]
            found[run.entrant.label].append((run.learning_rate, known, 0.0))
    rates = {rate for points in found.values() for rate, _, _ in points}
    return found if len(rates) > 1 else {}


def draw_tuning(by_entrant: Mapping[str, Sequence[Point]], folder: Path) -> None:
    """The same as a figure, on a logarithmic axis."""
    draw(Chart(TUNING, "learning rate", LOSS_LABEL, lambda entrant: {}, logarithmic=True), by_entrant, folder)


def draw(chart: Chart, by_system: Mapping[str, Sequence[Point]], folder: Path) -> None:
    """Write the figure as PNG and SVG. Needs matplotlib."""
    from matplotlib.ticker import MaxNLocator

    with _figure(folder / chart.name, chart.x, chart.y) as axes:
        for number, (system, points) in enumerate(by_system.items()):
            x, y, errors = zip(*points, strict=True)
            axes.errorbar(x, y, yerr=errors, label=system, marker=MARKERS[number % len(MARKERS)], capsize=3)
        if chart.logarithmic:
            axes.set_xscale("log")
        elif not any(isinstance(x, str) for points in by_system.values() for x, _, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_learning(by_entrant: Mapping[str, Sequence[tuple[float, float]]], folder: Path) -> None:
    """The same for learning curves."""
    from matplotlib.ticker import EngFormatter

    with _figure(folder / LEARNING, "tokens learnt from", "nats a token, in training") as axes:
        for name, points in by_entrant.items():
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axes.xaxis.set_major_formatter(EngFormatter())


@contextmanager
def _figure(path: Path, x: str, y: str) -> "Iterator[Axes]":
    from matplotlib.figure import Figure

    # A figure of its own instead of pyplot, which keeps every figure and chooses a window system.
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend()
    for form in FORMATS:
        with replacing(path.with_name(f"{path.name}.{form}")) as file:
            figure.savefig(file, format=form, dpi=150)
