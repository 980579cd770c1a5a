"""How does a model lie on disk? As a folder in Hugging Face's layout, written and read without transformers.

config.json             what the model is: `core` holds its ModelConfig, the rest is for transformers
generation_config.json  which token begins, ends and pads a text
model.safetensors       the state dict, every name after `model.`; a tied head is stored once, as the embedding. What
                        transformers saves in several files is read too (`moeut.model.tensor_files`)
tokenizer.json …        copied from the folder that has them, if one is given
modeling_moeut.py       where transformers finds the classes when it trusts the folder's code: in this package
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

import moeut
from moeut.files import replacing
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.tensor_files import WEIGHTS, read_all_tensors, read_json, write_json, write_tensors
from moeut.settings import listed
from moeut.validation import validate

CONFIG = "config.json"
FORMAT = 1
"""Of the folders that this version writes and reads. It grows when an older version could not read them any more."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
PREFIX = "model."
"""Where the language model stands inside `moeut.hf.MoEUTForCausalLM`."""

STUB_MODULE = "modeling_moeut"
"""The module in a saved folder that imports the classes from this package, for transformers' `trust_remote_code`."""

AUTO_MAP = {
    "AutoConfig": f"{STUB_MODULE}.MoEUTConfig",
    "AutoModel": f"{STUB_MODULE}.MoEUTModel",
    "AutoModelForCausalLM": f"{STUB_MODULE}.MoEUTForCausalLM",
}

STUB = '''"""A MoEUT for transformers' `trust_remote_code`; what it computes is in the package moeut."""

try:
    from moeut.hf import MoEUTConfig, MoEUTForCausalLM, MoEUTModel
except ImportError as error:
    raise ImportError("this model needs the package moeut: pip install moeut") from error
'''


def save_model(
    model: LanguageModel, folder: Path, *, tokenizer_folder: Path | None = None, end_of_document_id: int = 0,
    context_length: int | None = None, weights: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write a model to a folder, made if it is missing; each file is replaced as a whole.

    tokenizer_folder: where `tokenizer.json` and its configuration are copied from. end_of_document_id: the token that
    begins, ends and pads a text. context_length: tokens of the sequences the model was trained on, where that is to be
    known. weights: what `stored_tensors` names, of a model that holds only a part of each. Which code multiplies is a
    matter of the machine that reads it, so the folder's expert_backend is `auto`.
    """
    special = {f"{use}_token_id": end_of_document_id for use in ("bos", "eos", "pad")}
    config = {
        "model_type": "moeut",
        "architectures": ["MoEUTForCausalLM"],
        "auto_map": AUTO_MAP,
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        "moeut_format": FORMAT,
        "moeut_version": moeut.__version__,
        **({} if context_length is None else {"max_position_embeddings": context_length}),
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

    Raises ValueError, one line, if the folder is no model folder, is damaged, of another architecture or of a
    format that this version cannot read, or if its tensors are not the model's.
    """
    content = read_config(folder)
    dtype = DTYPES.get(str(content.get("dtype")))
    if dtype is None:
        raise ValueError(f"{folder}: {CONFIG} is damaged: its dtype is not one of {', '.join(DTYPES)}")
    try:
        config = validate(ModelConfig, content["core"])
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


def read_config(folder: Path) -> dict:
    """`config.json` of a model folder. `load_model` says when it raises ValueError."""
    content = read_json(folder / CONFIG)
    kind = content.get("model_type")
    if kind != "moeut":
        what = "names no model_type" if kind is None else f"is that of a model of type {kind!r}"
        raise ValueError(f"{folder}: {CONFIG} {what}; only models of type 'moeut' can be read")
    try:
        refuse_other_formats(content.get("moeut_format", FORMAT))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if not isinstance(content.get("core"), dict):
        raise ValueError(f"{folder}: {CONFIG} is damaged: it has no core")
    return content


def refuse_other_formats(number: object) -> None:
    """Refuse a folder whose format is newer than FORMAT, or none. Raises ValueError, one line.

    Folders from before formats had numbers are of format 1.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"moeut_format: {number!r} is no format; the folder is damaged")
    if number > FORMAT:
        raise ValueError(
            f"moeut_format: written in format {number}, newer than {FORMAT}, the newest that moeut {moeut.__version__} "
            "reads; pip install --upgrade moeut"
        )


def load_weights(model: LanguageModel, folder: Path) -> None:
    """Fill a model's parameters from a model folder. Raises ValueError as `read_weights` does."""
    found = read_weights(model, folder)
    with torch.no_grad():
        for name, tensor in stored_tensors(model).items():
            tensor.copy_(found[name])


def read_weights(model: LanguageModel, folder: Path) -> dict[str, Tensor]:
    """What a model folder holds of the tensors that `stored_tensors` names.

    Raises ValueError, one line, if there are none, or as `refuse_misfits` does.
    """
    found = read_all_tensors(folder)
    try:
        refuse_misfits(stored_tensors(model), found)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return found


def refuse_misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not the `expected` ones.

    Raises ValueError, one line, that says which are missing, left over, of another shape or no weights by their dtype:
    the first few, and how many more.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    for name, tensor in found.items():
        if name not in expected:
            problems.append(f"{name} is not part of it")
        elif tensor.shape != expected[name].shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}")
        elif tensor.dtype not in DTYPES.values():
            problems.append(f"{name} holds {tensor.dtype}, which are no weights")
    if problems:
        raise ValueError(f"the weights do not fit the model: {listed(problems, '; ')}")


def stored_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The model's own tensors under the names they have on disk."""
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return {PREFIX + name: tensor for name, tensor in tensors.items()}
