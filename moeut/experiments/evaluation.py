"""What does `moeut evaluate` do? It measures models, on texts or on tasks, and writes down how, so that it can be repeated.

Figures go into MODEL/evaluation, one file a time, with settings, versions, and checksums of models and of data.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import moeut
from moeut.data.tokens import TokenStream
from moeut.evaluation.compare import Comparison, compare, models
from moeut.evaluation.likelihood import Examiner
from moeut.evaluation.outcomes import Outcome, Row, read_outcomes
from moeut.evaluation.perplexity import BlockSums, Perplexity, block_sums, joined, summarise
from moeut.evaluation.subject import Subject
from moeut.evaluation.task_data import TaskData
from moeut.evaluation.zero_shot import average, run_task
from moeut.experiments.subjects import Reading
from moeut.model.folder import write_json
from moeut.training.progress import Progress

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "lm_eval", "numpy")
TOGETHER = "all of these"


class OfText(NamedTuple):
    """How well a text was predicted, and in how many seconds."""

    result: Perplexity
    seconds: float


class OfTasks(NamedTuple):
    """A model on some tasks: figures, what came of each item, and the versions of lm-eval's tasks."""

    rows: list[Row]
    outcomes: list[Outcome]
    versions: dict[str, Any]


def on_texts(
    subject: Subject, texts: dict[str, TokenStream], batch_size: int, stride: int | None, progress: Progress
) -> dict[str, OfText]:
    """How well a model predicts each text, and, where there are several, all of them together."""
    sums: dict[str, BlockSums] = {}
    seconds: dict[str, float] = {}
    for name, stream in texts.items():
        began = time.perf_counter()
        sums[name] = block_sums(
            subject.model, stream, subject.context_length, batch_size, progress, stride=stride
        )
        seconds[name] = time.perf_counter() - began
    if len(texts) > 1:
        sums[TOGETHER], seconds[TOGETHER] = joined(sums.values()), sum(seconds.values())
    return {name: OfText(summarise(*found), seconds[name]) for name, found in sums.items()}


def text_rows(subject: Subject, stride: int | None, measured: dict[str, OfText]) -> list[Row]:
    """Three figures for each text. Their standard errors follow from that of the cross entropy."""
    length = f"{subject.context_length:,}"
    scoring = f"blocks of {length}" if stride is None else f"windows of {length}, {stride:,} apart"
    rows: list[Row] = []
    for name, (result, seconds) in measured.items():
        error = result.standard_error
        for metric, value, scale in (
            ("cross_entropy", result.cross_entropy, 1.0),
            ("perplexity", result.perplexity, result.perplexity),
            ("bits_per_byte", result.bits_per_byte, result.bits_per_byte / result.cross_entropy),
        ):
            rows.append(Row(subject.name, name, scoring, metric, value, error * scale, result.tokens, 0, seconds))
    return rows


def on_tasks(
    subject: Subject, data: dict[str, TaskData], scorings: Sequence[str], batch_size: int, progress: Progress
) -> OfTasks:
    """A model on each task, and its average where all six are there."""
    rows: list[Row] = []
    outcomes: list[Outcome] = []
    versions: dict[str, Any] = {}
    for task, items in data.items():
        found = run_task(Examiner(subject, batch_size, progress), task, items.sets, scorings)
        rows += found.rows
        outcomes += found.outcomes
        versions |= found.versions
    return OfTasks([*rows, *average(rows)], outcomes, versions)


def limited(data: dict[str, TaskData], limit: int | None) -> dict[str, TaskData]:
    """The first `limit` items of each set; None: all of them."""
    return {
        task: found._replace(sets={name: items[:limit] for name, items in found.sets.items()})
        for task, found in data.items()
    }


def record(reading: Reading, settings: dict[str, Any], subjects: Sequence[Subject], rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that is needed to measure the same again, as plain values."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"moeut": moeut.__version__, **{name: _version(name) for name in PACKAGES}},
        "settings": {**settings, **{name: value if isinstance(value, int | None) else str(value) for name, value in asdict(reading).items()}},
        "models": {
            subject.name: {**subject.facts, "context_length": subject.context_length, "max_length": subject.max_length}
            for subject in subjects
        },
        "rows": [asdict(row) for row in rows],
    }  # fmt: skip


def origins(data: dict[str, TaskData], versions: dict[str, Any]) -> dict[str, Any]:
    """Where the items of tasks come from, how many there are in each set, and the version of its task in lm-eval."""
    return {
        task: {
            "origin": found.origin,
            "sets": {
                name: {"items": len(items), "version": versions.get(name)} for name, items in found.sets.items()
            },
        }
        for task, found in data.items()
    }


def write_record(content: dict[str, Any], model: str, output: Path | None) -> Path:
    """Write a record beside a model, or, of a model of the Hub, below the current folder; or into `output`."""
    place = Path(model)
    folder = output or (place / "evaluation" if place.is_dir() else Path("evaluation") / model.replace("/", "--"))
    folder.mkdir(parents=True, exist_ok=True)
    stamp = content["date"].replace(":", "").replace("+0000", "Z")
    file = next(
        file for number in range(1000) if not (file := folder / f"{stamp}{f'-{number}' if number else ''}.json").exists()
    )
    write_json(file, content)
    return file


def compare_files(files: Sequence[Path]) -> list[Comparison]:
    """Compare the two models whose outcomes are in one file, or in one file each.

    Raises ValueError where there are not two, or not on the same items.
    """
    if len(files) > 2:
        raise ValueError("--compare: two models are compared; name one file with both, or two files")
    found = [models(read_outcomes(file)) for file in files]
    if len(found) == 1 and len(found[0]) == 2:
        (first_name, first), (second_name, second) = found[0].items()
    elif len(found) == 2 and all(len(of_file) == 1 for of_file in found):
        [(first_name, first)], [(second_name, second)] = (of_file.items() for of_file in found)
        if first_name == second_name:
            first_name, second_name = map(str, files)
    else:
        held = "; ".join(f"{file} holds {', '.join(of_file)}" for file, of_file in zip(files, found, strict=True))
        raise ValueError(f"--compare: takes one file with two models, or two files with one each; {held}")
    return compare(first, second, (first_name, second_name))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
