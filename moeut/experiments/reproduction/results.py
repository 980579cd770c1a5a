"""What came of a run, and of all runs of an entrant? Numbers by name, from what lies in run folders."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from moeut.config import RunConfig
from moeut.evaluation.outcomes import mean_of_means
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.reproduction.study import Study
from moeut.experiments.run_folder import gone_on_with
from moeut.model.tensor_files import read_json
from moeut.training.report import METRICS, finished, read_metrics
from moeut.training.retention import checkpoints

Numbers = dict[str, float]


class Estimate(NamedTuple):
    """A number over seeds: mean, standard error s / √n (infinite for one seed), and n."""

    mean: float
    standard_error: float
    seeds: int


def measured_file(run: Path, study: Study) -> Path:
    """Where a study keeps what it has measured of a run."""
    return run / "evaluation" / f"{study.name}.json"


def trained_numbers(run: Path, config: RunConfig) -> Numbers | None:
    """What the training of a run has written down; None of one that is not finished.

    Of held-out text: `moeut.evaluation.perplexity.Perplexity`. hours of training; seconds_per_step, the median of the
    reports; memory_bytes, the most. dead_experts: of all routers in the last report. usage_entropy: the least there.
    The record of a run is enough, its configuration and its metrics: checkpoints may have been removed. Raises
    ValueError where the folder belongs to another configuration.
    """
    if not (run / METRICS).is_file() and not checkpoints(run):
        return None
    gone_on_with(run, config)
    scores = finished(run, config.training.num_steps)
    if scores is None:
        return None
    reports = [line for line in read_metrics(run) if line["split"] == "train"]
    last = reports[-1]
    rates = [line["tokens_per_second"] for line in reports if line["tokens_per_second"]]
    numbers: Numbers = {
        **asdict(scores),
        "hours": last["seconds"] / 3600,
        "seconds_per_step": config.training.batch_tokens / statistics.median(rates),
        "memory_bytes": max(line["memory_bytes"] for line in reports),
        "skipped_steps": last["skipped_steps"],
    }
    if "dead_experts" in last:
        numbers["dead_experts"] = sum(last["dead_experts"].values())
        numbers["usage_entropy"] = min(last["usage_entropy"].values())
    return numbers


def numbers_of(run: Run, study: Study, out: Path) -> Numbers | None:
    """All that a study wants to know of a run; None while that is not known. Raises ValueError as above."""
    folder = run.folder(out)
    trained, measured = trained_numbers(folder, run.config(out)), measured_file(folder, study)
    if trained is None or study.measure is None:
        return trained
    return trained | read_json(measured) if measured.is_file() else None


def estimates(seeds: Sequence[Numbers]) -> dict[str, Estimate]:
    """Numbers of the runs of one entrant, which differ in their seeds, as means."""
    names = dict.fromkeys(name for numbers in seeds for name in numbers)
    columns = {name: [numbers[name] for numbers in seeds if name in numbers] for name in names}
    return {name: Estimate(*mean_of_means([values]), len(values)) for name, values in columns.items()}
