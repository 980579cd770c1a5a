"""How does a measure look? Each plot a function of measures → a figure; all of them look alike.

A figure is as wide as a column of a paper for each model. Heat maps are grids of panels, a row for each layer and a
column for each model; curves of several models share their axes. Colours are told apart by everybody.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeut.analysis.measures import Floats, preference_order, ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_INCHES = 3.3
SMALL, NORMAL = 6.5, 8.0
"""Sizes of letters in points."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, for what has no order; what has one takes its colours from viridis."""
NEVER = "#d9d9d9"
"""Where there is nothing to show: 0/0."""
NUMBERED = 9
"""Matrices of at most so many rows have numbers in their cells."""
LABELS = 10
CURVES = 5
RANKS = 1000


class Panel(NamedTuple):
    """A part of a figure: a measure, and what its rows stand for, such as executed layers."""

    title: str
    values: NDArray[Any]
    rows: Sequence[Any]


Grid = Sequence[Sequence[Panel | None]]
"""Panels in rows and columns; None: an empty place."""


def experts_across_depth(grid: Grid) -> "Figure":
    """When is each expert used? Panels of `measures.layer_preference`, experts from early to late ones."""

    def ordered(panel: Panel) -> Panel:
        dead = int(np.isnan(panel.values[0]).sum())
        title = f"{panel.title} ({dead} never used, grey)" if dead else panel.title
        return panel._replace(title=title, values=panel.values[:, preference_order(panel.values)])

    grid = [[panel and ordered(panel) for panel in row] for row in grid]
    return _heat_maps(
        grid,
        x="expert, early to late",
        y="executed layer",
        colour="share of its uses",
        low=0,
        high=_numbers(grid).max(initial=0) or 1,
    )


def similarity_between_depths(grid: Grid, colour: str, x: str = "executed layer") -> "Figure":
    """How alike are depths? Panels of square matrices such as `measures.overlap`; `colour` says which it is."""
    lowest = _numbers(grid).min(initial=0)
    return _heat_maps(grid, x=x, y=x, colour=colour, low=lowest, high=1, square=True)


def distinct_by_token(grid: Grid) -> "Figure":
    """Do frequent tokens meet more experts? Panels of `measures.distinct_share`, columns from the most frequent one."""
    return _heat_maps(
        grid, x="token, by frequency", y="executed layer", colour="share of the token's experts", low=0, high=1
    )


def lift_by_place(grid: Grid, y: str) -> "Figure":
    """Do experts prefer a place? Panels of `measures.lift` [places, X], experts from those of the first places on."""

    def ordered(panel: Panel) -> Panel:
        shares = panel.values / np.maximum(np.nansum(panel.values, axis=0), np.finfo(np.float64).tiny)
        centres = np.nansum(np.arange(len(shares))[:, None] * shares, axis=0)
        with np.errstate(divide="ignore"):
            doublings = np.log2(panel.values[:, np.argsort(centres, kind="stable")])
        return panel._replace(values=np.clip(doublings, -2, 2))

    grid = [[panel and ordered(panel) for panel in row] for row in grid]
    return _heat_maps(
        grid, x="expert, early to late", y=y, colour="log₂ lift (±2 and beyond)", low=-2, high=2, colours="PuOr_r"
    )


def distinct_by_rank(panels: Sequence[Panel]) -> "Figure":
    """How many experts does a token meet? Panels of `measures.distinct_experts`, for some of their depths.

    Of the paper's 18 layers these are its own: every fourth.
    """
    with _drawing(1, len(panels), 2.3) as (figure, grid):
        for axes, panel in zip(grid[0], panels, strict=True):
            rows = spread(len(panel.rows), CURVES)
            for number, row in enumerate(rows):
                curve = ranked(panel.values[row])[:RANKS]
                axes.plot(
                    np.arange(1, len(curve) + 1), curve, color=_shade(number, len(rows)), label=str(panel.rows[row])
                )
            axes.set(xlabel="token, by number of experts", ylabel="distinct experts", title=panel.title, ylim=(0, None))
            axes.legend(title="executed layer")
    return figure


def usage_by_rank(panels: Sequence[Panel]) -> "Figure":
    """How evenly are experts used? For each layer the use of its experts, most used first; 1 where all are alike.

    values of a panel: [layers, X] counts of selections.
    """
    with _drawing(1, len(panels), 2.3) as (figure, grid):
        for axes, panel in zip(grid[0], panels, strict=True):
            for number, counts in enumerate(panel.values):
                used = np.sort(counts[counts > 0])[::-1] / max(counts.mean(), 1e-12)
                places = 100 * np.arange(1, len(used) + 1) / len(counts)
                axes.plot(places, used, color=_shade(number, len(panel.rows)), label=str(panel.rows[number]))
            axes.axhline(1, color="black", linewidth=0.5, linestyle=":")
            axes.set(
                xlabel="experts, most used first (%)", ylabel="use / even use", title=panel.title, xlim=(0, 100)
            )  # fmt: skip
            _whole_decades(axes)
            axes.legend(title="layer")
    return figure


def update_sizes(streams: Mapping[str, tuple[Floats, Floats, Floats]]) -> "Figure":
    """How much does each layer change the stream? Its size before each layer, the size of the update, their ratio.

    streams: (norm [L + 1], update [L], relative update [L]) of each model.
    """
    with _drawing(2, 1, 1.6) as (figure, grid):
        (sizes,), (ratios,) = grid
        for colour, (name, (norm, update, relative)) in zip(_cycle(streams), streams.items(), strict=True):
            layers = np.arange(len(update))
            sizes.plot(np.arange(len(norm)), norm, color=colour, label=name)
            sizes.plot(layers, update, color=colour, linestyle="--")
            ratios.plot(layers, relative, color=colour)
        sizes.plot([], [], color="grey", label="stream")
        sizes.plot([], [], color="grey", linestyle="--", label="update")
        sizes.set_ylabel("Euclidean norm")
        _whole_decades(sizes)
        ratios.set(xlabel="executed layer", ylabel="update / stream", ylim=(0, None))
        sizes.legend(ncols=2)
    return figure


