"""Which of our models is a model of the clean release, and which of its models is one of ours?

RobertCsordas/moeut has one class of language models, `MoEUTLM`, and no configuration: a model is what its constructor
was given. Its defaults are kept here, and so are its names, so that the same call describes the same model.
"""

from collections.abc import Iterator
from typing import Any

from moeut.model.attention import DenseAttentionConfig
from moeut.model.language_model import ModelConfig
from moeut.model.rope import num_rotated_channels
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.settings import refuse

EPS = 1e-5
THETA = 10000.0


def release_config(
    n_tokens: int, d_model: int, n_layers: int, n_heads: int, ff_n_experts: int, att_n_experts: int,
    d_head: int | None = None, group_size: int = 2, ff_k: int = 8, att_k: int = 2, ff_expert_dropout: float = 0.0,
    att_expert_dropout: float = 0.0, ff_expert_size: int = 128, dropout: float = 0.0, entropy_reg: float = 0.01,
    att_entropy_reg: float = 0.001,
) -> ModelConfig:  # fmt: skip
    """What the release's `MoEUTLM(…)` builds when it is called with these arguments.

    n_tokens: vocabulary; d_model: hidden size; n_layers: executed depth; d_head: head size (d_model // n_heads unless
    given); ff_k, att_k: experts selected. One attention expert means, as there, dense heads with an output gate, for
    which `att_k`, `att_expert_dropout` and `att_entropy_reg` mean nothing. `dropout` is applied to both branches of a
    layer (there to attention only). The release's argument `attention` is not taken: it has one class to give.

    Raises ValueError where the numbers make no model, n_layers that is no multiple of group_size among them (there
    fewer layers are run then).
    """
    heads: dict[str, Any] = {"num_attention_heads": n_heads, "head_dim": d_head or d_model // n_heads}
    several = SwitchHeadConfig(
        **heads, num_experts=att_n_experts, num_experts_per_tok=att_k, router_aux_loss_coef=att_entropy_reg,
        expert_dropout=att_expert_dropout,
    ) if att_n_experts > 1 else None  # fmt: skip
    return ModelConfig(
        vocab_size=n_tokens,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        group_size=group_size,
        attention=several or DenseAttentionConfig(**heads, output_gate=True),
        feed_forward=SigmaMoEConfig(
            num_experts=ff_n_experts, num_experts_per_tok=ff_k, moe_intermediate_size=ff_expert_size,
            router_aux_loss_coef=entropy_reg, expert_dropout=ff_expert_dropout,
        ),
        hidden_dropout=dropout,
    )  # fmt: skip


def release_arguments(config: ModelConfig) -> dict[str, int | float]:
    """The arguments with which the release's `MoEUTLM(…)` builds this model.

    It then computes the same in evaluation. Raises ValueError with a line for everything that the release cannot be.
    """
    refuse([*_not_in_the_release(config), *_not_in_its_layers(config)])
    attention, feed_forward = config.attention, config.feed_forward
    assert isinstance(feed_forward, SigmaMoEConfig)
    arguments: dict[str, int | float] = {
        "n_tokens": config.vocab_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": attention.num_attention_heads,
        "ff_n_experts": feed_forward.num_experts,
        "att_n_experts": 1,
        "d_head": attention.head_dim,
        "group_size": config.group_size,
        "ff_k": feed_forward.num_experts_per_tok,
        "ff_expert_dropout": feed_forward.expert_dropout,
        "ff_expert_size": feed_forward.moe_intermediate_size,
        "dropout": config.hidden_dropout,
        "entropy_reg": feed_forward.router_aux_loss_coef,
    }
    if isinstance(attention, SwitchHeadConfig):
        arguments |= {
            "att_n_experts": attention.num_experts,
            "att_k": attention.num_experts_per_tok,
            "att_expert_dropout": attention.expert_dropout,
            "att_entropy_reg": attention.router_aux_loss_coef,
        }
    return arguments


def _not_in_the_release(config: ModelConfig) -> Iterator[tuple[bool, str]]:
    """Whether something around the layers is not in the release, and what to say then."""
    yield config.norm != "peri", f"norm: {config.norm!r} is not in the official release, only 'peri'"
    in_turn = [depth % config.group_size for depth in range(config.num_hidden_layers)]
    yield config.schedule != in_turn, f"layer_order: {config.layer_order!r} is not in the official release"
    yield config.halting is not None, "halting: is not in the official release"
    yield config.tie_word_embeddings, "tie_word_embeddings: the official release has two matrices"
    yield config.embedding_scale not in (None, 1.0), "embedding_scale: is not in the official release"
    yield bool(config.embedding_norm), "embedding_norm: is not in the official release"
    yield not config.has_final_norm, "final_norm: the official release has one"
    yield config.layer_norm_eps != EPS, f"layer_norm_eps: {config.layer_norm_eps} is {EPS} in the official release"


def _not_in_its_layers(config: ModelConfig) -> Iterator[tuple[bool, str]]:
    """Whether something inside the layers is not in the release, and what to say then."""
    attention, feed_forward = config.attention, config.feed_forward
    match attention:
        case SwitchHeadConfig():
            yield (
                attention.num_experts == 1,
                "attention.num_experts: a single expert has no router for its values in the official release",
            )
            yield attention.gate != "sigmoid", f"attention.gate: {attention.gate!r} is not in the official release"
            yield attention.router_bias, "attention.router_bias: is not in the official release"
        case DenseAttentionConfig():
            yield not attention.output_gate, "attention.output_gate: dense heads have one in the official release"
        case _:
            yield True, f"attention.kind: {attention.kind!r} is not in the official release"
    if isinstance(attention, SwitchHeadConfig | DenseAttentionConfig):
        rotated = num_rotated_channels(attention.head_dim, attention.partial_rotary_factor)
        theirs = attention.head_dim // 2
        yield (
            theirs % 2 == 1,
            f"attention.head_dim: the official release cannot run heads of {attention.head_dim} channels, of which it "
            f"would rotate {theirs}, an odd number",
        )
        yield (
            theirs % 2 == 0 and rotated != theirs,
            f"attention.partial_rotary_factor: the official release rotates half of a head, not {rotated} of "
            f"{attention.head_dim} channels",
        )
        yield attention.rope_theta != THETA, f"attention.rope_theta: is {THETA:g} in the official release"
    if not isinstance(feed_forward, SigmaMoEConfig):
        yield True, f"feed_forward.kind: {feed_forward.kind!r} is not in the official release"
        return
    yield feed_forward.gate != "sigmoid", f"feed_forward.gate: {feed_forward.gate!r} is not in the official release"
    for name in ("expert_bias", "output_bias", "router_bias"):
        yield getattr(feed_forward, name), f"feed_forward.{name}: is not in the official release"
