"""Which layer runs at which depth? A group of different layers, repeated, and what their routers and halting cost.

Paper section 2 and 2.4 (layer grouping). Letters: B batch, T tokens, N cached and new tokens, d hidden size, G layers
in a group, R repeats, L = G·R executed layers.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moeut.experts import ExpertBackend
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.cache import Cache, CacheSlot
from moeut.model.halting import ActConfig, HaltingGate, act_loss, advance, begin, decide
from moeut.model.initialise import InitialWeights, Scheme
from moeut.model.layer import AttentionConfig, FeedForwardConfig, Layer, NormName, build_attention, build_feed_forward
from moeut.model.native_step import streams_of
from moeut.model.rope import Phases, num_rotated_channels, rotary_phases
from moeut.model.routing import Router, Selection, without_scores
from moeut.model.softmax_routing import SoftmaxRouter
from moeut.model.surroundings import Surroundings, Tokens, visibility
from moeut.settings import STRICT, PositiveFloat, PositiveInt, Probability, refuse


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StackConfig:
    """A stack of layers on vectors of `hidden_size` channels.

    num_hidden_layers: executed depth L. group_size: G layers with weights of their own; L / G times each is repeated
    (G = L: nothing is shared). layer_order: `abab` runs the whole group again and again, `aabb` repeats each layer
    before the next. halting: let each token stop at a depth of its own. expert_backend: which code multiplies rows with
    experts; `auto` chooses by device.
    """

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    group_size: PositiveInt
    layer_order: Literal["abab", "aabb"] = "abab"
    norm: NormName = "peri"
    attention: Annotated[AttentionConfig, Field(discriminator="kind")]
    feed_forward: Annotated[FeedForwardConfig, Field(discriminator="kind")]
    halting: ActConfig | None = None
    layer_norm_eps: PositiveFloat = 1e-5
    hidden_dropout: Probability = 0.0
    initialisation: Scheme = "paper"
    expert_backend: ExpertBackend = "auto"

    def __post_init__(self) -> None:
        """Refuse a depth that is not a whole number of groups."""
        refuse(
            [
                (
                    self.num_hidden_layers % self.group_size != 0,
                    f"group_size: {self.num_hidden_layers} layers (num_hidden_layers) cannot be made of whole groups "
                    f"of {self.group_size}",
                )
            ]
        )

    @property
    def num_repeats(self) -> int:
        """R: how often each layer runs."""
        return self.num_hidden_layers // self.group_size

    @property
    def schedule(self) -> list[int]:
        """The layer that runs at each depth: 0 1 0 1 … (`abab`) or 0 0 … 1 1 … (`aabb`)."""
        if self.layer_order == "abab":
            return [depth % self.group_size for depth in range(self.num_hidden_layers)]
        return [depth // self.num_repeats for depth in range(self.num_hidden_layers)]

    def with_repeats(self, num_repeats: int) -> Self:
        """The same layers run another number of times: the weights of a model of this configuration fit that one's."""
        return replace(self, num_hidden_layers=num_repeats * self.group_size)


class StackOutput(NamedTuple):
    """What a stack computed.

    hidden_states: [B, T, d]. regulariser: 0-dimensional; balance terms and expected depth, weighted; zero outside
    training. routing: for each executed layer what its routers selected, by name, or None where nobody asked; their
    scores only where these were asked for, too. all_hidden_states: the stream before the first and after each executed
    layer, or None. expected_layers: [B, T], how many layers each token takes, with halting (up to the share of it that
    halting neglects), otherwise None.
    """

    hidden_states: Tensor
    regulariser: Tensor
    routing: tuple[dict[str, Selection], ...] | None
    all_hidden_states: tuple[Tensor, ...] | None
    expected_layers: Tensor | None


class _Passage(NamedTuple):
    """A way through the layers: the stream before and after each, what was selected in each, expected depths after."""

    streams: list[Tensor] | Tensor
    selections: list[dict[str, Selection]]
    expected_depths: list[Tensor]


