"""Which fields does an item of each zero-shot task have? Those of the Hub, into which the other forms are brought.

Each function takes a record as it was found. Raises what Python raises where it is not one of its task, or ValueError.
"""

from collections.abc import Callable
from typing import Any

from moeut.evaluation.cbt import prompt

Item = dict[str, Any]
ARC_LABELS = "ABCDEFGH"


def lambada(record: Item) -> Item:
    """A passage, whose last word is asked for."""
    return {"text": str(record["text"])}


def blimp(record: Item) -> Item:
    """Two sentences that differ little, of which only one is grammatical."""
    return {name: str(record[name]) for name in ("sentence_good", "sentence_bad")}


def hellaswag(record: Item) -> Item:
    """The beginning of a description, four endings, and which is right."""
    texts = {name: str(record[name]) for name in ("activity_label", "ctx_a", "ctx_b")}
    return {**texts, "endings": list(record["endings"]), "label": str(int(record["label"]))}


def piqa(record: Item) -> Item:
    """A goal, two ways to it, and which is right."""
    return {**{name: str(record[name]) for name in ("goal", "sol1", "sol2")}, "label": int(record["label"])}


def arc_easy(record: Item) -> Item:
    """A question of a school, some answers with labels, and the label of the right one.

    From three forms: the Hub's; the original release's, whose question has a `stem`; a flat one with `query`, the whole
    prompt, and `gold`, the right answer's number.
    """
    if "query" in record:
        question = record["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        texts, labels, key = record["choices"], ARC_LABELS, ARC_LABELS[record["gold"]]
    elif isinstance(record["question"], dict):
        question, choices, key = record["question"]["stem"], record["question"]["choices"], record["answerKey"]
        texts, labels = [choice["text"] for choice in choices], [choice["label"] for choice in choices]
    else:
        question, key = record["question"], record["answerKey"]
        texts, labels = record["choices"]["text"], record["choices"]["label"]
    labels = list(labels[: len(texts)])
    if key not in labels:
        raise ValueError(f"the answer {key!r} is not among {', '.join(labels)}")
    return {"question": question, "choices": {"text": list(texts), "label": labels}, "answerKey": key}


def cbt(record: Item) -> Item:
    """20 sentences, a 21st with a blank, ten words for it, and the right one."""
    item = {name: record[name] for name in ("sentences", "question", "answer", "options")}
    prompt(item)
    return item


CONVERTERS: dict[str, Callable[[Item], Item]] = {
    "lambada": lambada, "blimp": blimp, "cbt": cbt, "hellaswag": hellaswag, "piqa": piqa, "arc_easy": arc_easy,
}  # fmt: skip


def convert(task: str, record: object, place: str) -> Item:
    """The item of a task that a record is. Raises ValueError, one line with its place, where it is none."""
    try:
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__} instead of fields with names")
        return CONVERTERS[task](record)
    except KeyError as error:
        raise ValueError(f"{place}: not an item of {task}: it has no {error}") from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: not an item of {task}: {error}") from None
