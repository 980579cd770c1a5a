"""Do tokens become a loss as stated? Embedding, final norm, head, cross entropy, and a cache of any chunks."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import in_chunks
from torch import nn
from torch.nn.functional import layer_norm, linear
from torch.testing import assert_close
from transformers import DynamicCache

from moeut.model.language_model import LanguageModel, ModelConfig, mean_cross_entropy
from moeut.model.layer import NormName
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

CONFIG = ModelConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=4,
    group_size=2,
    attention=SwitchHeadConfig(num_attention_heads=2, head_dim=4, num_experts=3),
    feed_forward=SigmaMoEConfig(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=4),
)


def build(config: ModelConfig = CONFIG) -> LanguageModel:
    return LanguageModel(config).double()


@pytest.mark.parametrize("norm", ["peri", "pre", "post"])
def test_embedding_norm_and_head(norm: NormName):
    """Post-layernorm models scale and normalise the embedding, and have no final norm."""
    model = build(dataclasses.replace(CONFIG, norm=norm)).eval()
    inputs = torch.randint(11, (2, 5))
    vectors = model.embedding.weight[inputs]
    if norm == "post":
        vectors = layer_norm(vectors * math.sqrt(8), (8,), eps=1e-5)
    stream = model.stack(vectors).hidden_states
    if isinstance(model.norm, nn.LayerNorm):
        stream = layer_norm(stream, (8,), model.norm.weight, model.norm.bias, eps=1e-5)
    assert_close(model(inputs).logits, linear(stream, model.lm_head.weight, model.lm_head.bias))
    assert any(name.startswith("norm.") for name in model.state_dict()) == (norm != "post")


def test_cross_entropy_leaves_ignored_targets_out():
    logits = torch.randn(2, 3, 11, dtype=torch.float64)
    targets = torch.tensor([[1, -100, 2], [-100, -100, 10]])
    expected = -sum(logits[b, t].log_softmax(-1)[targets[b, t]] for b, t in ((0, 0), (0, 2), (1, 2))) / 3
    assert_close(mean_cross_entropy(logits, targets), expected)
    assert mean_cross_entropy(logits, torch.full_like(targets, -100)).item() == 0


def test_cross_entropy_of_low_precision_logits_is_taken_in_float32():
    logits = torch.randn(2, 3, 11).bfloat16()
    targets = torch.randint(11, (2, 3))
    assert torch.equal(mean_cross_entropy(logits, targets), mean_cross_entropy(logits.float(), targets))
    assert mean_cross_entropy(logits, targets).dtype == torch.float32


def test_without_targets_there_is_no_loss():
    output = build()(torch.randint(11, (2, 5)))
    assert output.loss is None
    assert output.cross_entropy is None


@pytest.mark.parametrize("kept", [1, 3, 5, 9])
def test_last_logits_only(kept: int):
    model = build().eval()
    inputs = torch.randint(11, (2, 5))
    assert_close(model(inputs, logits_to_keep=kept).logits, model(inputs).logits[:, -kept:])


def test_tied_head_shares_the_embedding_and_its_gradient():
    model = build(dataclasses.replace(CONFIG, tie_word_embeddings=True))
    assert model.lm_head.weight is model.embedding.weight
    assert model.lm_head.bias.shape == (11,)
    inputs = torch.zeros(1, 4, dtype=torch.long)
    model(inputs, inputs).loss.backward()
    assert model.embedding.weight.grad is not None
    assert (model.embedding.weight.grad != 0).any(dim=-1).all(), "rows that were no input get the head's gradient"
    assert build().lm_head.weight.shape == (11, 8)


@given(cuts=st.sets(st.integers(1, 9)))
@settings(deadline=None, max_examples=15)
def test_any_chunks_through_the_cache_equal_the_full_forward(cuts: set[int]):
    """Defect 1: every chunk after the first was rotated as if it began at position 0."""
    torch.manual_seed(0)
    model = build().eval()
    inputs = torch.randint(11, (2, 10))
    assert_close(in_chunks(model, inputs, sorted(cuts)), model(inputs).logits, rtol=1e-9, atol=1e-12)


def test_the_cache_is_handed_back_and_unused_unless_given():
    model, cache = build().eval(), DynamicCache()
    inputs = torch.randint(11, (1, 4))
    assert model(inputs, cache=cache).cache is cache
    assert cache.get_seq_length() == 4
    assert model(inputs).cache is None


def test_lengths_and_dtypes_may_change_from_call_to_call():
    """Defect 17: a table of rotations was kept from one forward to the next."""
    model = build().eval()
    inputs = torch.randint(11, (1, 9))
    before = model(inputs[:, :4]).logits
    model(inputs)
    model.bfloat16()(inputs)
    fresh = build().eval()
    fresh.load_state_dict(model.state_dict())
    assert_close(model.double()(inputs).logits, fresh(inputs).logits)
    assert before.shape == (1, 4, 11)
    assert not list(model.buffers())
