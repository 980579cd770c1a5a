"""How is a study told? report.md with figures, and every number as CSV, in a folder of its own.

OUT/STUDY/report.md      question, sizes, figures, results, the paper's directions, cost, commands
OUT/STUDY/NAME.png .svg  figures; RUN-NAME of a run that was looked at
OUT/STUDY/runs.csv       a line a finished run, every number
OUT/STUDY/entrants.csv   a line a number of an entrant: mean, standard error and count of seeds
"""

import csv
import io
import math
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import moeut
from moeut.evaluation.tables import table
from moeut.experiments.dry_run import duration
from moeut.experiments.reproduction.charts import (
    FORMATS,
    LEARNING,
    TUNING,
    curves,
    draw,
    draw_learning,
    draw_tuning,
    learning_curves,
    tuning_curves,
)
from moeut.experiments.reproduction.findings import Findings, Verdict, verdict
from moeut.experiments.reproduction.results import Estimate
from moeut.experiments.reproduction.study import LOSS, MEMORY, Direction, Gap, Quantity, Study, quantities
from moeut.files import replacing
from moeut.model.cost import cost
from moeut.training.report import human
from moeut.training.trackers import finite

REPORT = "report.md"
Cells = Sequence[str]


def write_report(findings: Findings, folder: Path, commands: Sequence[str]) -> None:
    """Write all of it. commands: what was typed. Without matplotlib there are no figures."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, str] = {}
    if find_spec("matplotlib") is not None:
        for chart in findings.study.charts:
            by_system = curves(chart, findings)
            if by_system:
                draw(chart, by_system, folder)
                figures[chart.name] = f"{chart.y} by {chart.x}"
        learnt = learning_curves(findings, folder.parent) if findings.study.charts else {}
        if learnt:
            draw_learning(learnt, folder)
            figures[LEARNING] = "how everybody learnt"
        tuned = tuning_curves(findings)
        if tuned:
            draw_tuning(tuned, folder)
            figures[TUNING] = "held-out nats a token by learning rate, the first seed"
    figures |= pictures(findings, folder)
    write_csv(folder / "runs.csv", run_rows(findings))
    write_csv(folder / "entrants.csv", entrant_rows(findings))
    with replacing(folder / REPORT) as file:
        file.write_text("\n".join(report(findings, figures, commands)) + "\n", encoding="utf-8")


def pictures(findings: Findings, folder: Path) -> dict[str, str]:
    """Copy what was drawn of each entrant's first finished run into a folder beside the runs: names and captions.

    What is not there was not drawn: matplotlib was missing then.
    """
    copied: dict[str, str] = {}
    for entrant, run in findings.first_runs():
        for path, title in findings.study.pictures.items():
            name = f"{run.name}-{Path(path).name}"
            for form in FORMATS:
                picture = run.folder(folder.parent) / f"{path}.{form}"
                if picture.is_file():
                    with replacing(folder / f"{name}.{form}") as file:
                        shutil.copyfile(picture, file)
                    copied[name] = f"{entrant.label}, {title}"
    return copied


def report(findings: Findings, figures: Mapping[str, str], commands: Sequence[str]) -> list[str]:
    """The lines of report.md. figures: the names of the files beside it, and what they show."""
    study = findings.study
    hours = sum(numbers["hours"] for numbers in findings.numbers.values())
    left = [f"- `{name}`: {why}" for name, why in findings.left.items()]
    sections = {
        "What was asked": [study.question],
        "What the paper found": [study.found],
        "Who was compared": _markdown(sizes(study)),
        "On which text": _markdown(texts(findings)),
        "What came out": [
            *(f"![{title}]({name}.png)\n" for name, title in figures.items()),
            *_markdown(results(findings)),
        ],
        "What the paper says, and what was found": _markdown(directions(findings)),
        "What is not finished": left,
        "Every run": [f"{duration(3600 * hours)} of training in all.", "", *_markdown(runs(findings))],
        "How to do it again": ["```bash", *commands, "```"],
    }
    return [
        f"# {study.name}: {study.source}",
        "",
        f"moeut {moeut.__version__}, torch {torch.__version__}, {platform.machine()} with {os.cpu_count()} cores, "
        f"{datetime.now(UTC):%Y-%m-%d}.",
        *(line for title, lines in sections.items() if lines for line in ("", f"## {title}", "", *lines)),
    ]


def sizes(study: Study) -> list[Cells]:
    """Parameters and computation of each entrant, and its parameters beside those of the first of its size."""
    first: dict[str, int] = {}
    rows: list[Cells] = [("", "at", "parameters", "beside the first", "active", "multiply-adds a token", "tokens")]
    for entrant in study.entrants:
        training = entrant.training
        costs = cost(entrant.model, training.context_length)
        beside = costs.parameters / first.setdefault(entrant.size, costs.parameters) - 1
        rows.append(
            (
                entrant.system, entrant.place, f"{costs.parameters:,}", f"{beside:+.2%}",
                f"{costs.active_parameters:,}", f"{costs.macs_per_token:,}",
                f"{training.num_steps * training.batch_tokens:,}",
            )
        )  # fmt: skip
    return rows


def texts(findings: Findings) -> list[Cells]:
    """How much text there was to learn and to be scored on, and what identifies it."""
    rows: list[Cells] = [("text", "tokens to learn", "tokens held out", "vocabulary", "fingerprint")]
    for corpus, manifest in findings.texts.items():
        train, held_out = (manifest.splits[split].tokens for split in ("train", "held_out"))
        rows.append(
            (f"`{corpus}`", f"{train:,}", f"{held_out:,}", f"{manifest.vocab_size:,}", manifest.fingerprint[:12])
        )
    return rows


def results(findings: Findings) -> list[Cells]:
    """The study's metrics of each entrant, over seeds, at the learning rate that did best."""
    study = findings.study
    rows: list[Cells] = [("", "at", "learning rate", "seeds", *(metric.replace("_", " ") for metric in study.metrics))]
    for entrant in study.entrants:
        judged = findings.judged.get(entrant.name)
        rate = f"{judged[0].learning_rate:g}" if judged else "?"
        found = [findings.estimate(Quantity(entrant, metric)) for metric in study.metrics]
        seeds = max((estimate.seeds for estimate in found if estimate is not None), default=0)
        rows.append((entrant.system, entrant.place, rate, f"{seeds}", *map(_in_words, found, study.metrics)))
    return rows


