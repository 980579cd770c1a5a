"""How does transformers run our model? Its names, outputs and caches around `moeut.model.language_model.LanguageModel`.

Letters: B batch, T new tokens, N cached and new tokens, V vocabulary, d hidden size, L executed depth, G groups of E
experts (`moeut.model.routing`).
"""

import math
from dataclasses import asdict
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from moeut.hf.configuration import MoEUTConfig
from moeut.model.initialise import Distribution, Normal, initialise, linear_default
from moeut.model.language_model import LanguageModel, ModelOutput
from moeut.settings import IGNORED_TARGET

CACHE_NAME = "cache" if "cache" in signature(create_causal_mask).parameters else "past_key_values"
"""What this version of transformers calls the cache: 5.24 renamed `past_key_values`."""


class MoEUTPreTrainedModel(PreTrainedModel):
    """What both models are: a `LanguageModel`, its weights under the prefix `model.`, with transformers around it."""

    config_class = MoEUTConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Layer"]  # noqa: RUF012 (these lists are read by transformers)
    _skip_keys_device_placement = [CACHE_NAME]  # noqa: RUF012

    def __init__(self, config: MoEUTConfig) -> None:
        super().__init__(config)
        self.model = LanguageModel(config.model_config)

    def _run(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None,
        position_ids: Tensor | None, cache: Cache | None, *, use_cache: bool | None, output_attentions: bool | None,
        output_hidden_states: bool | None, output_router_logits: bool | None,
        targets: Tensor | None = None, logits_to_keep: int = 0,
    ) -> tuple[ModelOutput, dict[str, Any]]:  # fmt: skip
        """What our model computed, and what both outputs of transformers say of it in the same words."""
        given = inputs_embeds if input_ids is None else input_ids
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_attentions or self.config.output_attentions:
            raise ValueError("output_attentions: attention weights are never formed, so they cannot be returned")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None and self.model.stack.gradient_checkpointing and torch.is_grad_enabled():
            raise ValueError("use_cache: a cache cannot be filled under gradient checkpointing; pass use_cache=False")
        if cache is not None or (attention_mask is None and position_ids is not None):
            attention_mask = self._mask(given, attention_mask, cache, position_ids)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        output = self.model(
            input_ids, targets, inputs_embeds=inputs_embeds,
            attention_mask=attention_mask, position_ids=position_ids, cache=cache, logits_to_keep=logits_to_keep,
            return_scores=output_router_logits, return_hidden_states=output_hidden_states,
        )  # fmt: skip
        streams, routing = output.hidden_states, output.routing
        return output, {
            CACHE_NAME: cache if use_cache else None,
            "hidden_states": streams and (*streams[:-1], self.model.norm(streams[-1])),
            "router_logits": routing and tuple({name: one.scores for name, one in each.items()} for each in routing),
        }

    def _mask(
        self, given: Tensor, attention_mask: Tensor | None, cache: Cache | None, position_ids: Tensor | None
    ) -> Tensor | None:
        """The mask [B or 1, 1, T, slots] over all slots of a cache, which for a preallocated one includes empty ones;
        or between sequences packed into one, whose positions begin again.

        None where a plain causal triangle, or a single query that sees everything, says the same.
        """
        like_embeddings = torch.empty(*given.shape[:2], 0, dtype=self.dtype, device=given.device)
        of_cache: dict[str, Any] = {CACHE_NAME: cache}
        return create_causal_mask(
            config=self.config, inputs_embeds=like_embeddings, attention_mask=attention_mask,
            position_ids=position_ids, **of_cache,
        )  # fmt: skip

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill what a checkpoint did not; transformers marks what it did."""
        if not hasattr(module, "initial") and isinstance(module, nn.Embedding | nn.Linear):
            module.initial = _initial(module)  # pyright: ignore[reportArgumentType] (modules hold more than tensors)
        parameters = module.named_parameters(recurse=False)
        initialise(module, {name for name, tensor in parameters if not getattr(tensor, "_is_hf_initialized", False)})

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: transformers would copy this file into saved folders, which import the installed package."""

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.model.embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embedding."""
        self.model.embedding = value

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Another number of tokens, as transformers does it, in every place that says how many there are."""
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        config = self.config.model_config
        self.model.config = self.model.stack.config = config
        head = self.get_output_embeddings()
        # A head that is tied has the new size already, and transformers then overlooks its bias.
        if isinstance(head, nn.Linear) and len(head.bias) != config.vocab_size:
            more = head.bias.mean().expand(max(0, config.vocab_size - len(head.bias)))
            head.bias = nn.Parameter(torch.cat([head.bias[: config.vocab_size], more]).detach())
            head.out_features = config.vocab_size
        return embedding


