"""What is a study? A figure or table of the paper as data: who is compared, on which axes, and what the paper found."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moeut.model.cost import cost
from moeut.model.language_model import ModelConfig
from moeut.model.paper_macs import paper_macs
from moeut.training.progress import Progress
from moeut.training.training_config import TrainingConfig

LOSS, SECONDS, MEMORY = "cross_entropy", "seconds_per_step", "memory_bytes"
"""Names of numbers that every run has."""
LOSS_LABEL = "held-out nats a token"


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A system at one point of a comparison; it is trained once for each seed.

    name: of its runs. system: as figures and tables call it. place: where in the comparison it stands, such as `44m` or
    `2`. size: of the MoEUT that it is compared with. corpus: the text; see `moeut.experiments.reproduction.corpora`.
    """

    name: str
    system: str
    place: str
    size: str
    corpus: str
    model: ModelConfig
    training: TrainingConfig

    @property
    def label(self) -> str:
        """As legends and sentences call it: the system and its place."""
        return f"{self.system} {self.place}"


class Chart(NamedTuple):
    """A figure, a curve for each system.

    points: the numbers of an entrant by where on the x-axis they stand: numbers, or words in the order of the entrants.
    """

    name: str
    x: str
    y: str
    points: Callable[[Entrant], Mapping[Any, str]]
    logarithmic: bool = False


class Quantity(NamedTuple):
    """One of an entrant's numbers."""

    entrant: Entrant
    metric: str = LOSS


class Gap(NamedTuple):
    """How far one number is above another: high − low."""

    low: Quantity
    high: Quantity


class Direction(NamedTuple):
    """Something that the paper says, to be checked: the one number, or gap between two, is below the other."""

    less: Quantity | Gap
    more: Quantity | Gap


def quantities(side: Quantity | Gap) -> list[tuple[Quantity, int]]:
    """What a side of a direction is a sum of, with signs."""
    return [(side, 1)] if isinstance(side, Quantity) else [(side.high, 1), (side.low, -1)]


class Means(NamedTuple):
    """What a measurement of a trained model has at hand. task_folder: items of tasks; None: those on the Hub."""

    device: torch.device
    task_folder: Path | None
    progress: Progress


Measure = Callable[[Means], Callable[[Path], dict[str, float]]]
"""Made ready, and refused where something is missing, before anything is trained: a run folder → more numbers of it."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A figure or table of the paper.

    source: which. question: what is asked. found: what the paper says, in words, and where that is known from.
    directions: what of it can be checked. metrics: numbers that the table shows. pictures: what `measure` draws of a
    run besides, by the files' names in its folder without their ending, and what they show.
    """

    name: str
    source: str
    question: str
    found: str
    entrants: Sequence[Entrant]
    charts: Sequence[Chart]
    directions: Sequence[Direction]
    metrics: Sequence[str] = (LOSS, "perplexity")
    measure: Measure | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)


def below(less: Iterable[Entrant], more: Entrant, metric: str = LOSS) -> list[Direction]:
    """Each of some entrants has less of a metric than another one."""
    return [Direction(Quantity(one, metric), Quantity(more, metric)) for one in less]


def falling(entrants: Sequence[Entrant], metric: str = LOSS) -> list[Direction]:
    """A metric gets less from one entrant to the next."""
    return [direction for one, then in pairwise(entrants) for direction in below([then], one, metric)]


def gap(better: Entrant, worse: Entrant, metric: str = LOSS) -> Gap:
    """How far the one is ahead of the other in a metric of which less is better."""
    return Gap(Quantity(better, metric), Quantity(worse, metric))


def by_place(name: str, x: str) -> Chart:
    """A chart of the held-out loss over the entrants' places."""
    return Chart(name, x, LOSS_LABEL, lambda entrant: {entrant.place: LOSS})


def by_number(name: str, x: str, number: Callable[[Entrant], float]) -> Chart:
    """A chart of the held-out loss over some number of the entrants', on a logarithmic axis."""
    return Chart(name, x, LOSS_LABEL, lambda entrant: {number(entrant): LOSS}, logarithmic=True)


def non_embedding(entrant: Entrant) -> float:
    """Parameters without embedding and head; the paper's figures also leave out the norm before the head."""
    costs = cost(entrant.model)
    return costs.parameters - costs.embedding_parameters


def training_macs(entrant: Entrant) -> float:
    """Multiply-adds of a whole training as the paper counts them: `paper_macs` of every sequence, no backward pass."""
    training = entrant.training
    return paper_macs(entrant.model, training.context_length) * training.batch_size * training.num_steps