def directions(findings: Findings) -> list[Cells]:
    """What the paper says, as inequalities, and what came of each."""
    rows: list[Cells] = [("", "here", "held")]
    for direction in findings.study.directions:
        found, (less, more) = verdict(findings, direction), direction
        numbers = f"{_in_words(found.less, _metric(less))}, {_in_words(found.more, _metric(more))}"
        rows.append((_inequality(direction), numbers, _held(found)))
    return rows


def runs(findings: Findings) -> list[Cells]:
    """Loss, time and memory of each finished run."""
    rows: list[Cells] = [("run", "held-out nats a token", "time", "seconds a step", "memory")]
    for name, numbers in findings.numbers.items():
        rows.append(
            (
                f"`{name}`", f"{numbers[LOSS]:.4f}", duration(3600 * numbers["hours"]),
                f"{numbers['seconds_per_step']:.3g}", human(round(numbers["memory_bytes"])),
            )
        )  # fmt: skip
    return rows


def run_rows(findings: Findings) -> list[dict[str, Any]]:
    """A row a finished run: what was trained, and all of its numbers."""
    rows: list[dict[str, Any]] = []
    for run in findings.runs:
        if run.name not in findings.numbers:
            continue
        entrant = run.entrant
        costs = cost(entrant.model, entrant.training.context_length)
        rows.append(
            {
                "run": run.name, "system": entrant.system, "at": entrant.place, "size": entrant.size,
                "corpus": entrant.corpus, "learning_rate": run.learning_rate, "seed": run.seed,
                "parameters": costs.parameters, "active_parameters": costs.active_parameters,
                "macs_per_token": costs.macs_per_token, **findings.numbers[run.name],
            }
        )  # fmt: skip
    return rows


def entrant_rows(findings: Findings) -> list[dict[str, Any]]:
    """A row for each number of each entrant."""
    return [
        {"entrant": name, "metric": metric, **finite(estimate._asdict())}
        for name, known in findings.estimates.items()
        for metric, estimate in known.items()
    ]


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows under all of their names, every digit kept."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(file) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def _markdown(rows: Sequence[Cells]) -> list[str]:
    """A table, whose first row is its heading; nothing where it is the only one."""
    return table(rows, left=1) if len(rows) > 1 else []


def _in_words(estimate: Estimate | None, metric: str) -> str:
    """A mean with its standard error, if there is one."""
    if estimate is None:
        return "?"
    if metric == MEMORY:
        return human(round(estimate.mean))
    error = f" ± {estimate.standard_error:.2g}" if estimate.seeds > 1 else ""
    return f"{estimate.mean:.5g}{error}"


def _held(found: Verdict) -> str:
    """In words, with what the paper calls more minus what it calls less."""
    if found.less is None or found.more is None:
        return "not run"
    word = {True: "yes", False: "no", None: "cannot be told"}[found.held]
    error = "one seed" if math.isinf(found.standard_error) else f"± {found.standard_error:.2g}"
    return f"{word} ({found.difference:+.3g}, {error})"


def _metric(side: Quantity | Gap) -> str:
    return quantities(side)[0][0].metric


def _inequality(direction: Direction) -> str:
    """Two entrants, or two gaps between entrants, in one metric; or two metrics of one entrant."""
    less, more = (" − ".join(quantity.entrant.label for quantity, _ in quantities(side)) for side in direction)
    lower, upper = (_metric(side).replace("_", " ") for side in direction)
    return f"{less}: {lower} < {upper}" if less == more else f"{less} < {more} in {lower}"
