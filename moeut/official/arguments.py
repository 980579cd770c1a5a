"""Which model do the arguments in a checkpoint of the training code describe?

A checkpoint of RobertCsordas/moeut_training_code holds the command line of its run. Every argument that shapes the
model is read here as it is read there: under its name, with its default, whether as typed ('14', 'none', 0 and 1) or
parsed. Where a value would change what the model computes and has no counterpart, it is refused; where it would change
only how it goes on learning, it is noted.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from moeut.model.language_model import ModelConfig
from moeut.settings import PositiveFloat, PositiveInt, refuse
from moeut.validation import Tree, validate


def _none(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == "none" else value


_OptionalInt = Annotated[PositiveInt | None, BeforeValidator(_none)]
_OptionalFloat = Annotated[float | None, BeforeValidator(_none)]
_BalanceMode = Literal["step", "global", "time", "layers_time"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class TrainingArguments:
    """The arguments that shape a model, by the training code's names; everything else is passed over."""

    variant: str = Field(alias="transformer.variant")
    state_size: PositiveInt = 128
    embedding_size: _OptionalInt = None
    dropout: float = 0.0
    reg: float = 1.0
    num_layers: PositiveInt = Field(3, alias="transformer.encoder_n_layers")
    group_size: PositiveInt = Field(1, alias="transformer.universal.group_size")
    group_type: Literal["abab", "aabb"] = Field("abab", alias="transformer.universal.group_type")
    embedding_scale: _OptionalFloat = Field(None, alias="transformer.embedding_scale")
    norm_input: bool = Field(False, alias="lm.trafo.norm_input")
    force_out_norm: bool = Field(False, alias="lm.trafo.force_out_norm")
    nonorm: bool = Field(False, alias="moe.nonorm")
    activation: str = Field("relu", alias="transformer.activation")
    ff_multiplier: PositiveFloat = Field(2.0, alias="transformer.ff_multiplier")
    ff_experts: PositiveInt = Field(128, alias="moe.n_experts")
    ff_expert_size: PositiveInt = Field(128, alias="moe.expert_size")
    ff_selected: PositiveInt = Field(1, alias="pkm.n_heads")
    ff_gate: Literal["sigmoid", "gate"] = Field("sigmoid", alias="moe.selection_mode")
    activation_after_topk: bool = Field(False, alias="moe.activation_after_topk")
    bias: bool = Field(False, alias="moe.bias")
    router_bias: bool = Field(False, alias="moe.sel_bias")
    expert_dropout: float = Field(0.0, alias="moe.drop_expert")
    balance: float = Field(0.0, alias="moe.perplexity_reg")
    balance_mode: _BalanceMode = Field("step", alias="moe.perplexity_reg_mode")
    heads: PositiveInt = Field(4, alias="transformer.n_heads")
    head_size: _OptionalInt = Field(None, alias="transformer.head_projection_size")
    rotate_fraction: Annotated[float, Field(ge=0, le=1)] = Field(0.5, alias="rope.rotate_fraction")
    rope_base: PositiveFloat = Field(10000.0, alias="rope.base")
    attention_has_experts: bool = Field(False, alias="moe.att.enable")
    attention_experts: PositiveInt = Field(4, alias="moe.att.n_experts")
    attention_expert_size: PositiveInt = Field(256, alias="moe.att.expert_size")
    attention_selected: PositiveInt = Field(2, alias="moe.att.k")
    attention_gate: Literal["sigmoid", "softmax"] = Field("sigmoid", alias="moe.att.selection_mode")
    attention_expert_dropout: _OptionalFloat = Field(None, alias="moe.att.drop_expert")
    attention_balance: _OptionalFloat = Field(None, alias="moe.att.perplexity_reg")
    attention_balance_mode: Annotated[_BalanceMode | None, BeforeValidator(_none)] = Field(
        None, alias="moe.att.perplexity_reg_mode"
    )
    q_expert: bool = Field(True, alias="moe.att.q_expert")
    k_expert: bool = Field(True, alias="moe.att.k_expert")
    v_expert: bool = Field(True, alias="moe.att.v_expert")
    o_expert: bool = Field(True, alias="moe.att.o_expert")
    same_sel: bool = Field(False, alias="moe.att.same_sel")
    separate_kq_sel: bool = Field(False, alias="moe.att.separate_kq_sel")
    sample_topk: int = Field(0, alias="sut.sample_topk")
    max_relative_positions: PositiveInt = Field(64, alias="sut.max_relative_positions")
    mutual_information_loss: float = Field(0.0, alias="moa.miloss")
    variation_loss: float = Field(0.0, alias="moa.cvloss")
    switch_loss: float = Field(0.0, alias="moa.switchloss")
    act_loss: float = Field(0.0, alias="transformer.act_loss")


class _Variant(NamedTuple):
    """What a name of `transformer.variant` stands for; `universal`: layers are shared."""

    layer: Literal["dense", "moe", "sut"]
    preln: bool
    universal: bool
    act: bool = False


