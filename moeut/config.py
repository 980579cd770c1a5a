"""What is a run made of, and how does one say it? Data, model and training; presets, YAML files, dotted overrides.

Later wins: a preset's values < a YAML file < the command line. Everything is checked at once, and each mistake is one
line that names the field.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic.dataclasses import dataclass

from moeut.model.language_model import ModelConfig
from moeut.settings import STRICT
from moeut.training.training_config import TrainingConfig
from moeut.trees import merge, override, read_yaml
from moeut.validation import Tree, validate


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Everything that decides a run's result, saved with it as `config.yaml`.

    data: folder made by `moeut prepare`. model: `moeut.model.language_model.ModelConfig`. training:
    `moeut.training.training_config.TrainingConfig`. init_from: model or run folder whose weights training begins with,
    instead of random ones.
    """

    data: str
    model: ModelConfig
    training: TrainingConfig
    init_from: str | None = None


def run_config(base: Mapping[str, Any], file: Path | None, overrides: Iterable[tuple[str, str]]) -> RunConfig:
    """The configuration that `base` (a preset as a tree), then a YAML file, then dotted overrides make together.

    Raises ValueError with a line for each mistake: unknown key (and the nearest right one), wrong type, impossible
    value.
    """
    tree = cast(Tree, json.loads(json.dumps(base)))
    if file is not None:
        merge(tree, read_yaml(file))
    override(tree, overrides)
    return validate(RunConfig, tree)
