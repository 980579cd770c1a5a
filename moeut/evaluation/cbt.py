"""What is an item of the Children's Book Test, and how is it asked? (Hill et al., "The Goldilocks Principle", 2016.)

An item is 20 sentences of a book and a 21st in which a word is missing (XXXXX), with 10 words to choose from. The text
comes cut into tokens as in the Penn Treebank: "`` Do n't ! '' she cried ." becomes "Don't!" she cried. again.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

BLANK = "XXXXX"
SUBSETS = {"CN": "common nouns", "NE": "named entities", "P": "prepositions", "V": "verbs"}
OPENING = {"``": '"', "`": "'", "-LRB-": "(", "(": "(", "-LSB-": "[", "[": "[", "-LCB-": "{", "{": "{", "$": "$"}
"""What sticks to the word after it."""

CLOSING = {"''": '"', "-RRB-": ")", "-RSB-": "]", "-RCB-": "}"}
STICKS = re.compile(r"[.,;:!?%)\]}]+|'|'(s|S|m|re|ve|ll|d)|n't|N'T")
"""What sticks to the word before it, besides the closing ones."""


def parse(lines: Iterable[str], name: str = "CBT") -> Iterator[dict[str, Any]]:
    """The items of a file of the original release: numbered lines, the last with tabs, an empty line between items.

    Each has `sentences`, `question`, `answer` and `options`. Raises ValueError with `name` and the number
    of a line that is none of these.
    """
    sentences: list[str] = []
    number = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        index, _, rest = line.rstrip("\n").partition(" ")
        question, *fields = rest.split("\t")
        if not index.isdigit() or int(index) != len(sentences) + 1:
            raise ValueError(f"{name}:{number}: does not begin with {len(sentences) + 1}")
        if not fields:
            sentences.append(rest)
            continue
        if BLANK not in question or len(fields) < 2:
            raise ValueError(f"{name}:{number}: not a sentence with {BLANK}, an answer and options between tabs")
        yield {
            "sentences": sentences, "question": question, "answer": fields[0], "options": fields[-1].split("|"),
        }  # fmt: skip
        sentences = []
    if sentences:
        raise ValueError(f"{name}:{number}: the file ends within an item")


def detokenise(text: str) -> str:
    """Treebank tokens as ordinary text."""
    written, sticks = "", True
    for token in text.split():
        closing = CLOSING.get(token, token if STICKS.fullmatch(token) else None)
        written += closing or ("" if sticks else " ") + OPENING.get(token, token)
        sticks = token in OPENING
    return written


def prompt(item: dict[str, Any]) -> dict[str, Any]:
    """`context`, the story and the question up to the blank; `choices`, how it may go on; `gold`, how it does.

    Raises ValueError if the answer is not among the options.
    """
    before, _, after = item["question"].partition(BLANK)
    beginning = detokenise(before)
    choices = [detokenise(before + option + after)[len(beginning) :] for option in item["options"]]
    story = detokenise(" ".join(item["sentences"]))
    options = [option.lower() for option in item["options"]]
    if item["answer"].lower() not in options:
        raise ValueError(f"the answer {item['answer']!r} is not among the options {', '.join(item['options'])}")
    exact = item["options"].index(item["answer"]) if item["answer"] in item["options"] else None
    return {
        "context": f"{story} {beginning}".rstrip(),
        "choices": choices if beginning else [f" {choice}" for choice in choices],
        "gold": options.index(item["answer"].lower()) if exact is None else exact,
    }


def process_docs(dataset: Any) -> Any:
    """A `datasets.Dataset` of items with their prompts, for lm-eval."""
    return dataset.map(prompt)
