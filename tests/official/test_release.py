"""Is a call of the clean release's constructor the same model here, and is what it cannot build refused?"""

import re
from dataclasses import replace
from typing import Any

import pytest
from official_cases import model_config
from official_files import as_rotated, entries
from test_variants import DENSE, MOEUT, SUT

from moeut.model.attention import DenseAttentionConfig
from moeut.model.cost import cost
from moeut.model.halting import ActConfig
from moeut.model.language_model import ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.official.release import release_arguments, release_config
from moeut.presets import preset

PROFILE_244M: dict[str, Any] = {
    "d_model": 1024, "n_layers": 18, "n_heads": 4, "ff_n_experts": 387, "att_n_experts": 10, "d_head": 128,
    "ff_k": 16, "group_size": 2,
}  # fmt: skip
SMALL = release_config(7, 24, 6, 2, ff_n_experts=5, att_n_experts=3, ff_k=2, ff_expert_size=4)
GATED = release_config(7, 24, 6, 2, ff_n_experts=5, att_n_experts=1, d_head=8, ff_k=2, ff_expert_size=4, group_size=3)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry" in metafunc.fixturenames:
        metafunc.parametrize(
            "entry", [pytest.param(entry, id=name) for name, entry in entries(metafunc.config, "config")]
        )


def test_every_official_case_is_the_model_that_it_was(entry: dict[str, Any]):
    expected = model_config(entry, vocab_size=61)
    config = release_config(**entry["config"])
    written_out = replace(config, embedding_scale=1.0, embedding_norm=False, final_norm=True)
    assert as_rotated(written_out, expected) == expected


def test_a_profile_of_the_paper():
    config = release_config(8000, **PROFILE_244M)
    assert config == preset("moeut-244m")
    assert cost(config).parameters == 243_326_784


def test_defaults_and_the_order_of_arguments():
    assert SMALL.attention == SwitchHeadConfig(num_attention_heads=2, head_dim=12, num_experts=3)
    assert SMALL.feed_forward == SigmaMoEConfig(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=4)
    assert (SMALL.vocab_size, SMALL.hidden_size, SMALL.num_hidden_layers, SMALL.group_size) == (7, 24, 6, 2)
    assert GATED.attention == DenseAttentionConfig(num_attention_heads=2, head_dim=8, output_gate=True)
    assert release_config(7, 24, 6, 2, 155, 1).feed_forward == SigmaMoEConfig(num_experts=155, num_experts_per_tok=8)
    with pytest.raises(ValueError, match=r"5 layers .* cannot be made of whole groups of 2"):
        release_config(7, 24, 5, 2, 16, 3)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        GATED,
        release_config(
            7, 24, 6, 2, 5, 3, 8, 3, 2, 1, ff_expert_dropout=0.1, att_expert_dropout=0.2, ff_expert_size=4,
            dropout=0.3, entropy_reg=0.4, att_entropy_reg=0.5,
        ),
        release_config(8000, **PROFILE_244M),
    ],
)  # fmt: skip
def test_there_and_back(config: ModelConfig):
    assert release_config(**release_arguments(config)) == config  # pyright: ignore[reportArgumentType]


def with_attention(**changes: Any) -> ModelConfig:
    return replace(SMALL, attention=replace(SMALL.attention, **changes))


def with_feed_forward(**changes: Any) -> ModelConfig:
    return replace(SMALL, feed_forward=replace(SMALL.feed_forward, **changes))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (replace(SMALL, norm="pre"), "norm: 'pre' is not"),
        (replace(SMALL, layer_order="aabb"), "layer_order: 'aabb' is not"),
        (replace(SMALL, halting=ActConfig()), "halting: is not"),
        (replace(SMALL, tie_word_embeddings=True), "tie_word_embeddings: the official release has two"),
        (replace(SMALL, embedding_scale=2.0), "embedding_scale: is not"),
        (replace(SMALL, embedding_norm=True), "embedding_norm: is not"),
        (replace(SMALL, final_norm=False), "final_norm: the official release has one"),
        (replace(SMALL, layer_norm_eps=1e-6), "layer_norm_eps: 1e-06 is 1e-05 in"),
        (with_attention(num_experts=1, num_experts_per_tok=1), "attention.num_experts: a single expert has no router"),
        (with_attention(gate="softmax"), "attention.gate: 'softmax' is not"),
        (with_attention(router_bias=True), "attention.router_bias: is not"),
        (with_attention(head_dim=82), "attention.head_dim: the official release cannot run heads of 82 channels, of"),
        (
            with_attention(partial_rotary_factor=1.0),
            "attention.partial_rotary_factor: the official release rotates half",
        ),
        (with_attention(rope_theta=5e5), "attention.rope_theta: is 10000 in"),
        (replace(SMALL, attention=DENSE.attention), "attention.output_gate: dense heads have one"),
        (with_feed_forward(gate="softmax"), "feed_forward.gate: 'softmax' is not"),
        (with_feed_forward(expert_bias=True), "feed_forward.expert_bias: is not"),
        (with_feed_forward(output_bias=True), "feed_forward.output_bias: is not"),
        (with_feed_forward(router_bias=True), "feed_forward.router_bias: is not"),
        (replace(SMALL, feed_forward=DENSE.feed_forward), "feed_forward.kind: 'mlp' is not"),
        (replace(SMALL, feed_forward=SUT.feed_forward), "feed_forward.kind: 'softmax_moe' is not"),
        (replace(SMALL, attention=SUT.attention), "attention.kind: 'attention_experts' is not"),
    ],
)
def test_what_the_release_cannot_be(config: ModelConfig, line: str):
    with pytest.raises(ValueError, match=rf"^{re.escape(line)}.*$"):
        release_arguments(config)


def test_all_that_it_cannot_be_is_told():
    with pytest.raises(ValueError, match=r"^norm: 'post'") as error:
        release_arguments(SUT)
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == [
        "norm", "final_norm", "attention.kind", "feed_forward.kind",
    ]  # fmt: skip
    assert release_arguments(MOEUT)["n_layers"] == 6
    in_turn = replace(MOEUT, layer_order="aabb", num_hidden_layers=2)
    assert release_arguments(in_turn)["n_layers"] == 2  # each layer once: no order to speak of
