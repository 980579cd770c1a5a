"""What official numbers say of their models, and checkpoints as the official trainer writes them, made of those."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.language_model import ModelConfig
from moeut.model.rope import num_rotated_channels

ASSETS = Path(__file__).parent / "assets" / "parity"
DICT_CLASS = "framework.data_structures.dotdict"
"""Where the training code keeps a dict class of its own, which its checkpoints name."""


def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A case of official numbers: what is said of it, and its tensors."""
    entry = json.loads((ASSETS / "manifest.json").read_text())["cases"][name]
    return entry, load_file(ASSETS / entry["file"])


def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A case's state dict, counters and all."""
    prefixes = ("param/", "persistent_buffer/")
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


def arguments(argv: list[str]) -> dict[str, Any]:
    """A command line as the trainer stores it, where a later word overrides an earlier one."""
    return {name.removeprefix("-"): value for name, value in zip(argv[::2], argv[1::2], strict=True)}


def checkpoint(name: str = "train_moeut_periln_aabb", **changed: Any) -> dict[str, Any]:
    """What a checkpoint with a case's weights and arguments holds, some arguments changed (`a__b` is `a.b`)."""
    entry, tensors = case(name)
    changes = {argument.replace("__", "."): value for argument, value in changed.items()}
    return {
        "state": {"iter": 30, "epoch": 3, "best_losses": {"val": {"loss": 2.4, "iter": 30}}},
        "run_invariants": {"args": {**arguments(entry["argv"]), **changes}, "wandb_id": {}},
        "sampler": {"pos": None},
        "interface": {},
        "optimizer": {"state": {0: {"step": torch.tensor(30.0)}}, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "scaler": {},
        "model": weights(tensors),
    }


def write_checkpoint(file: Path, content: dict[str, Any]) -> Path:
    """Save as the trainer does: `state` is of a class that nobody here has."""
    dot_dict = type("DotDict", (dict,), {"__module__": DICT_CLASS})
    modules = [".".join(DICT_CLASS.split(".")[:depth]) for depth in (1, 2, 3)]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setitem(sys.modules, module, ModuleType(module))
        patch.setattr(sys.modules[DICT_CLASS], "DotDict", dot_dict, raising=False)
        torch.save({**content, "state": dot_dict(content["state"])}, file)
    return file


def entries(config: pytest.Config, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and description of every case that has a `key`, here and among the numbers elsewhere, if they are there."""
    folders = dict.fromkeys([ASSETS, Path(str(config.getoption("--parity")))])
    return [
        (f"{folder.name}-{name}", entry)
        for folder in folders
        if (folder / "manifest.json").is_file()
        for name, entry in json.loads((folder / "manifest.json").read_text())["cases"].items()
        if entry.get(key)
    ]


def as_rotated(config: ModelConfig, like: ModelConfig) -> ModelConfig:
    """The same with the share of rotated channels written as in another, if it means as many."""
    attention, other = config.attention, like.attention
    if isinstance(attention, AttentionExpertsConfig) or isinstance(other, AttentionExpertsConfig):
        return config
    counts = [num_rotated_channels(one.head_dim, one.partial_rotary_factor) for one in (attention, other)]
    assert counts[0] == counts[1]
    return replace(config, attention=replace(attention, partial_rotary_factor=other.partial_rotary_factor))