_VARIANTS = {
    "preln_rope": _Variant("dense", preln=True, universal=False),
    "rope": _Variant("dense", preln=False, universal=False),
    "preln_rope_universal": _Variant("dense", preln=True, universal=True),
    "rope_universal": _Variant("dense", preln=False, universal=True),
    "preln_moe": _Variant("moe", preln=True, universal=False),
    "moe": _Variant("moe", preln=False, universal=False),
    "preln_moe_universal": _Variant("moe", preln=True, universal=True),
    "moe_universal": _Variant("moe", preln=False, universal=True),
    "preln_sut_universal": _Variant("sut", preln=True, universal=True),
    "sut_universal": _Variant("sut", preln=False, universal=True),
    "preln_actsut_universal": _Variant("sut", preln=True, universal=True, act=True),
    "actsut_universal": _Variant("sut", preln=False, universal=True, act=True),
}

_ONLY_TRAINING = (
    "dropout", "lm.trafo.context_blocks", "transformer.p_drop_layer", "moe.att.dropout", "moe.selection_dropout",
    "moe.att.selection_dropout", "sut.drop_gate", "reg_scales", "reg_lin_decay",
)  # fmt: skip
"""What has no counterpart here, or in part only (dropout of embedding, head and MLP), and is idle in evaluation."""

_NO_EFFECT = frozenset(
    {"moe.att.v_size", "moe.att.expert_dropout", "moe.att.norm_init", "moe.init_scale", "moe.layer_std_constant",
     "moe.sync_distributed", "moe.dropout_factor", "moa.zloss", "transformer.attention_dropout",
     "transformer.topk_value", "transformer.plot_head_details", "lm.trafo.xl_init", "lm.trafo.test_context_blocks",
     "lm.trafo.same_length", "lm.trafo.same_length_eval", "lm.trafo.last_layer_context"}
)  # fmt: skip
"""What shapes initial weights only, or nothing: the training code reads it and hands it to nobody."""

_OF_A_MODEL = ("transformer.", "moe.", "moa.", "sut.", "pkm.", "rope.", "lm.trafo.")
_ATTENTION_GATES = {"sigmoid": "sigmoid", "softmax": "softmax_of_selected"}
_FEED_FORWARD_GATES = {"sigmoid": "sigmoid", "gate": "softmax"}
_SCOPES = {"layers_time": "sequence", "global": "batch", "time": "application"}
_ACT_THRESHOLD = 0.999
"""The training code's, which has no argument for it."""


class Described(NamedTuple):
    """A model, and what a user should know of how it was described."""

    config: ModelConfig
    notes: tuple[str, ...]


def described_model(arguments: Mapping[str, Any], vocab_size: int) -> Described:
    """The model that a run's arguments describe. vocab_size: of its embedding, because no argument says it reliably.

    Raises ValueError, a line for each argument that is wrong or has no counterpart here.
    """
    given = validate(TrainingArguments, dict(arguments))
    if given.variant not in _VARIANTS:
        raise ValueError(f"transformer.variant: {given.variant!r} has no counterpart; there are {', '.join(_VARIANTS)}")
    variant = _VARIANTS[given.variant]
    refuse([*_without_counterpart(given, variant)])
    scale = given.embedding_scale
    config = {
        "vocab_size": vocab_size,
        "hidden_size": given.state_size,
        "num_hidden_layers": given.num_layers,
        "group_size": given.group_size if variant.universal else given.num_layers,
        "layer_order": given.group_type if variant.universal else "abab",
        "norm": "peri" if given.nonorm and variant.layer == "moe" else "pre" if variant.preln else "post",
        "attention": _attention(given, variant),
        "feed_forward": _feed_forward(given, variant),
        "halting": _halting(given) if variant.act else None,
        "embedding_scale": (1.0 if variant.preln else math.sqrt(given.state_size)) if scale is None else scale,
        "embedding_norm": given.norm_input,
        "final_norm": variant.preln or given.force_out_norm,
        "hidden_dropout": given.dropout,
    }
    return Described(validate(ModelConfig, config), (*_notes(arguments, given),))


def _without_counterpart(given: TrainingArguments, variant: _Variant) -> Iterator[tuple[bool, str]]:
    """Whether an argument asks for what is not built here, and what to say then."""
    embedding = f"embedding_size: an embedding of {given.embedding_size} channels beside the layers' {given.state_size}"
    yield given.embedding_size is not None, f"{embedding} has no counterpart"
    yield given.activation != "relu", f"transformer.activation: {given.activation!r} has no counterpart, only 'relu'"
    yield variant.layer == "sut" and given.head_size is None, "transformer.head_projection_size: SUT must say it"
    if variant.layer != "moe":
        return
    yield given.activation_after_topk, "moe.activation_after_topk: has no counterpart, only 0"
    yield (
        given.nonorm and not given.attention_has_experts,
        "moe.nonorm: the training code has it only with experts in attention (moe.att.enable)",
    )
    if given.attention_has_experts:
        for name, found, wanted in (
            ("q_expert", given.q_expert, False), ("k_expert", given.k_expert, False),
            ("v_expert", given.v_expert, True), ("o_expert", given.o_expert, True),
            ("same_sel", given.same_sel, False), ("separate_kq_sel", given.separate_kq_sel, False),
        ):  # fmt: skip
            yield found is not wanted, f"moe.att.{name}: {found:d} has no counterpart, only {wanted:d}"


