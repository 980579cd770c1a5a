"""Which model is better, over sizes, corpora and zero-shot tasks? The paper's main table."""

from collections.abc import Callable
from pathlib import Path

from moeut.evaluation.zero_shot import AVERAGE, PAPER, TASKS
from moeut.experiments.evaluation import Plan, measure, read_items
from moeut.experiments.reproduction.scales import Scale
from moeut.experiments.reproduction.study import LOSS, Direction, Means, Quantity, Study, below, by_place
from moeut.experiments.reproduction.systems import DENSE, MOEUT
from moeut.experiments.subjects import Reading

SIZES = {
    "c4": ("44m", "126m", "244m", "318m", "727m", "1b"),
    "slimpajama": ("44m", "244m", "1b"),
    "pes2o": ("44m", "244m"),
}
"""Those that the paper trained on each corpus."""


def main_table(scale: Scale) -> Study:
    """MoEUT and dense on every corpus."""
    pairs = [
        [scale.entrant(system, size, corpus, f"{size} {corpus}") for system in (MOEUT, DENSE)]
        for corpus in scale.corpora(*SIZES)
        for size in SIZES.get(corpus, scale.moeuts)
    ]
    metrics = [*scale.tasks, *([AVERAGE] if set(scale.tasks) == set(TASKS) else [])]
    return Study(
        name="main-table",
        source="table 1",
        question="Which predicts text better, a MoEUT or a dense Transformer of as many parameters, and which does "
        "better on zero-shot tasks?",
        found="MoEUT is marginally better in most tasks and corpora (caption; the numbers were not found).",
        entrants=[entrant for pair in pairs for entrant in pair],
        charts=[by_place("by-size", "size and corpus")],
        directions=[
            direction
            for moeut, dense in pairs
            for direction in [
                *below([moeut], dense),
                *(Direction(Quantity(dense, metric), Quantity(moeut, metric)) for metric in metrics),
            ]
        ],
        metrics=(LOSS, "perplexity", *metrics),
        measure=tasks(scale) if scale.tasks else None,
    )


def tasks(scale: Scale) -> Callable[[Means], Callable[[Path], dict[str, float]]]:
    """The accuracies in the tasks of a scale, scored as in the paper, and their mean."""

    def prepared(means: Means) -> Callable[[Path], dict[str, float]]:
        plan = Plan(
            reading=Reading(device=means.device), tasks=scale.tasks, task_folder=means.task_folder, scorings=(PAPER,)
        )
        read_items(plan, means.progress)  # says what is missing before anything is trained

        def accuracies(run: Path) -> dict[str, float]:
            [measured] = measure([str(run)], plan, means.progress)
            return {row.task: row.value for row in measured.rows if row.metric == "acc"}

        return accuracies

    return prepared
