"""What came of each item, and what do all of them together say? Means with standard errors, and a line an item on disk.

A task may consist of sets (67 in BLiMP, 4 in CBT): its mean is that of the sets' means, whatever their sizes.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from moeut.files import replacing


@dataclass(frozen=True)
class Outcome:
    """One model on one item, scored in one way.

    set: part of the task. index: of the item within it, from 0. item: what identifies its content. metrics: `acc` and
    `acc_norm` are 1 or 0, `nats` is −ln p of the continuation. log_likelihoods: of each continuation. truncated:
    whether a text was too long for the model and lost its beginning.
    """

    model: str
    task: str
    set: str
    index: int
    item: str
    scoring: str
    metrics: dict[str, float]
    log_likelihoods: list[float]
    truncated: bool


@dataclass(frozen=True)
class Row:
    """One figure: of a model, on a task or text, in one scoring and metric, over so many items or tokens.

    truncated: items that were too long for the model. seconds: that this task and scoring took, all its metrics.
    """

    model: str
    task: str
    scoring: str
    metric: str
    value: float
    standard_error: float
    items: int
    truncated: int
    seconds: float


def identity(item: dict[str, Any]) -> str:
    """What stands for an item's content."""
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()[:16]


def rows(outcomes: Iterable[Outcome], seconds: float) -> list[Row]:
    """A row for each metric of one model's outcomes on one task in one scoring.

    `nats` becomes the perplexity exp(mean), with the standard error that a small one has after exp.
    """
    outcomes = list(outcomes)
    one = outcomes[0]
    assert {(outcome.model, outcome.task, outcome.scoring) for outcome in outcomes} == {
        (one.model, one.task, one.scoring)
    }
    truncated = sum(outcome.truncated for outcome in outcomes)
    found: list[Row] = []
    for metric in one.metrics:
        sets: dict[str, list[float]] = defaultdict(list)
        for outcome in outcomes:
            sets[outcome.set].append(outcome.metrics[metric])
        name, (value, error) = metric, mean_of_means(sets.values())
        if metric == "nats":
            name, value = "perplexity", math.exp(min(value, 700))
            error *= value
        found.append(Row(one.model, one.task, one.scoring, name, value, error, len(outcomes), truncated, seconds))
    return found


def mean_of_means(sets: Iterable[list[float]]) -> tuple[float, float]:
    """The mean over sets of the mean in each, and its standard error sqrt(Σ s²/n) / sets.

    s² is the variance in a set of n with n − 1 degrees of freedom; the error is infinite where a set has one value.
    """
    means, variances = [], []
    for values in sets:
        count, mean = len(values), math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        means.append(mean)
        variances.append(squares / (count - 1) / count if count > 1 else math.inf)
    return math.fsum(means) / len(means), math.sqrt(math.fsum(variances)) / len(means)


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """A line of JSON for each outcome."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for outcome in outcomes:
            file.write(json.dumps(asdict(outcome)) + "\n")


def read_outcomes(path: Path) -> list[Outcome]:
    """What `write_outcomes` wrote. Raises ValueError, naming the line, where a file holds something else."""
    reader = pydantic.TypeAdapter(Outcome)
    found: list[Outcome] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(reader.validate_json(line))
            except pydantic.ValidationError:
                raise ValueError(f"{path}:{number}: not the outcome of an item, as --samples writes it") from None
    if not found:
        raise ValueError(f"{path}: holds no outcomes")
    return found
