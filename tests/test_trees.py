"""YAML and dotted names lie over a tree as said, inside lists too."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moeut.trees import differences, merge, override, read_yaml, to_tree, to_yaml


@dataclass(frozen=True)
class Part:
    kind: str
    rate: float


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    name: str | None = None


WHOLE = Whole((Part("a", 1e-3), Part("b", 2.0)))


def test_yaml_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "whole.yaml"
    file.write_text(to_yaml(WHOLE))
    assert read_yaml(file) == to_tree(WHOLE)
    file.write_text("rate: 1e-3\ncount: 1e9")
    assert read_yaml(file) == {"rate": 1e-3, "count": 1e9}


@pytest.mark.parametrize(("content", "complaint"), [("a: [", "not a YAML file"), ("- 1", "expected a mapping")])
def test_what_is_no_mapping_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "file.yaml").write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_yaml(tmp_path / "file.yaml")


@pytest.mark.parametrize(
    ("key", "text", "changed"),
    [
        ("name", "x", {"name": "x"}),
        ("name.inner", "2", {"name": {"inner": 2}}),
        ("parts.1.rate", "1e2", {"parts": [{"kind": "a", "rate": 1e-3}, {"kind": "b", "rate": 100.0}]}),
        ("parts.0.kind", "c", {"parts": [{"kind": "c"}, {"kind": "b", "rate": 2.0}]}),
        ("parts", "[]", {"parts": []}),
    ],
)
def test_a_dotted_name_stands_for_a_place(key: str, text: str, changed: dict[str, Any]) -> None:
    tree = to_tree(WHOLE)
    override(tree, [(key, text)])
    assert tree == {**to_tree(WHOLE), **changed}


@pytest.mark.parametrize("number", ["2", "-1", "first"])
def test_an_element_that_is_not_there(number: str) -> None:
    with pytest.raises(ValueError, match=rf"parts\.{number}: no such element; there are 0, 1"):
        override(to_tree(WHOLE), [(f"parts.{number}.rate", "1")])


def test_a_value_that_is_not_yaml() -> None:
    with pytest.raises(ValueError, match="name: '\\[' is not a YAML value"):
        override(to_tree(WHOLE), [("name", "[")])


def test_other_parts_lose_their_fields() -> None:
    tree = {"part": {"kind": "a", "rate": 1}, "left": 2}
    merge(tree, {"part": {"kind": "a", "size": 3}})
    assert tree == {"part": {"kind": "a", "rate": 1, "size": 3}, "left": 2}
    merge(tree, {"part": {"kind": "b"}})
    assert tree == {"part": {"kind": "b"}, "left": 2}


def test_differences_are_named_by_their_dotted_names() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3, "c": 2}, "d": [2]}) == [
        "a.b: 1, now 3",
        "d: [1], now [2]",
    ]
    assert differences({str(i): i for i in range(5)}, {})[-1] == "and 2 more"
