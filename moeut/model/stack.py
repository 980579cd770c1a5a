"""Which layer runs at which depth? A group of different layers, repeated; the balance term collected over the repeats.

Paper section 2 and 2.4 (layer grouping). Letters: B batch, T tokens, N cached and new tokens, d hidden size, G layers
in a group, R repeats, L = G·R executed layers.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moeut.experts import ExpertBackend
from moeut.model.attention import DenseAttentionConfig, Surroundings, visibility
from moeut.model.cache import Cache, CacheSlot
from moeut.model.feedforward import MLPConfig
from moeut.model.initialise import InitialWeights, Scheme
from moeut.model.layer import Layer, NormName, build_attention, build_feed_forward
from moeut.model.rope import num_rotated_channels, rotary_phases
from moeut.model.routing import Selection, balance_loss
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.settings import STRICT, PositiveFloat, PositiveInt, Probability, refuse


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StackConfig:
    """A stack of layers on vectors of `hidden_size` channels.

    num_hidden_layers: executed depth L. group_size: G layers with weights of their own; L / G times each is repeated
    (G = L: nothing is shared). layer_order: `abab` runs the whole group again and again, `aabb` repeats each layer
    before the next. expert_backend: which code multiplies rows with experts; `auto` chooses by device.
    """

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    group_size: PositiveInt
    layer_order: Literal["abab", "aabb"] = "abab"
    norm: NormName = "peri"
    attention: Annotated[DenseAttentionConfig | SwitchHeadConfig, Field(discriminator="kind")]
    feed_forward: Annotated[MLPConfig | SigmaMoEConfig, Field(discriminator="kind")]
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


class StackOutput(NamedTuple):
    """What a stack computed.

    hidden_states: [B, T, d]. regulariser: 0-dimensional; zero unless training with a balance coefficient. routing: for
    each executed layer what its routers selected, by name, or None where nobody asked. all_hidden_states: the stream
    before the first and after each executed layer, or None.
    """

    hidden_states: Tensor
    regulariser: Tensor
    routing: tuple[dict[str, Selection], ...] | None
    all_hidden_states: tuple[Tensor, ...] | None


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

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        *,
        causal: bool = True,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        return_routing: bool = False,
        return_hidden_states: bool = False,
    ) -> StackOutput:
        """Run all layers over x [B, T, d].

        attention_mask: [B, N] True (or 1) at real tokens, where N counts cached and new ones; or a ready mask
        [B or 1, 1, T, N] that says which query may look at which key. None: every token is real. position_ids: [B, T];
        by default they go on from the cache. cache: one slot for each executed layer (`moeut.model.cache`).
        """
        past = 0 if cache is None else int(cache.get_seq_length())
        around = self._surroundings(x, attention_mask, past, causal, position_ids)
        streams = [x]
        selections: list[dict[str, Selection]] = []
        for depth, index in enumerate(self.config.schedule):
            slot = None if cache is None else CacheSlot(cache, depth)
            layer = self.layers[index]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, selected = checkpoint(layer, x, around, slot, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
            else:
                x, selected = layer(x, around, slot)
            selections.append(selected)
            streams.append(x)
        return StackOutput(
            x,
            self._regulariser(selections, x, around.token_mask) if around.with_usage else x.new_zeros(()),
            tuple(selections) if return_routing else None,
            tuple(streams) if return_hidden_states else None,
        )

    def _surroundings(
        self, x: Tensor, attention_mask: Tensor | None, past: int, causal: bool, position_ids: Tensor | None
    ) -> Surroundings:
        length = x.shape[1]
        token_mask = None
        if attention_mask is not None and attention_mask.dim() == 4:
            mask, is_causal = attention_mask, False
        else:
            if attention_mask is not None:
                if attention_mask.shape != (x.shape[0], past + length):
                    raise ValueError(
                        f"attention_mask: expected shape {(x.shape[0], past + length)} (batch, cached and new tokens), "
                        f"got {tuple(attention_mask.shape)}"
                    )
                attention_mask = attention_mask.bool()
                token_mask = attention_mask[:, past:]
            mask, is_causal = visibility(attention_mask, length, past + length, causal=causal, device=x.device)
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=x.device).unsqueeze(0)
        attention = self.config.attention
        num_channels = num_rotated_channels(attention.head_dim, attention.partial_rotary_factor)
        phases = rotary_phases(position_ids, num_channels, attention.rope_theta, x.dtype)
        with_usage = self.training and any(self._balance_coefficients().values())
        return Surroundings(phases, mask, is_causal, token_mask, with_usage)

    def _balance_coefficients(self) -> Mapping[str, float]:
        coefficients: dict[str, float] = {}
        if isinstance(self.config.attention, SwitchHeadConfig):
            coefficients["attention_value"] = self.config.attention.router_aux_loss_coef
            coefficients["attention_output"] = self.config.attention.router_aux_loss_coef
        if isinstance(self.config.feed_forward, SigmaMoEConfig):
            coefficients["feed_forward"] = self.config.feed_forward.router_aux_loss_coef
        return coefficients

    def _regulariser(self, selections: list[dict[str, Selection]], x: Tensor, token_mask: Tensor | None) -> Tensor:
        """Σ over layers and routers of coefficient · balance term, the average running over time and all repeats."""
        if token_mask is None:
            tokens = torch.full(x.shape[:1], x.shape[1], device=x.device)
        else:
            tokens = token_mask.sum(dim=-1)
        usage: dict[tuple[int, str], Tensor] = {}
        for index, selected in zip(self.config.schedule, selections, strict=True):
            for name, selection in selected.items():
                assert selection.usage is not None
                key = (index, name)
                usage[key] = usage[key] + selection.usage if key in usage else selection.usage
        coefficients = self._balance_coefficients()
        count = tokens * self.config.num_repeats
        terms = [coefficients[name] * balance_loss(total, count) for (_, name), total in usage.items()]
        return torch.stack(terms).sum()
