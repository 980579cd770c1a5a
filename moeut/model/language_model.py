"""From tokens to a loss: embedding, stack, norm, head, cross entropy.

Paper section 3 and equation 6. Letters: B batch, T tokens, d hidden size, V vocabulary.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from moeut.model.cache import Cache
from moeut.model.initialise import Embedding, Linear, Uniform
from moeut.model.native_step import logits_of
from moeut.model.routing import Selection
from moeut.model.stack import MoEUT, StackConfig
from moeut.settings import IGNORED_TARGET, STRICT, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig(StackConfig):
    """A language model: a stack, and a vocabulary of `vocab_size` tokens around it.

    tie_word_embeddings: the head uses the embedding's vectors instead of its own (the paper does not tie them). The
    head has a bias either way. What stands between embedding, stack and head depends on the norm placement unless it
    is said: embedding_scale: factor of the embedding (√hidden_size in post-layernorm models, otherwise 1);
    embedding_norm: a layer norm without parameters after that (in post-layernorm models); final_norm: a layer norm
    before the head (in all others).
    """

    vocab_size: PositiveInt
    tie_word_embeddings: bool = False
    embedding_scale: PositiveFloat | None = None
    embedding_norm: bool | None = None
    final_norm: bool | None = None

    @property
    def has_final_norm(self) -> bool:
        """Whether a layer norm stands before the head."""
        return self.norm != "post" if self.final_norm is None else self.final_norm


class ModelOutput(NamedTuple):
    """What a language model computed; what was not asked for is None.

    logits: [B, T, V]. loss = cross_entropy + regulariser; cross_entropy: nats a scored token; regulariser: balance
    terms and expected depth, zero in evaluation; all three 0-dimensional. cache: the one given, extended. routing,
    hidden_states and expected_layers: see `moeut.model.stack.StackOutput`.
    """

    logits: Tensor
    loss: Tensor | None = None
    cross_entropy: Tensor | None = None
    regulariser: Tensor | None = None
    cache: Cache | None = None
    routing: tuple[dict[str, Selection], ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    expected_layers: Tensor | None = None


class LanguageModel(nn.Module):
    """logits = head(norm(stack(embedding(tokens)))).

    Post-layernorm models scale the embedding by √d, normalise it without parameters, and have no norm before the head,
    if the configuration does not say otherwise.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.stack = MoEUT(config)
        eps = config.layer_norm_eps
        self.norm = nn.LayerNorm(config.hidden_size, eps=eps) if config.has_final_norm else nn.Identity()
        bound = Uniform(1 / math.sqrt(config.hidden_size))
        weight = self.embedding.initial["weight"] if config.tie_word_embeddings else bound
        self.lm_head = Linear(config.hidden_size, config.vocab_size, weight, bias=bound)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self,
        input_ids: Tensor | None,
        targets: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        return_routing: bool = False,
        return_scores: bool = False,
        return_hidden_states: bool = False,
    ) -> ModelOutput:
        """input_ids: [B, T] → logits for the token after each.

        targets: [B, T], already shifted: targets[:, t] follows input_ids[:, t]; −100 is not scored. logits_to_keep:
        compute the last so many logits only (0: all). inputs_embeds: [B, T, d], vectors in the place of those that the
        embedding has for input_ids, which is None then. The other arguments are those of `moeut.model.stack.MoEUT`.
        """
        vectors = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        stack = self.stack(
            self._ready(vectors), attention_mask, position_ids=position_ids, cache=cache,
            return_routing=return_routing, return_scores=return_scores, return_hidden_states=return_hidden_states,
        )  # fmt: skip
        last = stack.hidden_states[:, -logits_to_keep:]
        logits = logits_of(self.norm, self.lm_head, self.config.expert_backend, last)
        if logits is None:
            logits = self.lm_head(self.norm(last))
        loss = entropy = None
        if targets is not None:
            entropy = mean_cross_entropy(logits, targets)
            loss = entropy + stack.regulariser
        return ModelOutput(
            logits, loss, entropy, stack.regulariser, cache,
            stack.routing, stack.all_hidden_states, stack.expected_layers,
        )  # fmt: skip

    def _ready(self, vectors: Tensor) -> Tensor:
        """The vectors of tokens as the stack wants them."""
        config = self.config
        post = config.norm == "post"
        scale = config.embedding_scale or (math.sqrt(config.hidden_size) if post else 1.0)
        if scale != 1:
            vectors = vectors * scale
        if post if config.embedding_norm is None else config.embedding_norm:
            vectors = layer_norm(vectors, vectors.shape[-1:], eps=config.layer_norm_eps)
        return vectors


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """While inside, a model is in evaluation mode and nothing is kept for gradients; afterwards it is as it was."""
    was_training = model.training
    model.eval()
    try:
        # Not inference_mode: what a sharded model gathers here, the next training step may use.
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """−ln p of each target in nats, at least in float32; 0 where it is −100. logits: [N, V]; targets: [N] → [N]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="none")


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−mean ln p(target) in nats over the targets that are not −100 (0 if there are none), at least in float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_TARGET, reduction="sum")
    return total / (targets != IGNORED_TARGET).sum().clamp(min=1)
