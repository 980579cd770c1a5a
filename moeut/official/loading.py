"""How are the official code bases' files read? As data, never as programs.

A checkpoint of the training code (RobertCsordas/moeut_training_code, `.ckpt` or `.pth`) holds the weights under `model`
and what the run was told under `run_invariants.args`; the optimizer's state may be there or not. A state dict holds
weights alone, as the clean release's users save them: by `torch.save` or as safetensors.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from moeut.model.folder import refuse_misfits
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.tensor_files import read_tensors
from moeut.official.arguments import Described, described_model
from moeut.official.names import from_official
from moeut.settings import listed

# The training code's own dict class is pickled by name; a plain dict under that name is all that is let in besides
# what PyTorch makes tensors of.
SAFE: list[Any] = [(dict, "framework.data_structures.dotdict.DotDict")]


class Checkpoint(NamedTuple):
    """What an official file holds. arguments: of the run, as typed; None in a file that holds weights alone."""

    weights: dict[str, Tensor]
    arguments: dict[str, Any] | None


class Loaded(NamedTuple):
    """A model of an official file's weights, and what a user should know of how it was described.

    arguments: of the run, as in a `Checkpoint`.
    """

    model: LanguageModel
    notes: tuple[str, ...]
    arguments: dict[str, Any] | None


def load_official(file: Path, config: ModelConfig | None = None) -> Loaded:
    """The model in an official file, every tensor of it from there.

    config: which model it is, where the file does not say; its vocabulary is taken from the file.

    Raises ValueError, a line for each mistake: the file is damaged, holds something else, or wants to run a program;
    its arguments describe no model that can be built here; a tensor is missing, left over or of another shape.
    """
    weights, arguments = read_checkpoint(file)
    try:
        ours = from_official(weights)
        rows = _vocabulary(ours)
        described = _described(arguments, config, rows)
        return Loaded(_filled(described.config, ours), described.notes, arguments)
    except ValueError as error:
        raise ValueError("\n".join(f"{file}: {line}" for line in str(error).splitlines())) from None


def read_checkpoint(file: Path) -> Checkpoint:
    """Weights and arguments in an official file, by their official names. Raises ValueError as `load_official` does."""
    if file.is_dir():
        raise ValueError(f"{file}: a folder; name the file in it")
    if not file.exists():
        raise ValueError(f"{file}: no such file")
    content = read_tensors(file) if file.suffix == ".safetensors" else _unpickled(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds no weights but a {type(content).__name__}")
    content = cast(dict[Any, Any], content)
    weights = content.get("model", content)
    if not _is_state_dict(weights):
        held = listed([*map(str, content)]) or "nothing"
        raise ValueError(f"{file}: holds no weights (there is: {held})")
    invariants = content.get("run_invariants")
    arguments = cast(dict[Any, Any], invariants).get("args") if isinstance(invariants, dict) else None
    if arguments is not None and not _is_plain(arguments):
        raise ValueError(f"{file}: its run_invariants.args are no arguments of a run")
    return Checkpoint(dict(weights), arguments)


def _unpickled(file: Path) -> Any:
    """What `torch.save` wrote, if it is made of tensors and builtins."""
    try:
        zipped = zipfile.is_zipfile(file)
        if zipped:
            with zipfile.ZipFile(file) as records:
                changed = records.testzip()  # which torch.load does not ask, so that flipped bits would become weights
            if changed:
                raise ValueError(f"{changed} is not what was written")
        with torch.serialization.safe_globals(SAFE):
            # Memory-mapped, so that an optimizer's state, twice as large as the model, is not copied.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        program = re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
        if program:
            raise ValueError(f"{file}: refused, because it would call {program[1]} when read") from None
        raise ValueError(f"{file}: damaged, or no checkpoint") from None
    except PermissionError:
        raise
    except Exception as error:  # damaged files make it raise nearly anything
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"{file}: damaged, or no checkpoint ({reason or type(error).__name__})") from None


def _is_state_dict(content: object) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    entries = cast(dict[Any, Any], content).items()
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entries)


def _is_plain(arguments: object) -> bool:
    if not isinstance(arguments, dict):
        return False
    entries = cast(dict[Any, Any], arguments).items()
    return all(isinstance(name, str) and isinstance(value, str | int | float | None) for name, value in entries)


def _vocabulary(weights: Mapping[str, Tensor]) -> int:
    embedding = weights.get("embedding.weight")
    if embedding is None or embedding.dim() != 2:
        raise ValueError("there is no embedding.weight, so these are not the weights of a language model")
    return embedding.shape[0]


def _described(arguments: Mapping[str, Any] | None, config: ModelConfig | None, rows: int) -> Described:
    if arguments is not None:
        if config is not None:
            raise ValueError("says itself which model it is; leave the configuration out")
        return described_model(arguments, rows)
    if config is None:
        raise ValueError("holds weights only; say which model they are of, with --config")
    if config.tie_word_embeddings:
        raise ValueError("tie_word_embeddings: official models have two matrices")
    return Described(replace(config, vocab_size=rows), ())


def _filled(config: ModelConfig, weights: Mapping[str, Tensor]) -> LanguageModel:
    with torch.device("meta"):
        model = LanguageModel(config)
    refuse_misfits(model.state_dict(), weights)
    model.to(weights["embedding.weight"].dtype).to_empty(device="cpu")
    model.load_state_dict(weights)
    return model
