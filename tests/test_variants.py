"""Does every variant keep every promise of the contract? The table of variants, each at a tiny shape.

A variant is a choice of parts (docs/variants.md).
"""

import dataclasses
import warnings

import contract
import pytest
import torch
from steps import build, tokens, watch

from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.halting import ActConfig
from moeut.model.language_model import ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.training.compilation import refuse_without_compiler

SWITCHHEAD = SwitchHeadConfig(num_attention_heads=2, head_dim=8, num_experts=3)
DENSE_HEADS = DenseAttentionConfig(num_attention_heads=2, head_dim=8)
SIGMA_MOE = SigmaMoEConfig(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=4)
MLP = MLPConfig(intermediate_size=20)
ATTENTION_EXPERTS = AttentionExpertsConfig(
    num_attention_heads=2, head_dim=4, num_experts=4, max_relative_positions=3, mutual_information_loss_coef=0.01
)
SOFTMAX_MOE = SoftmaxMoEConfig(num_experts=5, moe_intermediate_size=6, mutual_information_loss_coef=0.01)
ACT = ActConfig(threshold=0.8)

MOEUT = ModelConfig(
    vocab_size=13, hidden_size=12, num_hidden_layers=6, group_size=2, attention=SWITCHHEAD, feed_forward=SIGMA_MOE
)
DENSE = dataclasses.replace(
    MOEUT, num_hidden_layers=2, group_size=2, norm="pre", attention=DENSE_HEADS, feed_forward=MLP
)

UT = dataclasses.replace(DENSE, num_hidden_layers=3, group_size=1, norm="post")
SUT = dataclasses.replace(
    MOEUT, num_hidden_layers=4, group_size=1, norm="post", attention=ATTENTION_EXPERTS, feed_forward=SOFTMAX_MOE
)


def heads_of(head_dim: int) -> ModelConfig:
    return dataclasses.replace(MOEUT, attention=dataclasses.replace(SWITCHHEAD, head_dim=head_dim))


VARIANTS = {
    "moeut": MOEUT,
    "moeut aabb": dataclasses.replace(MOEUT, layer_order="aabb"),
    "moeut groups of three": dataclasses.replace(MOEUT, group_size=3),
    "moeut one layer repeated": dataclasses.replace(MOEUT, num_hidden_layers=3, group_size=1),
    "moeut unshared": dataclasses.replace(MOEUT, num_hidden_layers=3, group_size=3),
    "moeut pre": dataclasses.replace(MOEUT, norm="pre"),
    "moeut post": dataclasses.replace(MOEUT, norm="post"),
    "moeut one gated attention expert": dataclasses.replace(
        MOEUT, attention=dataclasses.replace(DENSE_HEADS, output_gate=True)
    ),
    "sigma-moe unshared": dataclasses.replace(
        MOEUT, num_hidden_layers=2, group_size=2, attention=dataclasses.replace(
            SWITCHHEAD, num_experts=1, num_experts_per_tok=1
        ),
    ),
    "dense heads and sigma-moe": dataclasses.replace(MOEUT, attention=DENSE_HEADS),
    "switchhead and mlp": dataclasses.replace(
        MOEUT, num_hidden_layers=2, group_size=2, norm="pre", feed_forward=MLP
    ),
    "dense transformer": DENSE,
    "universal transformer": UT,
    "universal transformer pre": dataclasses.replace(UT, norm="pre"),
    "universal transformer with act": dataclasses.replace(UT, num_hidden_layers=4, halting=ACT),
    "universal transformer with act, interpolated": dataclasses.replace(
        UT, num_hidden_layers=4, norm="pre", halting=dataclasses.replace(ACT, mixture="interpolated")
    ),
    "sut": dataclasses.replace(SUT, halting=ACT),
    "sut without act": SUT,
    "sut pre": dataclasses.replace(SUT, norm="pre", group_size=2),
    "sut with every loss": dataclasses.replace(
        SUT,
        halting=dataclasses.replace(ACT, loss_form="official"),
        attention=dataclasses.replace(
            ATTENTION_EXPERTS, variation_loss_coef=0.1, switch_loss_coef=0.1, sample_topk=1, attention_dropout=0.2
        ),
        feed_forward=dataclasses.replace(SOFTMAX_MOE, variation_loss_coef=0.1, switch_loss_coef=0.1),
        hidden_dropout=0.2,
    ),
    "moeut with act": dataclasses.replace(MOEUT, halting=ACT),
    "moeut with softmax gates": dataclasses.replace(
        MOEUT,
        attention=dataclasses.replace(SWITCHHEAD, gate="softmax_of_selected", balance_scope="application"),
        feed_forward=dataclasses.replace(SIGMA_MOE, gate="softmax", balance_scope="application"),
    ),
    "sigma-moe over the batch, with biases": dataclasses.replace(
        MOEUT, num_hidden_layers=2, group_size=2, norm="pre",
        attention=dataclasses.replace(SWITCHHEAD, router_bias=True),
        feed_forward=dataclasses.replace(
            SIGMA_MOE, balance_scope="batch", expert_bias=True, output_bias=True, router_bias=True
        ),
    ),
    "ends as one likes": dataclasses.replace(
        MOEUT, norm="post", embedding_scale=0.5, embedding_norm=False, final_norm=True
    ),
    "tied embeddings": dataclasses.replace(MOEUT, tie_word_embeddings=True),
    "every expert selected": dataclasses.replace(
        MOEUT,
        attention=dataclasses.replace(SWITCHHEAD, num_experts_per_tok=3),
        feed_forward=dataclasses.replace(SIGMA_MOE, num_experts_per_tok=5),
    ),
    "heads of 41": heads_of(41),
    "heads of 7": heads_of(7),
    "heads of 3": heads_of(3),
    "heads of 1": heads_of(1),
    "with dropout": dataclasses.replace(
        MOEUT,
        hidden_dropout=0.2,
        attention=dataclasses.replace(SWITCHHEAD, attention_dropout=0.2, expert_dropout=0.2),
        feed_forward=dataclasses.replace(SIGMA_MOE, expert_dropout=0.2),
    ),
    "experts in a plain loop": dataclasses.replace(MOEUT, expert_backend="reference"),
    "release's initial weights": dataclasses.replace(MOEUT, initialisation="release"),
}  # fmt: skip


