"""Is the authors' formula the one that they published? Their figures for every size are in test_paper.py."""

from dataclasses import replace

import pytest

from moeut.model.attention import DenseAttentionConfig
from moeut.model.cost import cost
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import ModelConfig
from moeut.model.paper_macs import paper_macs
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.presets import preset

MOEUT = ModelConfig(
    vocab_size=10,
    hidden_size=4,
    num_hidden_layers=6,
    group_size=2,
    attention=SwitchHeadConfig(num_attention_heads=2, head_dim=3, num_experts=5, num_experts_per_tok=2),
    feed_forward=SigmaMoEConfig(num_experts=7, num_experts_per_tok=3, moe_intermediate_size=8),
)


def test_by_hand():
    """H·P = 6, T = 9. SwitchHead: 2·6·81 + 6·4·6·9 + 2·2·6·9 + 2·5·4·9; σ-MoE: 2·4·8·3·9 + 4·7·9."""
    assert paper_macs(MOEUT, 9) == 6 * (972 + 1296 + 216 + 360 + 1728 + 252)
    dense = replace(
        MOEUT,
        attention=DenseAttentionConfig(num_attention_heads=2, head_dim=3),
        feed_forward=MLPConfig(intermediate_size=20),
    )
    assert paper_macs(dense, 9) == 6 * (972 + 4 * 4 * 6 * 9 + 2 * 4 * 20 * 9)
    assert paper_macs(dense, 9) == 9 * (cost(dense, 9).macs_per_token - 40)


@pytest.mark.parametrize(("name", "field"), [("sut-tiny", "attention"), ("moeut-gated-tiny", "attention")])
def test_other_parts_are_refused(name: str, field: str):
    with pytest.raises(ValueError, match=f"{field}: the paper's formula knows"):
        paper_macs(preset(name))


def test_another_feed_forward_is_refused():
    with pytest.raises(ValueError, match="feed_forward: the paper's formula knows mlp and sigma_moe"):
        paper_macs(replace(MOEUT, feed_forward=preset("sut-tiny").feed_forward))
