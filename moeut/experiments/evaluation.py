"""What does `moeut evaluate` do? It measures models on texts or tasks, and writes down how, to be repeated.

Figures go into MODEL/evaluation, a file each time, with settings, versions, and checksums of models and of data.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

import moeut
from moeut.data.tokens import TokenStream
from moeut.evaluation.compare import Comparison, compare, models
from moeut.evaluation.likelihood import Examiner
from moeut.evaluation.outcomes import Outcome, Row, read_outcomes
from moeut.evaluation.perplexity import BlockSums, Perplexity, block_sums, joined, summarise
from moeut.evaluation.subject import Subject
from moeut.evaluation.task_data import TaskData, from_folder, from_hub
from moeut.evaluation.zero_shot import SCORINGS, average, check, run_task
from moeut.experiments.subjects import Reading, data_of_run, identities, is_prepared, open_subject, streams
from moeut.model.tensor_files import write_json
from moeut.training.progress import Progress

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "lm_eval", "numpy")
TOGETHER = "all of these"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and how.

    texts: prepared folders or files; without any and without tasks, the held-out part that belongs to each model's run.
    by_source: each source of a prepared folder apart. stride: of a sliding window; None: blocks. tasks: of the six.
    task_folder: where their items lie; None: on the Hub. limit: only so many items of each set.
    """

    reading: Reading
    texts: tuple[Path, ...] = ()
    by_source: bool = False
    stride: int | None = None
    tasks: tuple[str, ...] = ()
    task_folder: Path | None = None
    scorings: tuple[str, ...] = SCORINGS
    limit: int | None = None


class OfText(NamedTuple):
    """How well a text was predicted, and in how many seconds."""

    result: Perplexity
    seconds: float


@dataclass(frozen=True)
class Measured:
    """A model's figures: of each text by its name, and all as rows; what came of each item; how it was measured."""

    name: str
    texts: dict[str, OfText]
    rows: list[Row]
    outcomes: list[Outcome]
    record: dict[str, Any]


def measure(names: Sequence[str], plan: Plan, progress: Progress) -> list[Measured]:
    """Each model, one after the other, on the same items.

    Raises ValueError, a line a mistake, before anything is computed where it can be known then.
    """
    data = read_items(plan, progress)
    return [_measure(name, plan, data, progress) for name in names]


def read_items(plan: Plan, progress: Progress) -> dict[str, TaskData]:
    """The items of each task of a plan. Raises ValueError, a line a mistake, where some cannot be had or scored."""
    if not plan.tasks:
        return {}
    check(plan.tasks, plan.scorings)
    folder = plan.task_folder
    data = from_hub(plan.tasks, progress.warn) if folder is None else from_folder(folder, plan.tasks)
    return {task: limited(found, plan.limit) for task, found in data.items()}


def limited(data: TaskData, limit: int | None) -> TaskData:
    """The first `limit` items of each set; None: all of them."""
    return data._replace(sets={name: items[:limit] for name, items in data.sets.items()})


def write_record(measured: Measured, output: Path | None = None) -> Path:
    """Write how a model was measured into `output`, or beside the model; for one of the Hub, below this folder."""
    place = Path(measured.name)
    beside = place / "evaluation" if place.is_dir() else Path("evaluation") / measured.name.replace("/", "--")
    folder = output or beside
    folder.mkdir(parents=True, exist_ok=True)
    stem = measured.record["date"].replace(":", "").replace("+0000", "Z")
    taken = {file.name for file in folder.iterdir()}
    names = (f"{stem}{'-' * bool(number)}{number or ''}.json" for number in range(len(taken) + 1))
    file = folder / next(name for name in names if name not in taken)
    write_json(file, measured.record)
    return file


def compare_files(files: Sequence[Path]) -> list[Comparison]:
    """Compare the two models whose outcomes are in one file, or in one file each.

    Raises ValueError where there are not two, or not on the same items.
    """
    found = [models(read_outcomes(file)) for file in files]
    if [len(of_file) for of_file in found] not in ([2], [1, 1]):
        held = "; ".join(f"{file} holds {', '.join(of_file)}" for file, of_file in zip(files, found, strict=True))
        raise ValueError(f"--compare: takes one file with two models, or two files with one each; {held}")
    (first_name, first), (second_name, second) = (pair for of_file in found for pair in of_file.items())
    if first_name == second_name:
        first_name, second_name = map(str, files)
    return compare(first, second, (first_name, second_name))


