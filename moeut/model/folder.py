"""How does a model lie on disk? As a folder in Hugging Face's layout, written and read without transformers.

config.json             what the model is: `core` holds its ModelConfig, the rest is for transformers
generation_config.json  which token begins, ends and pads a text
model.safetensors       the state dict, every name after `model.`; a tied head is stored once, as the embedding
tokenizer.json …        copied from the folder that has them, if one is given
modeling_moeut.py       where transformers finds the classes when it trusts the folder's code: in this package
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import moeut
from moeut.files import replacing
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.validation import validate

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
PREFIX = "model."
"""Where the language model stands inside `moeut.hf.MoEUTForCausalLM`."""

STUB_MODULE = "modeling_moeut"
"""The module in a saved folder that imports the classes from this package, for transformers' `trust_remote_code`."""

AUTO_MAP = {"AutoConfig": f"{STUB_MODULE}.MoEUTConfig", "AutoModelForCausalLM": f"{STUB_MODULE}.MoEUTForCausalLM"}

STUB = '''"""A MoEUT for transformers' `trust_remote_code`; what it computes is in the package moeut."""

try:
    from moeut.hf import MoEUTConfig, MoEUTForCausalLM
except ImportError as error:
    raise ImportError("this model needs the package moeut: pip install moeut") from error
'''


def save_model(
    model: LanguageModel, folder: Path, *, tokenizer_folder: Path | None = None, end_of_document_id: int = 0,
    weights: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write a model to a folder, made if it is missing; each file is replaced as a whole.

    tokenizer_folder: where `tokenizer.json` and its configuration are copied from. end_of_document_id: the token that
    begins, ends and pads a text. weights: what `stored_tensors` names, of a model that holds only a part of each.
    Which code multiplies is a matter of the machine that reads it, so the folder's expert_backend is `auto`.
    """
    special = {f"{use}_token_id": end_of_document_id for use in ("bos", "eos", "pad")}
    config = {
        "model_type": "moeut",
        "architectures": ["MoEUTForCausalLM"],
        "auto_map": AUTO_MAP,
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        "moeut_version": moeut.__version__,
        "tie_word_embeddings": model.config.tie_word_embeddings,
        **special,
        "core": asdict(replace(model.config, expert_backend="auto")),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)
    write_json(folder / "generation_config.json", special)
    write_tensors(folder / WEIGHTS, stored_tensors(model) if weights is None else weights)
    with replacing(folder / f"{STUB_MODULE}.py") as file:
        file.write_text(STUB, encoding="utf-8")
    if tokenizer_folder is not None:
        for name in TOKENIZER_FILES:
            with replacing(folder / name) as file:
                shutil.copyfile(tokenizer_folder / name, file)


def load_model(folder: Path, device: torch.device | str = "cpu") -> LanguageModel:
    """Read a model back, in the dtype it was saved in, without touching the random state.

    Raises ValueError, one line, if the folder is no model folder, is damaged, or its tensors are not the model's.
    """
    content = read_json(folder / CONFIG)
    try:
        core, dtype = content["core"], DTYPES[content["dtype"]]
    except (KeyError, TypeError):
        raise ValueError(f"{folder}: {CONFIG} is not that of a moeut model") from None
    try:
        config = validate(ModelConfig, core)
    except ValueError as error:
        problems = "; ".join(str(error).splitlines())
        raise ValueError(f"{folder}: {CONFIG} describes no model that can be built: {problems}") from None
    with torch.device("meta"):
        model = LanguageModel(config)
    model.to(dtype).to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embedding.weight
    load_weights(model, folder)
    return model


def load_weights(model: LanguageModel, folder: Path) -> None:
    """Fill a model's parameters from a model folder. Raises ValueError as `read_weights` does."""
    found = read_weights(model, folder)
    with torch.no_grad():
        for name, tensor in stored_tensors(model).items():
            tensor.copy_(found[name])


def read_weights(model: LanguageModel, folder: Path) -> dict[str, Tensor]:
    """What a model folder holds of the tensors that `stored_tensors` names.

    Raises ValueError, one line, if there are none, or if any is missing, unknown or of another shape; all are named.
    """
    found, expected = read_tensors(folder / WEIGHTS), stored_tensors(model)
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{folder}: {WEIGHTS} does not fit the model: {'; '.join(problems)}")
    return found


def stored_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The model's own tensors under the names they have on disk."""
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def write_json(path: Path, content: object) -> None:
    """Write JSON, all at once."""
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises ValueError, one line, if the file is missing or is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.parent}: {path.name} is missing; this is no model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path}: not a JSON file") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, all at once. Raises OSError where they cannot be written."""
    with replacing(path) as file:
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"}
            )
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors. Raises ValueError, one line, if the file is missing or is something else."""
    try:
        return load_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.parent}: {path.name} is missing; this is no model folder") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None
