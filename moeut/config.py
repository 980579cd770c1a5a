"""What is a run made of, and how does one say it? Data, model and training; presets, YAML files, dotted overrides.

Later wins: a preset's values < a YAML file < the command line. Everything is checked at once, and each mistake is one
line that names the field.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic.dataclasses import dataclass

from moeut.model.language_model import ModelConfig
from moeut.settings import STRICT
from moeut.training.loop import TrainingConfig
from moeut.validation import Tree, validate


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