def text_lines(measured: Measured) -> list[str]:
    """One model on one text, for people."""
    [(text, (result, _))] = measured.texts.items()
    repeats = measured.record["settings"]["reading"]["repeats"]
    lines = [
        f"cross entropy   {result.cross_entropy:8.4f} ± {result.standard_error:.4f} nats a token",
        f"perplexity      {result.perplexity:8.3f}",
        f"bits per byte   {result.bits_per_byte:8.4f}",
        f"scored {result.tokens:,} tokens, {result.bytes:,} bytes of {text}, in {measured.rows[0].scoring}",
    ]
    return lines if repeats is None else [*lines, f"each layer ran {repeats:,} times"]


def text_facts(measured: Measured) -> dict[str, Any]:
    """One model on one text, for machines."""
    [(result, _)], model = measured.texts.values(), measured.record["model"]
    return {
        **asdict(result), "model": measured.name, "data": next(iter(measured.record["data"])),
        "context_length": model["context_length"], "stride": measured.record["settings"]["stride"],
        "num_repeats": model.get("num_repeats"),
    }  # fmt: skip


def _measure(name: str, plan: Plan, data: dict[str, TaskData], progress: Progress) -> Measured:
    paths = plan.texts or (() if plan.tasks else (data_of_run(name),))
    subject = open_subject(name, plan.reading, next(filter(is_prepared, paths), None))
    texts = _on_texts(subject, streams(paths, subject, by_source=plan.by_source), plan, progress)
    rows, outcomes, versions = _text_rows(subject, texts, plan.stride), [], {}
    for task, items in data.items():
        examiner = Examiner(subject, plan.reading.batch_size, progress)
        found = run_task(examiner, task, items.sets, plan.scorings)
        rows += found.rows
        outcomes += found.outcomes
        versions |= found.versions
    rows += average(rows)
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": name, **subject.facts,
            "context_length": subject.context_length, "max_length": subject.max_length,
        },
        "settings": plain(asdict(plan)),
        "data": identities(paths),
        "tasks": {task: _described(items, versions) for task, items in data.items()},
        "versions": installed_versions(),
        "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    return Measured(name, texts, rows, outcomes, record)


def _on_texts(subject: Subject, texts: dict[str, TokenStream], plan: Plan, progress: Progress) -> dict[str, OfText]:
    """How well a model predicts each text, and, where there are several, all of them together."""
    sums: dict[str, BlockSums] = {}
    seconds: dict[str, float] = {}
    for name, stream in texts.items():
        began = time.perf_counter()
        sums[name] = block_sums(
            subject.model, stream, subject.context_length, plan.reading.batch_size, progress, stride=plan.stride
        )
        seconds[name] = time.perf_counter() - began
    if len(texts) > 1:
        sums[TOGETHER], seconds[TOGETHER] = joined(sums.values()), sum(seconds.values())
    return {name: OfText(summarise(*found), seconds[name]) for name, found in sums.items()}


def _text_rows(subject: Subject, texts: dict[str, OfText], stride: int | None) -> list[Row]:
    """Three figures for each text. Their standard errors follow from that of the cross entropy."""
    length = f"{subject.context_length:,}"
    scoring = f"blocks of {length}" if stride is None else f"windows of {length}, {stride:,} apart"
    rows: list[Row] = []
    for name, (result, seconds) in texts.items():
        slopes = {
            "cross_entropy": 1.0,
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte / result.cross_entropy if result.cross_entropy else 0.0,
        }
        rows += [
            Row(
                subject.name, name, scoring, metric, getattr(result, metric), result.standard_error * slope,
                result.tokens, 0, seconds,
            )
            for metric, slope in slopes.items()
        ]  # fmt: skip
    return rows


def _described(data: TaskData, versions: dict[str, Any]) -> dict[str, Any]:
    """Where a task's items come from, how many there are in each set, and the version of its task in lm-eval."""
    sets = {name: {"items": len(items), "version": versions.get(name)} for name, items in data.sets.items()}
    return {"origin": data.origin, "sets": sets}


def plain(value: Any) -> Any:
    """Settings as JSON has them."""
    match value:
        case dict():
            return {name: plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case Path() | torch.device() | torch.dtype():
            return str(value).removeprefix("torch.")
        case _:
            return value


def installed_versions() -> dict[str, str | None]:
    """The versions of this package and of those that its figures depend on; None for what is not installed."""
    return {"moeut": moeut.__version__, **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
