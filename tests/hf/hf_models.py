"""Models for the tests of the door to transformers: tiny, in float64, and not in love with one token."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_variants import VARIANTS as TABLE
from torch import Tensor

from moeut.data.tokenizer import byte_tokenizer, save_tokenizer
from moeut.hf import MoEUTForCausalLM
from moeut.model.attention import DenseAttentionConfig
from moeut.model.folder import save_model
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.variants import dense
from moeut.variants import moeut as moeut_config

MOEUT = moeut_config(
    hidden_size=16, num_hidden_layers=4, group_size=2, num_attention_heads=2, head_dim=6, attention_experts=3,
    experts=6, experts_per_tok=2, expert_size=4, vocab_size=40,
)  # fmt: skip
GATED = replace(MOEUT, attention=DenseAttentionConfig(num_attention_heads=2, head_dim=6, output_gate=True))
DENSE = dense(
    hidden_size=16, num_hidden_layers=3, num_attention_heads=2, head_dim=6, intermediate_size=20, vocab_size=40
)
SUT = replace(TABLE["sut"], vocab_size=40)
ACT = replace(TABLE["universal transformer with act"], vocab_size=40)
CONFIGS = {"moeut": MOEUT, "gated": GATED, "dense": DENSE, "sut": SUT, "act": ACT}
VARIANTS = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
"""SUT and the Universal Transformer with ACT halt."""


def build(config: ModelConfig) -> Any:
    """A float64 model in evaluation mode whose weights are not those of a fresh one."""
    model = LanguageModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return MoEUTForCausalLM.wrap(model)


def prompts(batch: int = 2, length: int = 7) -> Tensor:
    """Random tokens without 0, which pads."""
    return torch.randint(1, 40, (batch, length))


def left_padded(alone: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts [1, T] of several lengths as one batch, and its mask."""
    longest = max(ids.shape[1] for ids in alone)
    padded = torch.cat([torch.nn.functional.pad(ids, (longest - ids.shape[1], 0)) for ids in alone])
    return padded, (padded != 0).long()


def generated(model: Any, ids: Tensor, mask: Tensor | None = None, **settings: Any) -> Tensor:
    """What `generate` adds to a prompt, greedily unless it is said, nine tokens that no end of a text cuts short."""
    greedy = {"do_sample": False, "max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, **{**greedy, **settings})[:, ids.shape[1] :]


def byte_model(folder: Path) -> LanguageModel:
    """A float32 MoEUT for bytes, saved with its tokenizer."""
    folder.mkdir()
    model = LanguageModel(replace(MOEUT, vocab_size=257)).eval()
    save_tokenizer(byte_tokenizer(), folder)
    save_model(model, folder, context_length=32)
    return model
