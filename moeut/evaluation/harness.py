"""How are tasks asked and scored as `lm-eval` does? By itself, with its own tasks, on items and a model of ours.

Prompts, requests and metrics are those of the tasks as they come with lm-eval; CBT, which it lacks, is beside this file
in the same form. Only the items come from us, and the log-likelihoods.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import lm_eval.utils
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from moeut.evaluation.items import Item
from moeut.evaluation.likelihood import Examiner, Question
from moeut.evaluation.outcomes import Outcome, identity

OURS = Path(__file__).with_name("tasks")
THEIRS = Path(lm_eval.tasks.__file__).parent
PLACES = {
    "lambada": THEIRS / "lambada", "blimp": THEIRS / "blimp", "cbt": OURS, "hellaswag": THEIRS / "hellaswag",
    "piqa": THEIRS / "piqa", "arc_easy": THEIRS / "arc",
}  # fmt: skip
ONLY_TEST = {"training_split": None, "validation_split": None, "test_split": "test"}
"""Without examples in the prompt no other split is looked at."""

NAME = "lm-eval"


class Adapter(LM):
    """An examiner as lm-eval knows a model. It answers what the tasks ask: how likely continuations are.

    Texts are cut as by lm-eval's own model `hf`: context and continuation together, then divided where the context
    alone would end, spaces at the context's end counting as the continuation's; an empty context is the token that
    begins a text.
    """

    def __init__(self, examiner: Examiner, stage: str) -> None:
        super().__init__()
        self.examiner, self.stage = examiner, stage
        self.truncated: set[tuple[str, str]] = set()

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each (context, continuation): ln p of the continuation, and whether each token is the likeliest."""
        asked: list[tuple[str, str]] = [request.args for request in requests]
        questions = self._questions(asked)
        answers = self.examiner.ask(questions, self.stage)
        self.truncated |= {texts for texts, answer in zip(asked, answers, strict=True) if answer.truncated}
        return [
            (answer.log_likelihood, tuple(answer.greedy.tolist()) == question.continuation)
            for question, answer in zip(questions, answers, strict=True)
        ]

    def _questions(self, asked: list[tuple[str, str]]) -> list[Question]:
        subject = self.examiner.subject
        contexts = [context.rstrip() for context, _ in asked]
        contexts_ids = subject.encode(contexts)
        whole_ids = subject.encode([context + continuation for context, continuation in asked])
        questions: list[Question] = []
        for context, before, whole in zip(contexts, contexts_ids, whole_ids, strict=True):
            if context:
                start, cut = subject.prefix_ids, len(subject.prefix_ids) + len(before)
            else:
                start, cut = () if whole[:1] == [subject.begin_id] else (subject.begin_id,), 1
            ids = (*start, *whole)
            questions.append(Question(ids[:cut], ids[cut:]))
        return questions

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Not asked by these tasks."""
        raise NotImplementedError("no task here asks for whole texts; `moeut evaluate --data` scores them")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Not asked by these tasks."""
        raise NotImplementedError("no task here asks for generated text")


def run(examiner: Examiner, task: str, sets: dict[str, list[Item]]) -> tuple[list[Outcome], dict[str, Any]]:
    """The outcomes of a task's items, and the version of each set's task in lm-eval.

    Raises ValueError where lm-eval has no task of a set's name.
    """
    # lm-eval draws bars and writes notes; ours are shown instead.
    with redirect_stderr(io.StringIO()), _templates_compiled_once():
        manager = lm_eval.tasks.TaskManager(include_path=str(PLACES[task]), include_defaults=False)
        unknown = set(sets) - set(manager.all_subtasks)
        if unknown:
            raise ValueError(f"{task}: lm-eval has no task {', '.join(sorted(unknown))}")
        members = [{"task": name, **ONLY_TEST, "custom_dataset": _dataset(items)} for name, items in sets.items()]
        adapter = Adapter(examiner, task)
        results: Any = evaluate(
            lm=adapter,
            task_dict=manager.load([{"group": f"{task} here", "task": members}]),
            bootstrap_iters=0,
            log_samples=True,
        )
    outcomes = [
        _outcome(examiner.subject.name, task, name, sets[name], sample, adapter.truncated)
        for name in sets
        for sample in results["samples"][name]
    ]
    return outcomes, {name: results["versions"][name] for name in sets}


@contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """lm-eval compiles the templates of a task anew for every item, which takes longer than a small model does."""
    environment: Any = lm_eval.utils.env
    environment.from_string = cache(environment.from_string)
    try:
        yield
    finally:
        del environment.from_string


def _dataset(items: list[Item]) -> Callable[..., dict[str, datasets.Dataset]]:
    return lambda **_: {"test": datasets.Dataset.from_list(items)}


def _outcome(
    model: str, task: str, name: str, items: list[Item], sample: dict[str, Any], truncated: set[tuple[str, str]]
) -> Outcome:
    metrics = {metric: float(sample[metric]) for metric in sample["metrics"]}
    if "perplexity" in metrics:
        metrics["nats"] = -metrics.pop("perplexity")
    return Outcome(
        model, task, name, sample["doc_id"], identity(items[sample["doc_id"]]), NAME, metrics,
        [response[0][0] for response in sample["resps"]],
        any(tuple(texts) in truncated for texts in sample["arguments"]),
    )  # fmt: skip
