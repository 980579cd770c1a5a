"""How do figures look? One table of all models, tasks and scorings, as Markdown or CSV."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import astuple, fields

from moeut.evaluation.outcomes import Row

HEADINGS = ("model", "task", "scoring", "metric", "value", "±", "items", "truncated", "seconds")
LEFT = 4
"""Columns of words; the others are numbers."""


def together(rows: Sequence[Row]) -> list[Row]:
    """The same rows, those of one figure next to each other, so that models stand below each other."""
    order: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        order.setdefault((row.task, row.scoring, row.metric), []).append(row)
    return [row for group in order.values() for row in group]


def markdown(rows: Sequence[Row]) -> list[str]:
    """The lines of a table for people."""
    return table([HEADINGS, *(_cells(row) for row in rows)], left=LEFT)


def table(cells: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """The lines of a Markdown table, aligned: heading, then rows. left: so many columns are words, not numbers."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    ruler = ["-" * width if number < left else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    padded = [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in cells
    ]
    return [f"| {' | '.join(line)} |" for line in (padded[0], ruler, *padded[1:])]


def comma_separated(rows: Sequence[Row]) -> list[str]:
    """The lines of a table for machines, every digit kept."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue().splitlines()


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.model, row.task, row.scoring, row.metric, _number(row.value), _number(row.standard_error), f"{row.items:,}",
        f"{row.truncated:,}", f"{row.seconds:.1f}",
    )  # fmt: skip


def _number(value: float) -> str:
    """Four places after the point where that is readable; ? for what is not known."""
    if not math.isfinite(value):
        return "?"
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"
