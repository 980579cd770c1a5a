"""How does transformers see our configuration? `core` is ours; the names that transformers asks for point into it."""

import os
from copy import deepcopy
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

import moeut
from moeut.files import replacing
from moeut.model.folder import AUTO_MAP, FORMAT, STUB, STUB_MODULE, refuse_other_formats
from moeut.model.language_model import ModelConfig
from moeut.validation import validate


def _from_core(*path: str) -> Any:
    """A name under which transformers reads and writes one value of `core`, so that nothing is stored twice.

    A model whose parts have no such value has no such attribute either.
    """

    def owner(config: "MoEUTConfig") -> dict[str, Any]:
        part = reduce(getitem, path[:-1], config.core)
        if path[-1] not in part:
            raise AttributeError(f"{path[-1]}: {path[0]} of kind {part['kind']!r} has none")
        return part

    def read(config: "MoEUTConfig") -> Any:
        return owner(config)[path[-1]]

    def write(config: "MoEUTConfig", value: Any) -> None:
        owner(config)[path[-1]] = value

    return property(read, write)


class MoEUTConfig(PreTrainedConfig):
    """`moeut.model.language_model.ModelConfig` as a transformers configuration.

    core: the fields of a ModelConfig as nested dicts; fields left out get their defaults. bos_token_id, eos_token_id,
    pad_token_id: all of them the token that ends a document, 0 in our tokenizers. use_cache: whether a forward pass
    outside training returns its keys and values. output_router_logits: whether it returns what routers scored.
    max_position_embeddings: tokens of the sequences it was trained on, where that is known; it is no limit. Raises
    ValueError, a line for each mistake in `core`, and for a format that this version cannot read.

    num_hidden_layers is the executed depth, because every repeat of a layer needs a slot of its own in a cache. There
    are as many key-value heads as query heads. Names of what a model's parts do not have (`num_experts` of a dense one)
    are no attributes of its configuration, as in transformers.
    """

    model_type = "moeut"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 (Trainer adds a list to it)
    has_no_defaults_at_init = True  # older versions of transformers ask, or build one without arguments

    hidden_size = _from_core("hidden_size")
    num_hidden_layers = _from_core("num_hidden_layers")
    layer_norm_eps = _from_core("layer_norm_eps")
    hidden_dropout = _from_core("hidden_dropout")
    vocab_size = _from_core("vocab_size")
    tie_word_embeddings = _from_core("tie_word_embeddings")
    num_attention_heads = _from_core("attention", "num_attention_heads")
    num_key_value_heads = _from_core("attention", "num_attention_heads")
    head_dim = _from_core("attention", "head_dim")
    attention_dropout = _from_core("attention", "attention_dropout")
    rope_theta = _from_core("attention", "rope_theta")
    partial_rotary_factor = _from_core("attention", "partial_rotary_factor")
    intermediate_size = _from_core("feed_forward", "intermediate_size")
    num_experts = _from_core("feed_forward", "num_experts")
    num_experts_per_tok = _from_core("feed_forward", "num_experts_per_tok")
    moe_intermediate_size = _from_core("feed_forward", "moe_intermediate_size")
    router_aux_loss_coef = _from_core("feed_forward", "router_aux_loss_coef")

    def __init__(
        self,
        core: dict[str, Any],
        *,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 0,
        pad_token_id: int | None = 0,
        use_cache: bool = True,
        output_router_logits: bool = False,
        max_position_embeddings: int | None = None,
        moeut_format: int = FORMAT,
        **kwargs: Any,
    ) -> None:
        refuse_other_formats(moeut_format)
        self.core = asdict(_validated(core))
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.use_cache = use_cache
        self.output_router_logits = output_router_logits
        if max_position_embeddings is not None:
            self.max_position_embeddings = max_position_embeddings
        self.auto_map = dict(AUTO_MAP)
        super().__init__(**kwargs)
        self.moeut_format, self.moeut_version = FORMAT, moeut.__version__

    @property
    def model_config(self) -> ModelConfig:
        """`core` as it stands, checked. Raises ValueError, a line for each mistake."""
        return _validated(self.core)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json`, and beside it the module that its `auto_map` names.

        As in `moeut.model.folder.save_model`, the folder's expert_backend is `auto`.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        with replacing(Path(save_directory) / f"{STUB_MODULE}.py") as file:
            file.write_text(STUB, encoding="utf-8")
        saved = deepcopy(self)
        saved.core["expert_backend"] = "auto"
        super(MoEUTConfig, saved).save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: transformers would copy this file into saved folders, which import the installed package."""


def _validated(core: dict[str, Any]) -> ModelConfig:
    try:
        return validate(ModelConfig, core)
    except ValueError as error:
        raise ValueError("\n".join(f"core.{line}" for line in str(error).splitlines())) from None
