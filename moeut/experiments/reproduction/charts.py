"""How does a study look? A figure of its entrants' numbers, a curve for each system, with error bars over seeds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from moeut.experiments.reproduction.findings import Findings
from moeut.experiments.reproduction.study import Chart, Quantity
from moeut.files import replacing

FORMATS = ("png", "svg")
MARKERS = "osD^vPX"
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


def draw(chart: Chart, by_system: Mapping[str, Sequence[Point]], folder: Path) -> None:
    """Write the figure as PNG and SVG. Needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # A figure of its own instead of pyplot, which keeps every figure and chooses a window system.
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, (system, points) in enumerate(by_system.items()):
        x, y, errors = zip(*points, strict=True)
        axes.errorbar(x, y, yerr=errors, label=system, marker=MARKERS[number % len(MARKERS)], capsize=3)
    if chart.logarithmic:
        axes.set_xscale("log")
    elif not any(isinstance(x, str) for points in by_system.values() for x, _, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.grid(alpha=0.3)
    axes.legend()
    for form in FORMATS:
        with replacing(folder / f"{chart.name}.{form}") as file:
            figure.savefig(file, format=form, dpi=150)
