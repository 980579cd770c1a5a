"""What does `moeut reproduce` do? It carries out a study's runs in a folder and tells what they say.

OUT/data/CORPUS/   prepared text
OUT/runs/RUN/      run folders, which all studies of a scale share
OUT/claims/RUN/    who is at a run, while somebody is
OUT/STUDY/         `moeut.experiments.reproduction.study_report`; OUT/STUDY-TEXT for a text of one's own
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moeut.data.tokens import read_manifest
from moeut.experiments.reproduction.corpora import data_folder, prepare_texts, short_name
from moeut.experiments.reproduction.execution import Manner, Outcome, carry_out
from moeut.experiments.reproduction.expectation import seconds_of
from moeut.experiments.reproduction.findings import Findings
from moeut.experiments.reproduction.results import numbers_of, trained_numbers
from moeut.experiments.reproduction.runs import Effort, Run, chosen, runs_of, wanted
from moeut.experiments.reproduction.scales import Scale
from moeut.experiments.reproduction.scales import scale as scale_named
from moeut.experiments.reproduction.study import LOSS, Means, Study
from moeut.experiments.reproduction.study_report import write_report
from moeut.model.cost import cost
from moeut.training.distributed import Ranks, pick_device
from moeut.training.progress import Progress
from moeut.training.report import given_up


@dataclass(frozen=True)
class Undertaking:
    """A study to be carried out: with which effort, how, and which of its runs (patterns; none: all)."""

    study: Study
    scale: Scale
    effort: Effort
    manner: Manner
    only: Sequence[str] = ()

    @property
    def report_folder(self) -> Path:
        """Where the report lies; that of another text than the scale's own has its name, too."""
        text, usual = self.scale.text, scale_named(self.scale.name).text
        of_text = "" if text is None or text == usual else f"-{short_name(text)}"
        return self.manner.out / f"{self.study.name}{of_text}"

    def loss(self, run: Run) -> float | None:
        """The held-out loss of a run, infinite of one that was given up; None of one that is not finished."""
        folder = run.folder(self.manner.out)
        numbers = trained_numbers(folder, run.config(self.manner.out))
        if numbers is None:
            return None if given_up(folder) is None else math.inf
        return numbers[LOSS]

    def all_runs(self) -> list[Run]:
        """Every run that is known to be needed."""
        return list(wanted(self.study, self.effort, self.loss))

    def runs(self) -> list[Run]:
        """Those of them that were asked for. Raises ValueError where a pattern fits none."""
        return chosen(self.all_runs(), self.only)


def reproduce(undertaking: Undertaking, *, task_folder: Path | None, command: str) -> tuple[Findings, Outcome]:
    """Prepare the text, carry out the runs, and write the report.

    task_folder: see `Means`. command: what was typed. Raises ValueError, before anything is trained where it can be
    known then; and KeyboardInterrupt, with the signal, where one came before the end.
    """
    study, scale, manner = undertaking.study, undertaking.scale, undertaking.manner
    undertaking.runs()
    texts = {entrant.corpus: scale.recipe(entrant.corpus) for entrant in study.entrants}
    progress = Progress(quiet=manner.quiet)
    with progress:
        prepare_texts(texts, manner.out, progress)
    means = Means(pick_device(manner.device), task_folder, progress)
    measure = None if study.measure is None else study.measure(means)
    outcome = carry_out(study, undertaking.runs, manner, measure, progress)
    findings = find(undertaking, outcome)
    write_report(findings, undertaking.report_folder, [command])
    return findings, outcome


def find(undertaking: Undertaking, outcome: Outcome) -> Findings:
    """What is known of the study now."""
    study, effort, out = undertaking.study, undertaking.effort, undertaking.manner.out
    runs = undertaking.all_runs()
    known = {run.name: numbers_of(run, study, out) for run in runs}
    return Findings(
        study,
        runs,
        {entrant.name: runs_of(entrant, effort, undertaking.loss) for entrant in study.entrants},
        {name: numbers for name, numbers in known.items() if numbers is not None},
        {
            name: (outcome.failed | outcome.taken | outcome.given_up).get(name, "not run yet")
            for name, numbers in known.items()
            if numbers is None
        },
        {entrant.corpus: read_manifest(data_folder(entrant.corpus, out)) for entrant in study.entrants},
    )


@dataclass(frozen=True)
class Expected:
    """What a run will be. macs: of its whole training, forward and backward. seconds: a guess for this machine."""

    run: str
    parameters: int
    tokens: int
    macs: int
    seconds: float


def expected(undertaking: Undertaking) -> list[Expected]:
    """What the runs would be, without carrying them out."""
    runs, manner = undertaking.runs(), undertaking.manner
    ranks = Ranks(world_size=manner.processes, device=pick_device(manner.device))
    seconds = seconds_of(runs, manner.out, ranks)
    found: list[Expected] = []
    for run in runs:
        training = run.entrant.training
        costs = cost(run.entrant.model, training.context_length)
        tokens = training.num_steps * training.batch_tokens
        macs = tokens * costs.training_macs_per_token
        found.append(Expected(run.name, costs.parameters, tokens, macs, seconds[run.name]))
    return found