class MoEUTModel(MoEUTPreTrainedModel):
    """A `LanguageModel` without its head: tokens → hidden states."""

    _keys_to_ignore_on_load_unexpected = [r"lm_head"]  # noqa: RUF012

    def __init__(self, config: MoEUTConfig) -> None:
        super().__init__(config)
        # Where the head gives back what it is given, the language model's logits are the hidden states.
        self.model.register_module("lm_head", nn.Identity())
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
    ) -> MoeModelOutputWithPast:
        """input_ids: [B, T] → last_hidden_state [B, T, d], after the final norm.

        The other arguments and outputs are those of `MoEUTForCausalLM`.
        """
        output, shared = self._run(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values if cache is None else cache,
            use_cache=use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, output_router_logits=output_router_logits,
        )  # fmt: skip
        return MoeModelOutputWithPast(last_hidden_state=output.logits, **shared)


class MoEUTForCausalLM(MoEUTPreTrainedModel, GenerationMixin):
    """A `LanguageModel` with everything that transformers gives: generate, pipelines, Trainer, saving and loading."""

    _tied_weights_keys = {"model.lm_head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: MoEUTConfig) -> None:
        super().__init__(config)
        self.post_init()

    @classmethod
    def wrap(cls, model: LanguageModel, end_of_document_id: int = 0) -> "MoEUTForCausalLM":
        """This class around a model that exists already: the same parameters, not a copy of them."""
        special: dict[str, Any] = {f"{use}_token_id": end_of_document_id for use in ("bos", "eos", "pad")}
        with torch.device("meta"):
            wrapped = cls(MoEUTConfig(core=asdict(model.config), **special))
        wrapped.model = model
        return wrapped.train(model.training)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
    ) -> MoeCausalLMOutputWithPast:
        """input_ids: [B, T] → logits [B, T, V], or the last `logits_to_keep` of them.

        inputs_embeds: [B, T, d] in their place. attention_mask: [B, N], 1 at real tokens, or a ready 4-D mask.
        position_ids: [B, T]; by default they go on from the cache. past_key_values, cache: two names of one thing, keys
        and values of earlier tokens. labels: [B, T], as input_ids, shifted here, −100 is not scored; they give the
        loss, in training with the balance term, which is reported as aux_loss too. use_cache: by default as configured,
        and never in training.

        hidden_states: the residual stream [B, T, d] before the first and after each of L executed layers, the last one
        after the final norm. router_logits: for each executed layer a dict by router (`attention_value`,
        `attention_output`, `feed_forward`; SUT: `attention`) of the scores [B, T, G, E] before top-k.

        Raises ValueError where a cache is to be filled while activations are recomputed, which would fill it twice, and
        for output_attentions.
        """
        output, shared = self._run(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values if cache is None else cache,
            use_cache=use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, output_router_logits=output_router_logits,
            targets=None if labels is None else _shifted(labels)[:, -logits_to_keep:], logits_to_keep=logits_to_keep,
        )  # fmt: skip
        return MoeCausalLMOutputWithPast(
            loss=output.loss, aux_loss=output.regulariser if self.training else None, logits=output.logits, **shared
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What a step of the model is given: not the tokenizer, which is needed only to find strings that stop a text.

        inputs_embeds, kwargs: transformers looks whether there are arguments of these names.
        """
        kwargs.pop("tokenizer", None)
        kwargs["inputs_embeds"] = inputs_embeds
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.model.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the head."""
        self.model.lm_head = new_embeddings


def _shifted(labels: Tensor) -> Tensor:
    """Targets: what follows each position; nothing follows the last."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED_TARGET)], dim=1)


def _initial(module: nn.Embedding | nn.Linear) -> dict[str, Distribution]:
    """How modules that transformers or users make begin, such as the new rows of a resized vocabulary."""
    if isinstance(module, nn.Embedding):
        return {"weight": Normal(1 / math.sqrt(module.embedding_dim))}
    uniform = linear_default(module.in_features)
    return {"weight": uniform, "bias": uniform}