ROWS = [
    "moeut", "moeut aabb", "moeut pre", "moeut post", "moeut one gated attention expert", "sigma-moe unshared",
    "dense heads and sigma-moe", "switchhead and mlp", "dense transformer", "universal transformer",
    "universal transformer pre", "universal transformer with act", "sut", "sut without act",
    "moeut with softmax gates",
]  # fmt: skip
"""The table of docs/variants.md, for tests that take long; the others are its rows at other sizes and settings."""

COMPILED_IN_EVERY_RUN = {
    "moeut post", "moeut one gated attention expert", "dense transformer", "with dropout", "sut with every loss",
    "sigma-moe over the batch, with biases",
}  # fmt: skip
"""Compiling takes seconds. These have every part between them; the others are compiled in the slow run."""


CASES = [
    pytest.param(
        config,
        promise,
        id=f"{variant}: {promise.__name__}",
        marks=[pytest.mark.slow]
        if promise is contract.compiled_equals_eager and variant not in COMPILED_IN_EVERY_RUN
        else [],
    )
    for variant, config in VARIANTS.items()
    for promise in contract.PROMISES
]


@pytest.mark.parametrize(("config", "promise"), CASES)
def test_variant_keeps_its_promise(config: ModelConfig, promise: contract.Promise):
    promise(config)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["moeut", "sut", "universal transformer with act, interpolated"])
def test_a_whole_model_compiles_to_one_graph(variant: str):
    """Also where tokens halt: what the loop over depth does then depends on no tensor's contents."""
    model, (inputs, _) = build(VARIANTS[variant]).eval(), tokens(VARIANTS[variant])
    torch.compiler.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(inputs)
        torch.testing.assert_close(compiled.logits, model(inputs).logits, rtol=1e-9, atol=1e-12)


def of_experts(count: int) -> ModelConfig:
    return dataclasses.replace(
        MOEUT,
        attention=dataclasses.replace(SWITCHHEAD, num_experts=count),
        feed_forward=dataclasses.replace(SIGMA_MOE, num_experts=count),
    )


INDUCTOR = {row: VARIANTS[row] for row in ROWS} | {f"{count} experts": of_experts(count) for count in range(2, 10)}
INDUCTOR_IN_EVERY_RUN = {"6 experts"}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=[] if name in INDUCTOR_IN_EVERY_RUN else [pytest.mark.slow])
        for name, config in INDUCTOR.items()
    ],
)
def test_inductor_equals_eager(config: ModelConfig):
    """The compiler that generates code, not only graphs; sums of fewer than eight terms are unrolled in it."""
    try:
        refuse_without_compiler(torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    contract.assert_compiled_equals_eager(config, "inductor")


HALTING = {variant: config for variant, config in VARIANTS.items() if config.halting is not None}


@pytest.mark.parametrize("config", HALTING.values(), ids=HALTING)
def test_some_tokens_halt_and_others_go_on(config: ModelConfig):
    """Otherwise the contract would say little of halting."""
    model = build(config).eval()
    with watch(model) as seen:
        model(tokens(config)[0], return_routing=True)
    halted = torch.stack([survival == 0 for survival in seen.survival])
    assert not halted[0].any()
    assert any(some.any() and not some.all() for some in halted)
    assert (halted[1:] >= halted[:-1]).all(), "who has halted stays so"
