"""Is the paper's scoring what it is by hand: apart, without a beginning, by the token, ties wrong?"""

import math
from collections.abc import Callable

import pytest
import torch
from examined import FILES, ITEMS, Fake, oracle, subject, tokenizer_of_items, uniform
from torch import Tensor

from moeut.data.tokenizer import PaperTokenizer, build_tokenizer
from moeut.evaluation.items import Item
from moeut.evaluation.likelihood import Examiner
from moeut.evaluation.scorings import EXAMS
from moeut.evaluation.subject import Subject
from moeut.evaluation.task_data import from_folder
from moeut.evaluation.zero_shot import TASKS

LIKELY = {"a": 0.5, "b": 0.25, " ": 0.125}


def by_byte() -> Fake:
    """A model over bytes to which a, b and the space are likelier than all others, whatever came before."""
    probabilities = torch.full((257,), 0.125 / 254, dtype=torch.float64)
    for character, probability in LIKELY.items():
        probabilities[ord(character) + 1] = probability
    return Fake(lambda _: probabilities.log())


def judge(task: str, item: Item, it: Subject) -> float:
    exam = EXAMS[task](item, it)
    assert exam is not None
    return exam.judge(Examiner(it).ask(exam.questions))


def piqa(first: str, second: str, label: int) -> Item:
    return {"goal": "g", "sol1": first, "sol2": second, "label": label}


@pytest.mark.parametrize(
    ("first", "second", "right"),
    [
        ("a", "b", 0),
        ("b", "a", 1),
        ("aa", "a", 0),  # " a" is a prefix of " aa", whose tokens are likelier on average
        ("a", "aaa", 1),
        ("a b", "a x", 0),
        ("é", "a", 1),  # two bytes, both unlikely
        ("  a", " b", 0),  # spaces count as tokens
    ],
)
def test_the_mean_of_a_token_decides(first: str, second: str, right: int):
    it = subject(by_byte())
    assert judge("piqa", piqa(first, second, right), it) == 1
    assert judge("piqa", piqa(first, second, 1 - right), it) == 0


def test_ties_are_wrong():
    it = subject(by_byte())
    assert judge("piqa", piqa("ab", "ab", 0), it) == 0
    assert judge("piqa", piqa("ab", "ab", 1), it) == 0
    assert judge("blimp", {"sentence_good": "ab", "sentence_bad": "ab"}, it) == 0


def test_the_first_token_of_a_sentence_is_not_scored():
    it = subject(by_byte())
    assert judge("blimp", {"sentence_good": "xab", "sentence_bad": "abb"}, it) == 1
    assert judge("blimp", {"sentence_good": "x", "sentence_bad": "xa"}, it) == 1  # nothing is certain


def test_context_and_ending_are_cut_apart():
    """Each choice begins with a space, as SentencePiece would give it one."""
    it = subject(uniform())
    exam = EXAMS["piqa"](piqa("to", "fro", 0), it)
    assert exam is not None
    assert [it.decode(question.context) for question in exam.questions] == ["Question: g\nAnswer:"] * 2
    assert [it.decode(question.continuation) for question in exam.questions] == [" to", " fro"]


def test_hellaswag_loses_titles_but_keeps_brackets():
    it = subject(uniform())
    item = {
        "activity_label": "Act", "ctx_a": "[header] How [title] Sit", "ctx_b": "the Rower Waits", "label": "1",
        "endings": ["go  on. [title] Stop [step]", " stay "],
    }  # fmt: skip
    exam = EXAMS["hellaswag"](item, it)
    assert exam is not None
    assert it.decode(exam.questions[0].context) == "Act: [header] How. Sit The rower waits"
    assert [it.decode(question.continuation) for question in exam.questions] == [" go on.. Stop [step]", " stay"]


def test_what_is_left_out():
    """Questions without four answers, and blanks without ten words."""
    it = subject(uniform())
    items = from_folder(ITEMS, ["arc_easy", "cbt"])
    kept = [EXAMS["arc_easy"](item, it) is not None for item in items["arc_easy"].sets["arc_easy"]]
    assert kept == [True, True, True, False, True]
    item = items["cbt"].sets["cbt_p"][0]
    assert EXAMS["cbt"](item, it) is not None
    assert EXAMS["cbt"]({**item, "options": [*item["options"][:5], item["answer"]]}, it) is None


