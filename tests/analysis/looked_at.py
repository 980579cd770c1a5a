"""What do the tests of analysis look into? Tiny models with random weights, and batches of random tokens."""

from collections.abc import Iterator

import numpy as np
import torch

from moeut.analysis.recording import Batch
from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.halting import ActConfig
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

VOCAB_SIZE = 11

MOEUT = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=16,
    num_hidden_layers=6,
    group_size=2,
    attention=SwitchHeadConfig(num_attention_heads=2, head_dim=8, num_experts=3, num_experts_per_tok=2),
    feed_forward=SigmaMoEConfig(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=8),
)
DENSE = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=16,
    num_hidden_layers=2,
    group_size=2,
    norm="pre",
    attention=DenseAttentionConfig(num_attention_heads=2, head_dim=8),
    feed_forward=MLPConfig(intermediate_size=8),
)
SUT = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=16,
    num_hidden_layers=3,
    group_size=1,
    norm="post",
    attention=AttentionExpertsConfig(num_attention_heads=2, head_dim=4, num_experts=4),
    feed_forward=SoftmaxMoEConfig(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=8),
    halting=ActConfig(threshold=0.4),
)


def build(config: ModelConfig) -> LanguageModel:
    """A model whose halting gates are not all alike."""
    torch.manual_seed(0)
    model = LanguageModel(config)
    for name, parameter in model.named_parameters():
        if "gate_proj" in name:
            torch.nn.init.normal_(parameter)
    return model


def batches(rows: int = 3, length: int = 9, number: int = 2, seed: int = 0) -> Iterator[Batch]:
    """Batches of tokens that are no `evaluation_batches`, but look alike."""
    generator = np.random.default_rng(seed)
    for _ in range(number):
        tokens = generator.integers(0, VOCAB_SIZE, (rows, length + 1))
        yield tokens[:, :-1].copy(), tokens[:, 1:].copy()
