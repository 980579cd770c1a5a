"""Does every variant keep every promise of the contract? The table of variants, each at a tiny shape.

A variant is a choice of parts (docs/variants.md).
"""

import dataclasses

import contract
import pytest

from moeut.model.attention import DenseAttentionConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

SWITCHHEAD = SwitchHeadConfig(num_attention_heads=2, head_dim=8, num_experts=3)
DENSE_HEADS = DenseAttentionConfig(num_attention_heads=2, head_dim=8)
SIGMA_MOE = SigmaMoEConfig(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=4)
MLP = MLPConfig(intermediate_size=20)

MOEUT = ModelConfig(
    vocab_size=13, hidden_size=12, num_hidden_layers=6, group_size=2, attention=SWITCHHEAD, feed_forward=SIGMA_MOE
)
DENSE = dataclasses.replace(
    MOEUT, num_hidden_layers=2, group_size=2, norm="pre", attention=DENSE_HEADS, feed_forward=MLP
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
    "universal transformer": dataclasses.replace(DENSE, num_hidden_layers=3, group_size=1, norm="post"),
    "universal transformer pre": dataclasses.replace(DENSE, num_hidden_layers=3, group_size=1),
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


COMPILED_IN_EVERY_RUN = {"moeut post", "moeut one gated attention expert", "dense transformer", "with dropout"}
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
def test_inductor_equals_eager():
    """The compiler that generates code, not only graphs; it needs a C++ compiler."""
    contract.assert_compiled_equals_eager(MOEUT, "inductor")