@pytest.mark.parametrize("word", ["cat", "é", "naïveté", "b", "“x”"])
@pytest.mark.parametrize("cut", ["bytes", "pieces"])
def test_the_last_word(word: str, cut: str):
    """A word of several tokens and bytes is right when each of its tokens is the likeliest after the true ones."""
    tokenizer = None if cut == "bytes" else tokenizer_of_items()
    it = subject(uniform(400), tokenizer)
    text = f"She said it was the {word}"
    [ids] = it.encode([text])
    knows = subject(oracle([ids], 400), tokenizer)
    assert judge("lambada", {"text": text}, knows) == 1
    assert judge("lambada", {"text": text[:-1] + "z"}, subject(oracle([ids], 400), tokenizer)) == 0
    wrong = oracle([[*ids[:-1], (ids[-1] + 1) % 400]], 400)
    assert judge("lambada", {"text": text}, subject(wrong, tokenizer)) == 0


def items_of(task: str) -> list[Item]:
    """The items of the tests; of CBT, whose are long, two."""
    items = [item for items in from_folder(ITEMS, [task])[task].sets.values() for item in items]
    return items[3:5] if task == "cbt" else items


def right_texts(task: str, item: Item, it: Subject) -> list[tuple[int, ...]]:
    """The right continuation after its context, as ids."""
    exam = EXAMS[task](item, it)
    if exam is None:
        return []
    gold = {
        "lambada": lambda: 0, "blimp": lambda: 0, "piqa": lambda: item["label"],
        "hellaswag": lambda: int(item["label"]),
        "arc_easy": lambda: item["choices"]["label"].index(item["answerKey"]),
        "cbt": lambda: item["options"].index(item["answer"]),
    }[task]()  # fmt: skip
    return [exam.questions[gold].context + exam.questions[gold].continuation]


@pytest.mark.parametrize("task", TASKS)
def test_who_knows_everything_is_right_everywhere(task: str):
    it = subject(uniform(400), tokenizer_of_items())
    for item in items_of(task):
        if texts := right_texts(task, item, it):
            assert judge(task, item, subject(oracle(texts, 400), tokenizer_of_items())) == 1


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("lambada", "blimp")])
def test_to_whom_all_is_equal_everything_is_a_tie(task: str):
    """By the mean of a token, all choices are as likely, and nobody is ahead."""
    it = subject(uniform(400), tokenizer_of_items())
    exams = [exam for item in items_of(task) if (exam := EXAMS[task](item, it)) is not None]
    for exam in exams:
        answers = Examiner(it).ask(exam.questions)
        assert [answer.mean_log_prob for answer in answers] == pytest.approx([-math.log(400)] * len(answers))


def noise(seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    """Logits that depend on nothing but the prefix, and on that without a pattern."""

    def logits(prefix: tuple[int, ...]) -> Tensor:
        return torch.randn(257, generator=torch.Generator().manual_seed(hash((seed, prefix)) % 2**40))

    return logits


def test_who_guesses_is_right_as_often_as_chance():
    it = subject(Fake(noise(1)))
    items = [piqa(f"a{n:03}", f"b{n:03}", n % 2) for n in range(300)]
    exams = [EXAMS["piqa"](item, it) for item in items]
    questions = [question for exam in exams if exam is not None for question in exam.questions]
    answers = iter(Examiner(it, 100).ask(questions))
    right = sum(exam.judge([next(answers), next(answers)]) for exam in exams if exam is not None)
    assert abs(right / 300 - 0.5) < 3 * math.sqrt(0.25 / 300)


def test_with_the_papers_own_tokenizer():
    """SentencePiece gives a continuation its space by itself, and loses the one that it was given."""
    pytest.importorskip("sentencepiece", reason="trains the paper's tokenizer")
    tokenizer = build_tokenizer(PaperTokenizer(vocab_size=400), [file.read_text("utf-8") for file in FILES])
    it = subject(uniform(400), tokenizer)
    exam = EXAMS["piqa"](piqa("to go", "fro", 0), it)
    assert exam is not None
    assert [list(question.continuation) for question in exam.questions] == it.encode(["to go", "fro"])
    text = "He said that there was a lantern"
    [ids] = it.encode([text])
    assert judge("lambada", {"text": text}, subject(oracle([ids], 400), tokenizer)) == 1
    assert judge("lambada", {"text": text}, subject(oracle([[*ids[:-1], 5]], 400), tokenizer)) == 0
