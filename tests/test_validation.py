"""Is every mistake in a tree named by its dotted path? What users see of it is tests/test_config.py."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from moeut.settings import STRICT, PositiveInt, refuse
from moeut.validation import validate


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Round:
    kind: Literal["round"] = "round"
    radius: PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Square:
    kind: Literal["square"] = "square"
    width: PositiveInt
    height: PositiveInt = 1

    def __post_init__(self) -> None:
        refuse([(self.height > self.width, "height: taller than wide"), (self.width > 9, "width: too wide")])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Box:
    shape: Annotated[Round | Square, Field(discriminator="kind")]
    label: str = "box"
    size: PositiveInt | Literal["auto"] = "auto"
    sides: tuple[PositiveInt | Literal["auto"], ...] = ()


def test_a_good_tree_becomes_the_configuration():
    assert validate(Box, {"shape": {"kind": "square", "width": 3}}) == Box(shape=Square(width=3))


@pytest.mark.parametrize(
    ("tree", "lines"),
    [
        ({}, ["shape: missing"]),
        ({"shape": {}}, ["shape.kind: missing; say which part this is"]),
        ({"shape": {"kind": "round"}}, ["shape.radius: missing"]),
        (
            {"shape": {"kind": "round", "radius": 1}, "size": 0},
            ["size: input should be greater than 0 or 'auto', not 0"],
        ),
        (
            {"shape": {"kind": "round", "radius": 1}, "size": "all", "sides": [1, 0, "x"]},
            [
                "size: input should be a valid integer or 'auto', not 'all'",
                "sides.1: input should be greater than 0 or 'auto', not 0",
                "sides.2: input should be a valid integer or 'auto', not 'x'",
            ],
        ),
        ({"shape": {"kind": "round", "radius": 0}}, ["shape.radius: input should be greater than 0, not 0"]),
        (
            {"shape": {"kind": "round", "radius": 1, "width": 2}, "lable": "x"},
            ["shape.width: unknown; there are: kind, radius", "lable: unknown; did you mean label?"],
        ),
        (
            {"shape": {"kind": "square", "width": 10, "height": 11}},
            ["shape.height: taller than wide", "shape.width: too wide"],
        ),
        ({"shape": {"kind": "square", "width": 1, "hight": 1}}, ["shape.hight: unknown; did you mean shape.height?"]),
    ],
    ids=str,
)
def test_each_mistake_is_a_line(tree: dict[str, Any], lines: list[str]):
    with pytest.raises(ValueError, match=r".") as caught:
        validate(Box, tree)
    assert str(caught.value).splitlines() == lines
