"""What does each part of a layer read, and what does the residual stream get?"""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from moeut.model.attention import DenseAttention, DenseAttentionConfig
from moeut.model.attention_experts import AttentionExperts, AttentionExpertsConfig
from moeut.model.feedforward import MLP, MLPConfig
from moeut.model.initialise import InitialWeights
from moeut.model.layer import Layer, NormName, build_attention, build_feed_forward
from moeut.model.rope import rotary_phases
from moeut.model.routing import Selection
from moeut.model.sigma_moe import SigmaMoE, SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoE, SoftmaxMoEConfig
from moeut.model.surroundings import Inputs, Surroundings, Tokens
from moeut.model.switchhead import SwitchHeadAttention, SwitchHeadConfig

PLACES = torch.arange(3)
AROUND = Surroundings(rotary_phases(PLACES[None], 0, 10000.0, torch.float64), PLACES, None, True, Tokens())


class Spy(nn.Module):
    """A part that notes what it reads and returns a constant update."""

    def __init__(self, update: float) -> None:
        super().__init__()
        self.update = update

    def forward(self, inputs: Inputs, *others: object) -> tuple[Tensor, dict[str, Selection]]:
        self.scored, self.projected = inputs
        self.sources = others[0]
        return torch.full_like(self.scored, self.update), {}


def build(norm: NormName, hidden_dropout: float = 0.0) -> tuple[Layer, Spy, Spy]:
    attention, feed_forward = Spy(2.0), Spy(5.0)
    one, other = cast(Any, attention), cast(Any, feed_forward)
    layer = Layer(one, other, 4, norm=norm, layer_norm_eps=1e-5, hidden_dropout=hidden_dropout).double()
    with torch.no_grad():
        for part in (layer.attention_norm, layer.feed_forward_norm):
            part.weight.normal_()
            part.bias.normal_()
    return layer, attention, feed_forward


@pytest.mark.parametrize("norm", ["peri", "pre", "post"])
def test_norm_placement(norm: NormName):
    """What each part reads, x' being the stream between the two."""
    layer, attention, feed_forward = build(norm)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    y, _ = layer(x, AROUND, None)
    norm1, norm2 = layer.attention_norm, layer.feed_forward_norm
    between = norm1(x + 2) if norm == "post" else x + 2
    scored = {"peri": norm1(x), "pre": norm1(x), "post": x}[norm]
    projected = {"peri": x, "pre": norm1(x), "post": x}[norm]
    assert_close(attention.scored, scored)
    assert_close(attention.projected, projected)
    assert_close(feed_forward.scored, between if norm == "post" else norm2(between))
    assert_close(feed_forward.projected, norm2(between) if norm == "pre" else between)
    assert_close(y, norm2(between + 5) if norm == "post" else between + 5)


def test_keys_and_values_may_come_from_another_stream():
    """With halting; queries and residual come from the layer's own."""
    layer, attention, _ = build("peri")
    x, source = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    y, _ = layer(x, AROUND, None, source)
    assert isinstance(attention.sources, Inputs)
    assert_close(attention.sources, Inputs(layer.attention_norm(source), source))
    assert_close((attention.scored, y), (layer.attention_norm(x), x + 7))
    layer(x, AROUND, None)
    assert isinstance(attention.sources, Inputs)
    assert torch.equal(attention.sources.projected, x)


def test_dropout_reaches_both_branches():
    """Defect 4: the release skipped the feed-forward branch. Updates of 2 and 5 show which ones were kept."""
    layer, _, _ = build("peri", hidden_dropout=0.5)
    x = torch.zeros(40, 3, 4, dtype=torch.float64)
    kept_twice = {0.0, 4.0, 10.0, 14.0}
    assert set(layer(x, AROUND, None)[0].unique().tolist()) == kept_twice
    assert set(layer.eval()(x, AROUND, None)[0].unique().tolist()) == {7.0}


def test_parts_are_built_as_configured():
    initial = InitialWeights("paper", 2, post_norm=False)
    dense = DenseAttentionConfig(num_attention_heads=1, head_dim=4)
    switchhead = SwitchHeadConfig(num_attention_heads=1, head_dim=4, num_experts=2)
    sigma_moe = SigmaMoEConfig(num_experts=2, num_experts_per_tok=1)
    assert isinstance(build_attention(dense, 4, initial, "auto"), DenseAttention)
    assert isinstance(build_attention(switchhead, 4, initial, "auto"), SwitchHeadAttention)
    assert isinstance(build_feed_forward(MLPConfig(intermediate_size=4), 4, initial, "auto"), MLP)
    assert isinstance(build_feed_forward(sigma_moe, 4, initial, "auto"), SigmaMoE)
    attention_experts = AttentionExpertsConfig(num_attention_heads=1, head_dim=4, num_experts=2)
    softmax_moe = SoftmaxMoEConfig(num_experts=2, moe_intermediate_size=3)
    assert isinstance(build_attention(attention_experts, 4, initial, "auto"), AttentionExperts)
    assert isinstance(build_feed_forward(softmax_moe, 4, initial, "auto"), SoftmaxMoE)
