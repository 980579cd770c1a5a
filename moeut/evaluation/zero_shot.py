"""How does a model do on the six zero-shot tasks of the paper, in lm-eval's scoring, in the paper's, or in both?"""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from moeut.evaluation.items import Item
from moeut.evaluation.likelihood import Examiner
from moeut.evaluation.outcomes import Outcome, Row, identity, rows
from moeut.evaluation.scorings import EXAMS

TASKS = ("lambada", "blimp", "cbt", "hellaswag", "piqa", "arc_easy")
LM_EVAL, PAPER = SCORINGS = ("lm-eval", "paper")
AVERAGE = "average"


class TaskResult(NamedTuple):
    """A model's outcomes on a task in one or both scorings, the figures made of them, and the versions of lm-eval's."""

    outcomes: list[Outcome]
    rows: list[Row]
    versions: dict[str, Any]


def check(tasks: Sequence[str], scorings: Sequence[str]) -> None:
    """Refuse what there is not. Raises ValueError for an unknown task or scoring, or where lm-eval is not installed."""
    for kind, names, known in (("tasks", tasks, TASKS), ("scoring", scorings, SCORINGS)):
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ValueError(f"--{kind}: {', '.join(unknown) or 'nothing'} is not among {', '.join(known)}")
    if LM_EVAL in scorings and find_spec("lm_eval") is None:
        raise ValueError("--tasks: needs lm-eval: pip install 'moeut[eval]'; --scoring paper does without")


def run_task(
    examiner: Examiner, task: str, sets: dict[str, list[Item]], scorings: Sequence[str] = SCORINGS
) -> TaskResult:
    """One task, in one scoring after the other; a question that both ask is answered once.

    Raises ValueError where there are no items.
    """
    outcomes: list[Outcome] = []
    figures: list[Row] = []
    versions: dict[str, Any] = {}
    for scoring in scorings:
        began = time.perf_counter()
        if scoring == LM_EVAL:
            from moeut.evaluation import harness  # loads lm-eval

            found, versions = harness.run(examiner, task, sets)
        else:
            found = _as_in_the_paper(examiner, task, sets)
        if not found:
            raise ValueError(f"{task}: none of its items can be scored as the {scoring} does")
        outcomes += found
        figures += rows(found, time.perf_counter() - began)
    return TaskResult(outcomes, figures, versions)


def average(figures: Sequence[Row]) -> list[Row]:
    """The plain mean of a model's six accuracies in the paper's scoring, as its tables print it, if all are there.

    The standard error is that of independent tasks.
    """
    accuracies = [row for row in figures if row.scoring == PAPER and row.metric == "acc"]
    if {row.task for row in accuracies} != set(TASKS):
        return []
    value = sum(row.value for row in accuracies) / len(accuracies)
    error = sum(row.standard_error**2 for row in accuracies) ** 0.5 / len(accuracies)
    return [
        Row(
            accuracies[0].model, AVERAGE, PAPER, "acc", value, error, sum(row.items for row in accuracies),
            sum(row.truncated for row in accuracies), sum(row.seconds for row in accuracies),
        )
    ]  # fmt: skip


def _as_in_the_paper(examiner: Examiner, task: str, sets: dict[str, list[Item]]) -> list[Outcome]:
    subject = examiner.subject
    asked = [
        (name, index, item, exam)
        for name, items in sets.items()
        for index, item in enumerate(items)
        if (exam := EXAMS[task](item, subject)) is not None
    ]
    answers = iter(examiner.ask([question for *_, exam in asked for question in exam.questions], task))
    outcomes: list[Outcome] = []
    for name, index, item, exam in asked:
        mine = [next(answers) for _ in exam.questions]
        outcomes.append(
            Outcome(
                subject.name, task, name, index, identity(item), PAPER, {"acc": exam.judge(mine)},
                [answer.log_likelihood for answer in mine], any(answer.truncated for answer in mine),
            )
        )  # fmt: skip
    return outcomes
