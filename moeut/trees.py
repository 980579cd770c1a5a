"""How does one say a configuration? As a tree of plain values: YAML, dotted overrides, what differs.

Whose configuration it is decides `moeut.validation`.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from moeut.files import replacing
from moeut.validation import Tree


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number, as everyone means it."""


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(file: Path) -> Tree:
    """The mapping in a YAML file. Raises ValueError where it is not one."""
    try:
        tree: Any = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: expected a mapping of settings, such as `training: {{num_steps: 100}}`")
    return cast(Tree, tree)


def to_yaml(config: object) -> str:
    """A configuration as YAML that reads back as the same configuration."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True)


def write_yaml(file: Path, config: object) -> None:
    """Write a configuration as YAML, all at once. Raises OSError where it cannot be written."""
    with replacing(file) as partial:
        partial.write_text(to_yaml(config), encoding="utf-8")


def to_tree(config: object) -> Tree:
    """A configuration as nested dicts, lists, numbers and strings."""
    return cast(Tree, json.loads(json.dumps(dataclasses.asdict(cast(Any, config)))))


def merge(tree: Tree, changes: Mapping[str, Any]) -> None:
    """Lay `changes` over `tree`; the number of an element stands for it.

    A part whose `kind` changes loses its old fields: they belonged to another part. Raises ValueError where there is no
    such element.
    """
    for key, change in changes.items():
        old = tree.get(key)
        if isinstance(old, list) and isinstance(change, dict):
            tree[key] = _merge_elements(key, cast(list[Any], old), cast(Tree, change))
            continue
        if not isinstance(change, dict) or not isinstance(old, dict):
            tree[key] = change
            continue
        old, change = cast(Tree, old), cast(Tree, change)
        if "kind" in change and change["kind"] != old.get("kind"):
            tree[key] = change
        else:
            merge(old, change)


def _merge_elements(key: str, old: list[Any], changes: Tree) -> list[Any]:
    elements: Tree = {str(number): element for number, element in enumerate(old)}
    for number in changes:
        if number not in elements:
            raise ValueError(f"{key}.{number}: no such element; there are {', '.join(elements) or 'none'}")
    merge(elements, changes)
    return list(elements.values())


def override(tree: Tree, overrides: Iterable[tuple[str, str]]) -> None:
    """Lay dotted names and their values, as YAML, over `tree`. Raises ValueError where a value is no YAML."""
    for key, text in overrides:
        merge(tree, _nested(key, _value(key, text)))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What differs between two trees: `a.b: 1, now 2` for every field, at most three and a count."""
    lines = list(_differences(ours, theirs, ""))
    return lines if len(lines) <= 3 else [*lines[:3], f"and {len(lines) - 3} more"]


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in dict.fromkeys([*ours, *theirs]):
        old, new = ours.get(key), theirs.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(cast(Tree, old), cast(Tree, new), f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {old}, now {new}"


def _nested(key: str, value: Any) -> Tree:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _value(key: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ValueError(f"{key}: {text!r} is not a YAML value") from None