class MoEUT(nn.Module):
    """G layers repeated R times over a residual stream of vectors; usable on its own, without tokens.

    Whether it is a MoEUT, a dense Transformer (G = L) or something between is its parts' doing. Raises ValueError for a
    configuration that cannot be built. The stream is not normalised at the end; a language model does that.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        initial = InitialWeights(config.initialisation, config.num_hidden_layers, post_norm=config.norm == "post")
        self.layers = nn.ModuleList(
            Layer(
                build_attention(config.attention, config.hidden_size, initial, config.expert_backend),
                build_feed_forward(config.feed_forward, config.hidden_size, initial, config.expert_backend),
                config.hidden_size,
                norm=config.norm,
                layer_norm_eps=config.layer_norm_eps,
                hidden_dropout=config.hidden_dropout,
            )
            for _ in range(config.group_size)
        )
        if config.halting is not None:
            self.halting_gates = nn.ModuleList(HaltingGate(config.hidden_size) for _ in range(config.group_size))

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        *,
        causal: bool = True,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        return_routing: bool = False,
        return_scores: bool = False,
        return_hidden_states: bool = False,
    ) -> StackOutput:
        """Run all layers over x [B, T, d].

        attention_mask: [B, N] True (or 1) at real tokens, where N counts cached and new ones; or a ready mask
        [B or 1, 1, T, N] that says which query may look at which key. None: every token is real. position_ids: [B, T];
        by default they go on from the cache. cache: one slot for each executed layer (`moeut.model.cache`).
        return_routing: report what routers select; return_scores: with the scores they select by.
        """
        past = 0 if cache is None else cache.get_seq_length()
        around = self._surroundings(x, attention_mask, past, causal, position_ids)
        if self.config.halting is None:
            passage = None if return_routing or return_scores else self._at_once(x, around, cache)
            passage = passage or self._straight(x, around, cache, return_scores)
        else:
            may_leave_early = not (self.training or return_routing or return_scores)
            passage = self._halting(x, around, cache, return_scores, self.config.halting, may_leave_early)
        return StackOutput(
            passage.streams[-1],
            self._regulariser(passage, around.tokens) if self.training else x.new_zeros(()),
            tuple(passage.selections) if return_routing or return_scores else None,
            tuple(passage.streams) if return_hidden_states else None,
            passage.expected_depths[-1] + 1 if passage.expected_depths else None,
        )

    def routers(self) -> list[tuple[int, tuple[int, ...], Router | SoftmaxRouter]]:
        """The routers of each shared layer, in the order in which they select: (layer, its depths, router)."""
        depths: list[list[int]] = [[] for _ in self.layers]
        for depth, index in enumerate(self.config.schedule):
            depths[index].append(depth)
        return [
            (index, tuple(depths[index]), router)
            for index, layer in enumerate(self.layers)
            for router in layer.modules()
            if isinstance(router, Router | SoftmaxRouter)
        ]

    def _at_once(self, x: Tensor, around: Surroundings, cache: Cache | None) -> _Passage | None:
        """One token through all layers, where that can be, without what they select."""
        if self.training:
            return None
        streams = streams_of(self.layers, self.config.schedule, self.config.expert_backend, x, around, cache)
        return None if streams is None else _Passage(streams, [], [])

    def _straight(self, x: Tensor, around: Surroundings, cache: Cache | None, return_scores: bool) -> _Passage:
        """Every token through every layer."""
        streams, selections = [x], []
        for depth in range(self.config.num_hidden_layers):
            x, selected = self._layer(depth, x, around, cache)
            streams.append(x)
            selections.append(selected if return_scores else without_scores(selected))
        return _Passage(streams, selections, [])

    def _halting(
        self, x: Tensor, around: Surroundings, cache: Cache | None, return_scores: bool, halting: ActConfig,
        may_leave_early: bool,
    ) -> _Passage:  # fmt: skip
        """Every token until it halts (`moeut.model.halting`); the streams are the results handed on."""
        streams, selections, depths = [x], [], []
        now = begin(x)
        for depth, index in enumerate(self.config.schedule):
            if depth > 0:
                gate = self.halting_gates[index]
                assert isinstance(gate, HaltingGate)
                now = decide(now, gate, depth, halting)
                if may_leave_early and self._nobody_goes_on(now.survival, around.tokens.real):
                    streams += self._remember_the_rest(depth, now.result, around, cache)
                    break
            tokens = around.tokens._replace(survival=now.survival)
            x, selected = self._layer(depth, now.state, around._replace(tokens=tokens), cache, now.result)
            now = advance(now, x, depth, halting)
            streams.append(now.result)
            selections.append(selected if return_scores else without_scores(selected))
            depths.append(now.expected)
        return _Passage(streams, selections, depths)

    def _layer(
        self, depth: int, x: Tensor, around: Surroundings, cache: Cache | None, source: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Selection]]:
        index = self.config.schedule[depth]
        layer = self.layers[index]
        slot = None if cache is None else CacheSlot(cache, depth)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, x, around, slot, source, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return layer(x, around, slot, source)

    def _nobody_goes_on(self, survival: Tensor, real: Tensor | None) -> bool:
        # Ranks must call their layers equally often: they gather each other's weights. And a compiled graph of the
        # whole stack cannot depend on what is in a tensor.
        if torch.compiler.is_compiling() or (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return False
        return not (survival if real is None else survival * real).any().item()

    def _remember_the_rest(self, depth: int, result: Tensor, around: Surroundings, cache: Cache | None) -> list[Tensor]:
        """The streams of the layers from `depth` on, when all tokens have halted; their cache slots are filled."""
        deeper = range(depth, self.config.num_hidden_layers)
        if cache is not None:
            for depth in deeper:
                layer = self.layers[self.config.schedule[depth]]
                assert isinstance(layer, Layer)
                layer.remember(result, around, CacheSlot(cache, depth))
        return [result for _ in deeper]

    def _surroundings(
        self, x: Tensor, attention_mask: Tensor | None, past: Any, causal: bool, position_ids: Tensor | None
    ) -> Surroundings:
        """past: the number of cached tokens; a tensor where a cache is made for compiled graphs."""
        length = x.shape[1]
        real = None
        if attention_mask is not None and attention_mask.dim() == 4:
            mask, is_causal = attention_mask, False
        else:
            past = int(past)
            if attention_mask is not None:
                if attention_mask.shape != (x.shape[0], past + length):
                    raise ValueError(
                        f"attention_mask: expected shape {(x.shape[0], past + length)} (batch, cached and new tokens), "
                        f"got {tuple(attention_mask.shape)}"
                    )
                attention_mask = attention_mask.bool()
                real = attention_mask[:, past:]
            mask, is_causal = visibility(attention_mask, length, past + length, causal=causal, device=x.device)
        places = torch.arange(length, device=x.device) + past
        phases = self._phases(places[None] if position_ids is None else position_ids, x.dtype)
        return Surroundings(phases, places, mask, is_causal, Tokens(real))

    def _phases(self, positions: Tensor, dtype: torch.dtype) -> Phases:
        attention = self.config.attention
        if isinstance(attention, AttentionExpertsConfig):
            return rotary_phases(positions, 0, 1.0, dtype)
        num_channels = num_rotated_channels(attention.head_dim, attention.partial_rotary_factor)
        return rotary_phases(positions, num_channels, attention.rope_theta, dtype)

    def _regulariser(self, passage: _Passage, tokens: Tokens) -> Tensor:
        """Σ over layers and routers of what each makes of all its applications, and the expected depth."""
        terms: list[Tensor] = []
        for _, depths, router in self.routers():
            applications = [passage.selections[depth][router.name].statistics for depth in depths]
            if None not in applications:
                terms.append(router.regulariser(applications))
        if self.config.halting is not None:
            terms.append(act_loss(passage.expected_depths, tokens.real, self.config.halting))
        return torch.stack(terms).sum() if terms else passage.streams[-1].new_zeros(())
