"""Do all forms of an item come to the same, and is what is no item named with its place?"""

import pytest

from moeut.evaluation.items import arc_easy, blimp, cbt, convert, hellaswag, lambada, piqa


def test_three_forms_of_a_question():
    flat = {"id": "a", "query": "Question: Which?\nAnswer:", "choices": ["this", "that", "none"], "gold": 1}
    original = {
        "id": "a",
        "question": {
            "stem": "Which?",
            "choices": [{"text": t, "label": n} for t, n in zip(("this", "that", "none"), "ABC", strict=True)],
        },
        "answerKey": "B",
    }
    hub = {
        "id": "a",
        "question": "Which?",
        "choices": {"text": ["this", "that", "none"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    expected = {key: hub[key] for key in ("question", "choices", "answerKey")}
    assert arc_easy(flat) == arc_easy(original) == arc_easy(hub) == expected


def test_labels_may_be_numbers():
    hub = {"question": "Which?", "choices": {"text": ["this", "that"], "label": ["1", "2"]}, "answerKey": "2"}
    assert arc_easy(hub) == hub
    with pytest.raises(ValueError, match="the answer 'B' is not among 1, 2"):
        arc_easy({**hub, "answerKey": "B"})


def test_fields_that_are_not_needed_are_left_out():
    assert lambada({"text": "a b", "domain": "x"}) == {"text": "a b"}
    assert blimp({"sentence_good": "a", "sentence_bad": "b", "UID": "c"}) == {"sentence_good": "a", "sentence_bad": "b"}
    item = {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": 1}
    assert hellaswag({**item, "ind": 3, "ctx": "b c"}) == hellaswag({**item, "label": "1"}) == {**item, "label": "1"}
    item = {"goal": "a", "sol1": "b", "sol2": "c", "label": 1}
    assert piqa({**item, "label": "1\n"}) == item


def test_a_question_of_the_childrens_book_test_must_have_its_answer():
    item = {"sentences": ["a"], "question": "b XXXXX", "answer": "c", "options": ["c", "d"]}
    assert cbt({**item, "more": 1}) == item
    with pytest.raises(ValueError, match="the answer 'e' is not among"):
        cbt({**item, "answer": "e"})


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("piqa", {"goal": "a", "sol1": "b", "label": 0}, "f:3: not an item of piqa: it has no 'sol2'"),
        ("piqa", {"goal": "a", "sol1": "b", "sol2": "c", "label": "x"}, "f:3: not an item of piqa: invalid literal"),
        ("lambada", ["a"], "f:3: not an item of lambada: a list instead of fields with names"),
        (
            "arc_easy",
            {"question": "a", "choices": ["b"], "answerKey": "A"},
            "f:3: not an item of arc_easy: list indices",
        ),
        ("arc_easy", {"query": "a", "choices": ["b"], "gold": 9}, "f:3: not an item of arc_easy: string index"),
    ],
)
def test_what_is_no_item(task: str, record: object, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        convert(task, record, "f:3")
