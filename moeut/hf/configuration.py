"""How does transformers see our configuration? `core` is ours; the names that transformers asks for point into it."""

import os
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from moeut.files import replacing
from moeut.model.folder import AUTO_MAP, STUB, STUB_MODULE
from moeut.model.language_model import ModelConfig
from moeut.validation import validate


def _from_core(*path: str) -> Any:
    """A name under which transformers reads and writes one value of `core`, so that nothing is stored twice."""

    def read(config: "MoEUTConfig") -> Any:
        return reduce(getitem, path, config.core)

    def write(config: "MoEUTConfig", value: Any) -> None:
        reduce(getitem, path[:-1], config.core)[path[-1]] = value

    return property(read, write)


class MoEUTConfig(PreTrainedConfig):
    """`moeut.model.language_model.ModelConfig` as a transformers configuration.

    core: the fields of a ModelConfig as nested dicts; fields left out get their defaults. bos_token_id, eos_token_id,
    pad_token_id: all of them the token that ends a document, 0 in our tokenizers. use_cache: whether a forward pass
    outside training returns its keys and values. Raises ValueError, a line for each mistake in `core`.

    num_hidden_layers is the executed depth, because every repeat of a layer needs a slot of its own in a cache. There
    are as many key-value heads as query heads.
    """

    model_type = "moeut"
    keys_to_ignore_at_inference = ("past_key_values", "cache")
    has_no_defaults_at_init = True  # older versions of transformers ask, or build one without arguments

    hidden_size = _from_core("hidden_size")
    num_hidden_layers = _from_core("num_hidden_layers")
    vocab_size = _from_core("vocab_size")
    tie_word_embeddings = _from_core("tie_word_embeddings")
    num_attention_heads = _from_core("attention", "num_attention_heads")
    num_key_value_heads = _from_core("attention", "num_attention_heads")
    head_dim = _from_core("attention", "head_dim")

    def __init__(
        self,
        core: dict[str, Any],
        *,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 0,
        pad_token_id: int | None = 0,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.core = asdict(_validated(core))
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.use_cache = use_cache
        self.auto_map = dict(AUTO_MAP)
        super().__init__(**kwargs)

    @property
    def model_config(self) -> ModelConfig:
        """`core` as it stands, checked. Raises ValueError, a line for each mistake."""
        return _validated(self.core)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json`, and beside it the module that its `auto_map` names."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        with replacing(Path(save_directory) / f"{STUB_MODULE}.py") as file:
            file.write_text(STUB, encoding="utf-8")
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: transformers would copy this file into saved folders, which import the installed package."""


def _validated(core: dict[str, Any]) -> ModelConfig:
    try:
        return validate(ModelConfig, core)
    except ValueError as error:
        raise ValueError("\n".join(f"core.{line}" for line in str(error).splitlines())) from None
