"""Is the format of the Children's Book Test read, and does its text become ordinary text again?"""

import datasets
import pytest
from examined import ITEMS

from moeut.evaluation.cbt import SUBSETS, detokenise, parse, process_docs, prompt

SENTENCES = [f"{number} Sentence {number} ." for number in range(1, 21)]
QUESTION = "21 Then the XXXXX came .\tking\t\t" + "|".join(["king", *(f"word{n}" for n in range(9))])


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("`` Do n't ! '' she cried .", '"Don\'t!" she cried.'),
        ("It is , I 'm told , the king 's -LRB- or his sons ' -RRB- .", "It is, I'm told, the king's (or his sons')."),
        ("`` ` Yes , ' said he . ''", "\"'Yes,' said he.\""),
        ("He paid $ 5 -- or 6 % ; no more ...", "He paid $5 -- or 6%; no more..."),
        ("`` XXXXX my word , '' he said", '"XXXXX my word," he said'),
        ("Zoë 's naïveté ?", "Zoë's naïveté?"),
        ("", ""),
    ],
)
def test_ordinary_text(tokens: str, text: str):
    assert detokenise(tokens) == text


def test_the_items_of_the_tests():
    for name in SUBSETS:
        lines = (ITEMS / f"cbtest_{name}_test_2500ex.txt").read_text("utf-8").splitlines()
        items = list(parse(lines))
        assert len(items) == 3
        for item in items:
            assert len(item["sentences"]) == 20
            assert len(item["options"]) == 10
            asked = prompt(item)
            right = asked["context"] + asked["choices"][asked["gold"]]
            question = item["question"].replace("XXXXX", item["answer"])
            assert right.endswith(" " + detokenise(question))
            assert right.startswith(detokenise(item["sentences"][0]))
            assert item["options"][asked["gold"]] == item["answer"]


def item(question: str, answer: str = "king", options: tuple[str, ...] = ("queen", "king")) -> dict:
    return {"sentences": ["Once", "upon ."], "question": question, "answer": answer, "options": list(options)}


def test_where_the_spaces_are():
    """A space before the missing word belongs to the answer; where none stands before it, none is asked for."""
    asked = prompt(item("Then the XXXXX 's son came ."))
    assert asked == {
        "context": "Once upon. Then the",
        "choices": [" queen's son came.", " king's son came."],
        "gold": 1,
    }
    assert prompt(item("`` XXXXX , '' he said .")) == {
        "context": 'Once upon. "', "choices": ['queen," he said.', 'king," he said.'], "gold": 1,
    }  # fmt: skip
    assert prompt(item("XXXXX came .")) == {
        "context": "Once upon.",
        "choices": [" queen came.", " king came."],
        "gold": 1,
    }
    assert prompt(item("He could XXXXX go .", "n't", ("n't", "well")))["choices"] == ["n't go.", " well go."]


def test_the_answer_may_differ_in_case_but_must_be_there():
    assert prompt(item("The XXXXX .", "King"))["gold"] == 1
    assert prompt(item("The XXXXX .", "king", ("King", "king")))["gold"] == 1
    with pytest.raises(ValueError, match="the answer 'duke' is not among the options queen, king"):
        prompt(item("The XXXXX .", "duke"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*SENTENCES[:3], SENTENCES[4], QUESTION], "file:4: does not begin with 4"),
        ([*SENTENCES, "21 No blank .\tking\t\tking|queen"], "file:21: not a sentence with XXXXX"),
        ([*SENTENCES, "21 The XXXXX .\tking"], "file:21: not a sentence with XXXXX"),
        (SENTENCES, "file:20: the file ends within an item"),
    ],
)
def test_what_is_not_in_this_format(lines: list[str], message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        list(parse(lines, "file"))


def test_items_follow_each_other_with_or_without_empty_lines():
    both = [list(parse([*SENTENCES, QUESTION, *gap, *SENTENCES, QUESTION, ""])) for gap in ([], ["", ""])]
    assert both[0] == both[1]
    assert [item["sentences"][19] for item in both[0]] == ["Sentence 20 .", "Sentence 20 ."]


def test_for_lm_eval():
    found = process_docs(datasets.Dataset.from_list([item("The XXXXX .")]))[0]
    assert found["context"] == "Once upon. The"
    assert found["gold"] == 1