def logit_lens(curves: Mapping[str, Floats]) -> "Figure":
    """What could be read at each depth? Cross entropy [L + 1] of each model where its head reads the stream there."""
    with _drawing(1, 1, 2.2) as (figure, grid):
        for colour, (name, curve) in zip(_cycle(curves), curves.items(), strict=True):
            grid[0, 0].plot(np.arange(len(curve)), curve, color=colour, marker="o", label=name)
        grid[0, 0].set(xlabel="layers executed", ylabel="cross entropy (nats a token)")
        grid[0, 0].legend()
    return figure


def halting_depths(curves: Mapping[str, NDArray[np.int64]]) -> "Figure":
    """How long are tokens thought about? Share of positions that take 1 … L layers, [L] counts of each model."""
    with _drawing(1, 1, 2.2) as (figure, grid):
        for colour, (name, positions) in zip(_cycle(curves), curves.items(), strict=True):
            shares = 100 * positions / positions.sum()
            grid[0, 0].stairs(shares, np.arange(len(shares) + 1) + 0.5, color=colour, fill=True, alpha=0.5, label=name)
        grid[0, 0].set(xlabel="layers taken, rounded", ylabel="positions (%)")
        grid[0, 0].legend()
    return figure


def spread(available: int, most: int) -> range:
    """At most so many of the numbers 0 … available − 1, from 0 on in equal steps."""
    return range(0, available, -(-available // most))


@contextmanager
def _drawing(rows: int, columns: int, inches: float) -> Iterator[tuple["Figure", NDArray[Any]]]:
    """A figure and its axes [rows, columns], `inches` high a row, in the look that all have."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'moeut[plot]'") from None
    style: Any = {
        "font.size": NORMAL, "axes.titlesize": NORMAL, "axes.labelsize": NORMAL, "legend.fontsize": SMALL,
        "legend.title_fontsize": SMALL, "legend.frameon": False, "axes.linewidth": 0.6, "lines.linewidth": 1.2,
        "lines.markersize": 3, "axes.spines.top": False, "axes.spines.right": False, "image.interpolation": "nearest",
    }  # fmt: skip
    with rc_context(style):
        # A figure of its own instead of pyplot, which keeps every figure and chooses a window system.
        figure = Figure(figsize=(COLUMN_INCHES * columns, inches * rows), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False)
        for axes in figure.axes:
            axes.tick_params(labelsize=SMALL, width=0.6, length=2.5)


def _heat_maps(
    grid: Grid, *, x: str, y: str, colour: str, low: float, high: float, square: bool = False, colours: str = "viridis"
) -> "Figure":
    """Panels as images of one scale, whose rows are labelled from the top."""
    tallest = max(len(panel.values) for panel in _present(grid))
    inches = 2.6 if square else 0.75 + 0.11 * max(tallest, 4)
    with _drawing(len(grid), max(map(len, grid)), inches) as (figure, places):
        image: Any = None
        for axes_row, row in zip(places, grid, strict=True):
            for axes, panel in zip(axes_row, row, strict=True):
                if panel is None:
                    axes.set_axis_off()
                    continue
                image = axes.imshow(
                    np.ma.masked_invalid(panel.values), aspect="equal" if square else "auto", vmin=low, vmax=high,
                    cmap=colours,
                )  # fmt: skip
                axes.set_facecolor(NEVER)
                axes.set_title(panel.title)
                _label_rows(axes.yaxis, panel.rows)
                if square:
                    _label_rows(axes.xaxis, panel.rows)
                    _write_numbers(axes, panel.values, low, high)
                if axes is axes_row[0]:
                    axes.set_ylabel(y)
        for column in range(places.shape[1]):
            lowest = max(row for row, panels in enumerate(grid) if panels[column] is not None)
            places[lowest, column].set_xlabel(x)
        bar = figure.colorbar(image, ax=places.ravel().tolist(), shrink=0.9, pad=0.02)
        bar.set_label(colour)
        bar.outline.set_linewidth(0.4)
    return figure


def _whole_decades(axes: "Axes") -> None:
    """A logarithmic scale that begins and ends with a power of ten, and labels these."""
    from matplotlib.ticker import NullFormatter

    axes.margins(y=0)
    axes.set_yscale("log")
    low, high = (np.log10(limit) for limit in axes.get_ylim())
    axes.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _label_rows(axis: Any, labels: Sequence[Any]) -> None:
    shown = spread(len(labels), LABELS)
    axis.set_ticks(shown, [str(labels[row]) for row in shown])


def _write_numbers(axes: "Axes", values: Floats, low: float, high: float) -> None:
    if len(values) > NUMBERED:
        return
    for (row, column), value in np.ndenumerate(values):
        light = value > (low + high) / 2
        text = "–" if np.isnan(value) else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=SMALL - 1, color="black" if light else "white")


def _present(grid: Grid) -> list[Panel]:
    return [panel for row in grid for panel in row if panel is not None]


def _numbers(grid: Grid) -> Floats:
    """The values of all panels that are numbers."""
    values = np.concatenate([panel.values.ravel() for panel in _present(grid)])
    return values[np.isfinite(values)]


def _shade(number: int, curves: int) -> Any:
    """The colour of a curve among some that have an order."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.85 * number / max(curves - 1, 1))


def _cycle(names: Mapping[str, Any]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(names))]
