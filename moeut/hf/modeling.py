"""How does transformers run our model? Its names, outputs and caches around `moeut.model.language_model.LanguageModel`.

Letters: B batch, T new tokens, N cached and new tokens, V vocabulary, d hidden size, L executed depth.
"""

from dataclasses import asdict
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from moeut.hf.configuration import MoEUTConfig
from moeut.model.initialise import initialise
from moeut.model.language_model import LanguageModel
from moeut.settings import IGNORED_TARGET

CACHE_NAME = "cache" if "cache" in signature(create_causal_mask).parameters else "past_key_values"
"""What this version of transformers calls the cache: 5.24 renamed `past_key_values`."""


class MoEUTForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel` with everything that transformers gives: generate, pipelines, Trainer, saving and loading.

    Its weights are the language model's under the prefix `model.`.
    """

    config_class = MoEUTConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = [CACHE_NAME]  # noqa: RUF012
    _tied_weights_keys = {"model.lm_head.weight": "model.embedding.weight"}  # noqa: RUF012 (read by transformers)

    def __init__(self, config: MoEUTConfig) -> None:
        super().__init__(config)
        self.model = LanguageModel(config.model_config)
        self.post_init()

    @classmethod
    def wrap(cls, model: LanguageModel, end_of_document_id: int = 0) -> "MoEUTForCausalLM":
        """This class around a model that exists already: the same parameters, not a copy of them."""
        special: dict[str, Any] = {f"{use}_token_id": end_of_document_id for use in ("bos", "eos", "pad")}
        with torch.device("meta"):
            wrapped = cls(MoEUTConfig(core=asdict(model.config), **special))
        wrapped.model = model
        return wrapped.train(model.training)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MoeCausalLMOutputWithPast | tuple[Any, ...]:
        """input_ids: [B, T] → logits [B, T, V], or the last `logits_to_keep` of them.

        attention_mask: [B, N], 1 at real tokens, or a ready 4-D mask. position_ids: [B, T]; by default they go on from
        the cache. past_key_values, cache: two names of one thing, keys and values of earlier tokens. labels: [B, T],
        as input_ids, shifted here, −100 is not scored; they give the loss, in training with the balance term, which is
        reported as aux_loss too. use_cache: by default as configured, and never in training. hidden_states: the
        residual stream [B, T, d] before the first and after each of L executed layers, before the final norm.

        Raises ValueError where a cache is to be filled while activations are recomputed, which would fill it twice.
        """
        cache = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None:
            if self.model.stack.gradient_checkpointing and torch.is_grad_enabled():
                raise ValueError(
                    "use_cache: a cache cannot be filled under gradient checkpointing; pass use_cache=False"
                )
            attention_mask = self._mask_over_cache(input_ids, attention_mask, cache, position_ids)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        targets = None if labels is None else _shifted(labels)[:, -logits_to_keep:]
        output = self.model(
            input_ids, targets,
            attention_mask=attention_mask, position_ids=position_ids, cache=cache,
            logits_to_keep=logits_to_keep, return_hidden_states=output_hidden_states,
        )  # fmt: skip
        returned_cache: dict[str, Any] = {CACHE_NAME: cache if use_cache else None}
        result = MoeCausalLMOutputWithPast(
            loss=output.loss,
            aux_loss=output.regulariser if self.training else None,
            logits=output.logits,
            hidden_states=output.hidden_states,
            **returned_cache,
        )
        as_tuple = not (self.config.return_dict if return_dict is None else return_dict)
        return result.to_tuple() if as_tuple else result

    def _mask_over_cache(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: Cache, position_ids: Tensor | None
    ) -> Tensor | None:
        """The mask [B or 1, 1, T, slots] over all slots of a cache, which for a preallocated one includes empty ones.

        None where a plain causal triangle, or a single query that sees everything, says the same.
        """
        like_embeddings = torch.empty(*input_ids.shape, 0, dtype=self.dtype, device=input_ids.device)
        of_cache: dict[str, Any] = {CACHE_NAME: cache}
        return create_causal_mask(
            config=self.config, inputs_embeds=like_embeddings, attention_mask=attention_mask,
            position_ids=position_ids, **of_cache,
        )  # fmt: skip

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill what a checkpoint did not; transformers marks what it did."""
        parameters = module.named_parameters(recurse=False)
        initialise(module, {name for name, tensor in parameters if not getattr(tensor, "_is_hf_initialized", False)})

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Do nothing: transformers would copy this file into saved folders, which import the installed package."""

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.model.embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embedding."""
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.model.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the head."""
        self.model.lm_head = new_embeddings


def _shifted(labels: Tensor) -> Tensor:
    """Targets: what follows each position; nothing follows the last."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED_TARGET)], dim=1)
