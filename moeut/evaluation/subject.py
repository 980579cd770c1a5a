"""What is evaluated? A model and its tokenizer, ours or any causal one of transformers, behind one face.

Letters: B texts, T tokens of a text, V vocabulary.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moeut.data.tokenizer import decode, encode, end_of_document_id, load_tokenizer
from moeut.files import sha256
from moeut.model.folder import CONFIG, load_model
from moeut.model.language_model import LanguageModel
from moeut.model.tensor_files import read_json

DEFAULT_CONTEXT_LENGTH = 1024
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
"""What the configurations of transformers' models call the longest input."""


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    model: ids [B, T] → something with `logits` [B, T, V], in evaluation mode. encode: texts → their ids, without
    anything added. decode: ids → text. prefix_ids: what the tokenizer adds before a text unless told not to. begin_id:
    the token before a text that has nothing before it. end_id: the token after a document. context_length: tokens of a
    block of running text. max_length: the longest input in tokens. tokenizer_folder: where the tokenizer lies, if it
    is on this machine. facts: plain values that say which model it is.
    """

    name: str
    model: nn.Module
    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]
    prefix_ids: tuple[int, ...]
    begin_id: int
    end_id: int
    context_length: int
    max_length: int
    tokenizer_folder: Path
    facts: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a model of this package."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("model_type") == "moeut"


def _unchanged(model: LanguageModel) -> LanguageModel:
    return model


def open_ours(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    context_length: int = DEFAULT_CONTEXT_LENGTH,
    *,
    name: str | None = None,
    tokenizer_folder: Path | None = None,
    change: Callable[[LanguageModel], LanguageModel] = _unchanged,
) -> Subject:
    """A model folder of this package.

    dtype: None: as saved, but at least float32. context_length: of blocks and the longest input; the model itself
    knows no limit. tokenizer_folder: where its tokenizer lies, if elsewhere. change: what is done to the model once it
    is read. Raises ValueError, one line, where the folder holds none.
    """
    model = change(load_model(folder, device)).eval()
    model.to(dtype or torch.promote_types(model.embedding.weight.dtype, torch.float32))
    home = tokenizer_folder or folder
    tokenizer = load_tokenizer(home)
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise ValueError(
            f"{home}: its tokenizer has {tokenizer.get_vocab_size():,} tokens, more than the model in {folder} "
            f"({model.config.vocab_size:,})"
        )
    end = end_of_document_id(tokenizer)
    return Subject(
        name or str(folder), model, lambda texts: encode(tokenizer, texts), lambda ids: decode(tokenizer, ids),
        (), end, end, context_length, context_length, home,
        {**_facts(model, folder), "num_repeats": model.config.num_repeats},
    )  # fmt: skip


def open_theirs(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    context_length: int | None = None,
) -> Subject:
    """Any causal model of transformers, in a folder or by its name on the Hub.

    dtype: None: as saved, but at least float32. context_length: by default the longest input is what the model's
    configuration says, and blocks of running text have 1,024 tokens. Raises ValueError, one line, where there is none,
    or its tokenizer has no token between documents.
    """
    import transformers

    place = Path(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        saved = getattr(config, "dtype", None) or torch.float32
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
        with redirect_stderr(io.StringIO()):  # a bar for every load
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype or torch.promote_types(saved, torch.float32), output_loading_info=True
            )
    except (OSError, ValueError, ImportError) as error:
        where = "" if place.is_dir() else "no such folder here, and on the Hub "
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name}: {where}no causal model that transformers can read ({reason})") from error
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"{name}: its weights lack {', '.join(sorted(info['missing_keys'])[:5])}")
    model.config.use_cache = False
    marks = [id for id in (tokenizer.bos_token_id, tokenizer.eos_token_id) if id is not None]
    if not marks:
        raise ValueError(f"{name}: its tokenizer has no token that begins or ends a text")
    known = next((length for key in LENGTHS if isinstance(length := getattr(config, key, None), int)), None)
    longest = context_length or known or DEFAULT_CONTEXT_LENGTH

    def encode_bare(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    marked, [bare] = tokenizer("a")["input_ids"], encode_bare(["a"])
    prefix = marked[: len(marked) - len(bare)] if marked[-len(bare) :] == bare else []
    revision = getattr(model.config, "_commit_hash", None)
    return Subject(
        name, model.to(device).eval(), encode_bare, lambda ids: tokenizer.decode(list(ids)),
        tuple(prefix), marks[0], marks[-1], context_length or min(longest, DEFAULT_CONTEXT_LENGTH), longest, place,
        {**_facts(model, place), **({"revision": revision} if revision else {})},
    )  # fmt: skip


def _facts(model: nn.Module, place: Path) -> dict[str, Any]:
    """Which model it is: its class, its size, and the checksums of the files that it was read from."""
    files = sorted(file for suffix in ("*.json", "*.safetensors", "*.bin", "*.model") for file in place.glob(suffix))
    return {
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        **({"path": str(place.resolve()), "files": {file.name: sha256(file) for file in files}} if files else {}),
    }