def _attention(given: TrainingArguments, variant: _Variant) -> Tree:
    if variant.layer == "sut":
        head_size = given.head_size or 1
        return {
            "kind": "attention_experts",
            "num_attention_heads": given.attention_expert_size // head_size,
            "head_dim": head_size,
            "num_experts": given.attention_experts,
            "num_experts_per_tok": min(given.attention_selected, given.attention_experts),
            "max_relative_positions": given.max_relative_positions,
            "sample_topk": given.sample_topk,
            **_softmax_losses(given),
        }
    heads: Tree = {
        "num_attention_heads": given.heads,
        "head_dim": given.head_size or given.state_size // given.heads,
        "rope_theta": given.rope_base,
        "partial_rotary_factor": given.rotate_fraction,
    }
    if variant.layer == "dense" or not given.attention_has_experts:
        return {"kind": "dense", **heads}
    dropout, balance = given.attention_expert_dropout, given.attention_balance
    coefficient = given.balance if balance is None else balance
    return {
        "kind": "switchhead",
        **heads,
        "num_experts": given.attention_experts,
        "num_experts_per_tok": given.attention_selected,
        "gate": _ATTENTION_GATES[given.attention_gate],
        "expert_dropout": given.expert_dropout if dropout is None else dropout,
        **_balance(coefficient * given.reg, given.attention_balance_mode or given.balance_mode),
    }


def _feed_forward(given: TrainingArguments, variant: _Variant) -> Tree:
    if variant.layer == "dense":
        return {"kind": "mlp", "intermediate_size": int(given.state_size * given.ff_multiplier)}
    experts = {"num_experts": given.ff_experts, "moe_intermediate_size": given.ff_expert_size}
    if variant.layer == "sut":
        selected = min(given.ff_selected, given.ff_experts)
        return {"kind": "softmax_moe", **experts, "num_experts_per_tok": selected, **_softmax_losses(given)}
    # The training code adds up these terms over a layer's applications, and averages those of attention, as we do all.
    summed = given.balance_mode == "time" and variant.universal
    applications = given.num_layers / given.group_size if summed else 1
    return {
        "kind": "sigma_moe",
        **experts,
        "num_experts_per_tok": given.ff_selected,
        "gate": _FEED_FORWARD_GATES[given.ff_gate],
        "expert_dropout": given.expert_dropout,
        "expert_bias": given.bias,
        "output_bias": given.bias,
        "router_bias": given.router_bias,
        **_balance(given.balance * given.reg * applications, given.balance_mode),
    }


def _balance(coefficient: float, mode: str) -> Tree:
    if mode not in _SCOPES:
        return {"router_aux_loss_coef": 0.0}
    return {"router_aux_loss_coef": coefficient, "balance_scope": _SCOPES[mode]}


def _softmax_losses(given: TrainingArguments) -> Tree:
    return {
        "mutual_information_loss_coef": given.mutual_information_loss * given.reg,
        "variation_loss_coef": given.variation_loss * given.reg,
        "switch_loss_coef": given.switch_loss * given.reg,
        "z_loss_coef": 0.0,
        "loss_form": "official",
    }


def _halting(given: TrainingArguments) -> Tree:
    return {
        "kind": "act",
        "threshold": _ACT_THRESHOLD,
        "act_loss_coef": given.act_loss * given.reg,
        "loss_form": "official",
    }


def _notes(arguments: Mapping[str, Any], given: TrainingArguments) -> Iterator[str]:
    for name in _ONLY_TRAINING:
        if not _off(arguments.get(name)):
            yield f"{name} {arguments[name]} has no full counterpart; the model is the same, training on would differ"
    attention_mode = given.attention_balance_mode or given.balance_mode
    used = {given.balance_mode: given.balance, attention_mode: given.attention_balance or given.balance}
    for mode, coefficient in used.items():
        if coefficient and mode not in _SCOPES:
            yield f"the balance term {mode!r} has no counterpart; its weight is 0 here"
    known = TypeAdapter(TrainingArguments).json_schema()["properties"]
    for name, value in arguments.items():
        if name.startswith(_OF_A_MODEL) and name not in {*known, *_ONLY_TRAINING, *_NO_EFFECT} and not _off(value):
            yield f"{name} {value} is unknown to the published training code, and passed over here as there"


def _off(value: object) -> bool:
    """Whether a value asks for nothing."""
    return str(value).lower() in {"0", "0.0", "", "none", "false"}
