"""What is a run made of, and how does one say it? Data, model and training; presets, YAML files, dotted overrides.

Later wins: a preset's values < a YAML file < the command line. Everything is checked at once, and each mistake is one
line that names the field.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from moeut.model.language_model import ModelConfig
from moeut.settings import STRICT
from moeut.training.loop import TrainingConfig

Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Everything that decides a run's result, saved with it as `config.yaml`.

    data: folder made by `moeut prepare`. model: `moeut.model.language_model.ModelConfig`. training:
    `moeut.training.loop.TrainingConfig`.
    """

    data: str
    model: ModelConfig
    training: TrainingConfig


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number, as everyone means it."""


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def run_config(base: Mapping[str, Any], file: Path | None, overrides: Iterable[tuple[str, str]]) -> RunConfig:
    """The configuration that `base` (a preset as a tree), then a YAML file, then dotted overrides make together.

    Raises ValueError with a line for each mistake: unknown key (and the nearest right one), wrong type, impossible
    value.
    """
    tree = cast(Tree, json.loads(json.dumps(base)))
    if file is not None:
        merge(tree, read_yaml(file))
    for key, text in overrides:
        merge(tree, _nested(key, _value(key, text)))
    return validate(RunConfig, tree)


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


def to_tree(config: object) -> Tree:
    """A configuration as nested dicts, lists, numbers and strings."""
    return cast(Tree, json.loads(json.dumps(dataclasses.asdict(cast(Any, config)))))


def merge(tree: Tree, changes: Mapping[str, Any]) -> None:
    """Lay `changes` over `tree`. A part whose `kind` changes loses its old fields: they belonged to another part."""
    for key, change in changes.items():
        old = tree.get(key)
        if not isinstance(change, dict) or not isinstance(old, dict):
            tree[key] = change
            continue
        old, change = cast(Tree, old), cast(Tree, change)
        if "kind" in change and change["kind"] != old.get("kind"):
            tree[key] = change
        else:
            merge(old, change)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What differs between two trees: `a.b: 1, now 2` for every field, at most three and a count."""
    lines = list(_differences(ours, theirs, ""))
    return lines if len(lines) <= 3 else [*lines[:3], f"and {len(lines) - 3} more"]


def validate(kind: type[Any], tree: Tree) -> Any:
    """Build a configuration of type `kind` from a tree. Raises ValueError with one line for each mistake."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(tree))
    except ValidationError as error:
        problems = (line for details in error.errors() for line in _describe(kind, tree, details))
        raise ValueError("\n".join(dict.fromkeys(problems))) from None


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
        path.append(str(step))
        node = cast(Tree, node).get(str(step)) if inside else None
    return path


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
