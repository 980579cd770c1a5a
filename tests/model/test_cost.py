"""Does a configuration know its cost without being built?

`contract.described_equals_built` compares every variant with the built model.
"""

import dataclasses

import pytest
import torch

from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.cost import cost
from moeut.model.feedforward import MLPConfig
from moeut.model.halting import ActConfig
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

MOEUT = ModelConfig(
    vocab_size=10,
    hidden_size=4,
    num_hidden_layers=6,
    group_size=2,
    attention=SwitchHeadConfig(num_attention_heads=2, head_dim=3, num_experts=5, num_experts_per_tok=2),
    feed_forward=SigmaMoEConfig(num_experts=7, num_experts_per_tok=3, moe_intermediate_size=8),
)


def test_moeut_by_hand():
    """A layer: queries and keys 2·4·6, routers 2·2·5·4, value and output experts 2·(2·5)·4·3, σ-MoE 7·2·4·8 + 7·4."""
    found = cost(MOEUT, context_length=9)
    everything = 48 + 80 + 240 + 448 + 28 + 4 * 4
    active = 48 + 80 + 96 + 192 + 28 + 4 * 4
    embedding = 2 * 10 * 4 + 10
    assert found.parameters == 2 * everything + embedding + 8
    assert found.active_parameters == 2 * active + embedding + 8
    assert found.embedding_parameters == embedding
    assert found.context_length == 9
    # Weighted sums: of values 2·2·3 and outputs 2·2·4 over two heads' two experts, of σ-MoE's three 3·4.
    sums = 6 * (12 + 16 + 12)
    assert found.reduction_macs_per_token == sums
    assert found.macs_per_token == 6 * (48 + 80 + 96 + 192 + 28 + 2 * 6 * 9) + 40 + sums
    assert found.training_macs_per_token == 3 * found.macs_per_token


def test_sut_with_act_by_hand():
    """Router 16 + 4 + 4E; attention experts 2·A·4·6, keys and values 48, positions 2·3·9; MoE 2·E·4·8 + E·(8 + 4)."""
    config = dataclasses.replace(
        MOEUT,
        group_size=1,
        attention=AttentionExpertsConfig(num_attention_heads=2, head_dim=3, num_experts=5, max_relative_positions=4),
        feed_forward=SoftmaxMoEConfig(num_experts=7, moe_intermediate_size=8),
        halting=ActConfig(),
    )
    found = cost(config, context_length=9)
    gate = 16 + 4 + 8
    everything = (20 + 20) + 240 + 48 + 54 + (20 + 28) + 448 + 84 + 16 + gate
    assert found.parameters == everything + 90 + 8
    assert found.active_parameters == found.parameters - 3 * 48 - 5 * (64 + 12)
    products = (16 + 20) + 2 * 48 + 48 + 2 * 54 + (16 + 28) + 2 * 64 + 2 * (2 * 6 * 9)
    assert found.reduction_macs_per_token == 6 * (2 * 4 + 2 * 4)
    assert found.macs_per_token == 6 * products + 5 * 24 + 40 + found.reduction_macs_per_token


def test_dense_by_hand():
    """One layer: attention 4·4·6, MLP 2·4·20 and biases 24, norms 16. Everything is active."""
    config = dataclasses.replace(
        MOEUT,
        attention=DenseAttentionConfig(num_attention_heads=2, head_dim=3),
        feed_forward=MLPConfig(intermediate_size=20),
    )
    found = cost(config, context_length=9)
    assert found.parameters == found.active_parameters == 2 * (96 + 184 + 16) + 90 + 8
    assert found.macs_per_token == 6 * (96 + 160 + 2 * 6 * 9) + 40
    assert found.reduction_macs_per_token == 0


def test_repeating_costs_computation_and_no_parameters():
    shallow, deep = cost(MOEUT), cost(dataclasses.replace(MOEUT, num_hidden_layers=12))
    assert deep.parameters == shallow.parameters
    assert deep.active_parameters == shallow.active_parameters
    assert deep.macs_per_token - 40 == 2 * (shallow.macs_per_token - 40)


def test_active_parameters_are_those_a_token_meets():
    """One token through an unshared model: experts it did not choose are not counted, and get no gradient."""
    config = dataclasses.replace(MOEUT, group_size=6)
    model = LanguageModel(config)
    output = model(torch.tensor([[3]]), return_routing=True)
    assert output.routing is not None
    attention, feed_forward = config.attention, config.feed_forward
    assert isinstance(attention, SwitchHeadConfig)
    assert isinstance(feed_forward, SigmaMoEConfig)
    idle = 0
    for selected in output.routing:
        chosen = {name: selection.experts[0, 0].numel() for name, selection in selected.items()}
        idle += (7 - chosen["feed_forward"]) * 2 * 4 * 8
        idle += (2 * 5 - chosen["attention_value"]) * 4 * 3 + (2 * 5 - chosen["attention_output"]) * 3 * 4
    assert cost(config).active_parameters == sum(parameter.numel() for parameter in model.parameters()) - idle


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("norm", ["peri", "pre", "post"])
def test_parameters_of_ends(tied: bool, norm: str):
    """The head's own weights and the final norm are there only where the model has them."""
    config = dataclasses.replace(MOEUT, tie_word_embeddings=tied, norm=norm)
    model = LanguageModel(config)
    ends = sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("stack."))
    found = cost(config)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.embedding_parameters == ends - (0 if norm == "post" else 8)
