"""Is this tree of plain values a configuration, and if not, what exactly is wrong? A line for each mistake."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

Tree = dict[str, Any]
"""A configuration as nested dicts, lists, numbers and strings."""

ConfigT = TypeVar("ConfigT")

INPUT = "Input should be "


def validate(kind: type[ConfigT], tree: Tree) -> ConfigT:
    """Build a configuration of type `kind` from a tree.

    Raises ValueError with a line for each mistake: unknown field (and the nearest right one), wrong type, impossible
    value.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(tree))
    except ValidationError as error:
        problems = (line for details in _by_field(tree, error.errors()) for line in _describe(kind, tree, details))
        raise ValueError("\n".join(dict.fromkeys(problems))) from None


def _by_field(tree: Tree, errors: list[ErrorDetails]) -> Iterable[ErrorDetails]:
    """The errors, one a field where pydantic has one for each thing that a value could have been."""
    merged: dict[tuple[str, ...], ErrorDetails] = {}
    for details in errors:
        # Of a field that holds a part of its own, each error says something else.
        key = (*_path(tree, details["loc"]), "" if details["msg"].startswith(INPUT) else details["msg"])
        if key in merged:
            details["msg"] = f"{merged[key]['msg']} or {details['msg'].removeprefix(INPUT)}"
        merged[key] = details
    return merged.values()


def _describe(kind: type[Any], tree: Tree, details: ErrorDetails) -> list[str]:
    """The lines for one of pydantic's errors: dotted field, what is wrong, what was given."""
    path = _path(tree, details["loc"])
    field = ".".join(path)
    match details["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = _field_names(kind, tree, path[:-1])
            near = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"did you mean {'.'.join([*path[:-1], *near])}?" if near else f"there are: {', '.join(known)}"
            return [f"{field}: unknown; {hint}"]
        case "missing" | "missing_argument":
            return [f"{field}: missing"]
        case "union_tag_not_found":
            return [f"{field}.kind: missing; say which part this is"]
        case "value_error":
            lines = str(details.get("ctx", {}).get("error", details["msg"])).splitlines()
            return [".".join([*path, line]) for line in lines]
        case _:
            return [f"{field}: {details['msg'][0].lower()}{details['msg'][1:]}, not {details['input']!r}"]


def _path(tree: Tree, location: tuple[int | str, ...]) -> list[str]:
    """pydantic's location without the tags of the parts it went through."""
    path: list[str] = []
    node: Any = tree
    for step in location:
        inside = isinstance(node, dict)
        if inside and step not in node and cast(Tree, node).get("kind") == step:
            continue
        if path and not isinstance(node, dict | list):
            # One of the things that this value could have been.
            continue
        path.append(str(step))
        node = _at(node, step)
    return path


def _at(node: Any, step: int | str) -> Any:
    if isinstance(node, list):
        elements = cast(list[Any], node)
        return elements[step] if isinstance(step, int) and step < len(elements) else None
    return cast(Tree, node).get(str(step))


def _field_names(kind: type[Any], tree: Tree, path: list[str]) -> list[str]:
    """The fields that a configuration has at a dotted path."""
    node: Any = tree
    for step in path:
        node = node[step]
        kind = _part(typing.get_type_hints(kind)[step], node)
    return [field.name for field in dataclasses.fields(kind)]


def _part(annotation: Any, node: Tree) -> type[Any]:
    """The member of a union of parts that the node's `kind` names."""
    if not isinstance(annotation, types.UnionType):
        return annotation
    return next(part for part in typing.get_args(annotation) if typing.get_type_hints(part)["kind"] == _literal(node))


def _literal(node: Tree) -> Any:
    return typing.Literal[node["kind"]]
