"""Do the shared field types refuse what they should, and are mistakes told in full, or counted?"""

import math

import pytest
from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from moeut.settings import (
    STRICT,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    listed,
    refuse,
    suggestion,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Example:
    count: PositiveInt = 1
    steps: NonNegativeInt = 0
    rate: PositiveFloat = 1.0
    weight: NonNegativeFloat = 0.0
    dropout: Probability = 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0}, {"count": True}, {"count": "1"}, {"count": 1.0}, {"steps": -1}, {"rate": 0.0}, {"rate": math.inf},
        {"rate": math.nan}, {"weight": -0.1}, {"weight": math.inf}, {"dropout": 1.0}, {"dropout": -0.1}, {"other": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_impossible_is_refused(wrong: dict[str, object]):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Example(**wrong)  # pyright: ignore[reportArgumentType]


def test_what_is_possible_is_taken():
    assert Example(count=3, rate=1, dropout=0.99) == Example(count=3, rate=1.0, dropout=0.99)


def test_refuse_names_everything_that_is_wrong():
    refuse([(False, "fine")])
    with pytest.raises(ValueError, match=r"^a: bad\nc: worse$"):
        refuse([(True, "a: bad"), (False, "b: fine"), (True, "c: worse")])


def test_many_things_are_listed_by_the_first_ten_and_a_count():
    letters = "abcdefghijkl"
    assert listed([]) == ""
    assert listed(letters[:2]) == "a, b"
    assert listed(letters[:10], "; ") == "a; b; c; d; e; f; g; h; i; j"
    assert listed(letters) == "a, b, c, d, e, f, g, h, i, j, and 2 more"
    assert listed(["x"] * 2010).endswith(", and 2,000 more")


def test_an_unknown_name_is_told_the_nearest_one():
    known = ["norms", "groups", "scaling"]
    assert suggestion("norm", known, "see the list") == "did you mean norms?"
    assert suggestion("zzz", known, "see the list") == "see the list"
