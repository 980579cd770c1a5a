"""How did the paper score the zero-shot tasks? As its training code does (facts of it in docs/evaluation.md).

No token begins a text; context and continuation are tokenised apart; several choices are compared by the mean log
probability of a token of the continuation, pairs of sentences by the sum; who is right is ahead of all others, so that
a tie is wrong. lm-eval differs in each of these.
"""

from collections.abc import Callable
from typing import NamedTuple

from moeut.evaluation import cbt
from moeut.evaluation.items import Item
from moeut.evaluation.likelihood import Answer, Question
from moeut.evaluation.subject import Subject


class Exam(NamedTuple):
    """What to ask about an item, and how the answers make an outcome: 1 for right, 0 for wrong."""

    questions: list[Question]
    judge: Callable[[list[Answer]], float]


def lambada(item: Item, subject: Subject) -> Exam | None:
    """The likeliest tokens in the place of the last ones, each after the true text, end in the true last word.

    As many tokens as the word has bytes are looked at, so that byte-level tokenizers can be right outside ASCII; the
    training code takes as many as it has characters.
    """
    word = item["text"].split(" ")[-1]
    [ids] = subject.encode([item["text"]])
    cut = max(1, len(ids) - len(word.encode()))

    def judge(answers: list[Answer]) -> float:
        return float(subject.decode(answers[0].greedy.tolist()).split(" ")[-1] == word)

    return Exam([Question(tuple(ids[:cut]), tuple(ids[cut:]))], judge)


def blimp(item: Item, subject: Subject) -> Exam | None:
    """The grammatical sentence is the likelier one: by the sum over its tokens but the first, which has no context."""
    sentences = subject.encode([item["sentence_good"], item["sentence_bad"]])

    def judge(answers: list[Answer]) -> float:
        good, bad = (answer.log_likelihood for answer in answers)
        return float(good > bad)

    return Exam([Question(tuple(ids[:1]), tuple(ids[1:])) for ids in sentences], judge)


def hellaswag(item: Item, subject: Subject) -> Exam | None:
    """The right ending is ahead of the three others. Words in brackets stay, which lm-eval takes out."""
    context = f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}"
    endings = [f" {_without_titles(ending)}" for ending in item["endings"]]
    return _choice(_without_titles(context), endings, int(item["label"]), subject)


def piqa(item: Item, subject: Subject) -> Exam | None:
    """The right one of two solutions is ahead."""
    solutions = [f" {item[name]}" for name in ("sol1", "sol2")]
    return _choice(f"Question: {item['goal']}\nAnswer:", solutions, item["label"], subject)


def arc_easy(item: Item, subject: Subject) -> Exam | None:
    """The right answer is ahead of the three others; questions with more or fewer answers are left out."""
    texts, labels = item["choices"]["text"], item["choices"]["label"]
    if len(texts) != 4:
        return None
    prompt = f"Question: {item['question']}\nAnswer:"
    return _choice(prompt, [f" {text}" for text in texts], labels.index(item["answerKey"]), subject)


def children(item: Item, subject: Subject) -> Exam | None:
    """CBT: the right word, with the rest of its sentence, is ahead of the nine others; so all ten must be there."""
    asked = cbt.prompt(item)
    return _choice(**asked, subject=subject) if len(asked["choices"]) == 10 else None


def _choice(context: str, choices: list[str], gold: int, subject: Subject) -> Exam:
    first, *others = subject.encode([context, *choices])

    def judge(answers: list[Answer]) -> float:
        means = [answer.mean_log_prob for answer in answers]
        return float(all(means[gold] > mean for number, mean in enumerate(means) if number != gold))

    return Exam([Question(tuple(first) or (subject.begin_id,), tuple(ids)) for ids in others], judge)


def _without_titles(text: str) -> str:
    return text.strip().replace(" [title]", ". ").replace("  ", " ")


EXAMS: dict[str, Callable[[Item, Subject], Exam | None]] = {
    "lambada": lambada, "blimp": blimp, "cbt": children, "hellaswag": hellaswag, "piqa": piqa, "arc_easy": arc_easy,
}  # fmt: skip
