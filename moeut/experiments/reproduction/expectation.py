"""How long will runs take here? A guess from their multiply-adds, corrected by those that are finished."""

from collections.abc import Sequence
from pathlib import Path

from moeut.experiments.reproduction.results import trained_numbers
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.resources import expected_seconds
from moeut.training.distributed import Ranks


def seconds_of(runs: Sequence[Run], out: Path, ranks: Ranks) -> dict[str, float]:
    """Seconds of training by the names of runs: those that finished ones took, and those that others may take.

    The guess is `moeut.experiments.resources.expected_seconds`, times how far it was off for the finished runs.
    """
    guesses = expected_seconds([run.config(out) for run in runs], ranks)
    guessed = {run.name: guess for run, guess in zip(runs, guesses, strict=True)}
    finished = {run.name: trained_numbers(run.folder(out), run.config(out)) for run in runs}
    taken = {name: 3600 * numbers["hours"] for name, numbers in finished.items() if numbers is not None}
    correction = sum(taken.values()) / sum(guessed[name] for name in taken) if taken else 1.0
    return {name: taken.get(name, correction * guess) for name, guess in guessed.items()}
