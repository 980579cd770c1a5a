"""Is every token scored exactly once, whatever the batches, and is the model left as it was?"""

import math

import numpy as np
import pytest
import torch
from examined import oracle, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from moeut.data.tokens import TokenStream
from moeut.evaluation.perplexity import block_sums, evaluate, joined, perplexity, summarise
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig


def build_model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        ModelConfig(
            vocab_size=13,
            hidden_size=8,
            num_hidden_layers=2,
            group_size=1,
            hidden_dropout=0.5,
            attention=SwitchHeadConfig(num_attention_heads=2, head_dim=4, num_experts=3),
            feed_forward=SigmaMoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=4),
        )
    )


def build_stream(tokens: int, num_bytes: int = 100) -> TokenStream:
    ids = np.random.default_rng(0).integers(0, 13, tokens).astype(np.uint16)
    return TokenStream([ids], np.array([[1, num_bytes]], np.int64))


def reference(model: torch.nn.Module, stream: TokenStream, context_length: int) -> list[float]:
    """−ln p of each token but the first, one block at a time, one position at a time."""
    ids = torch.from_numpy(stream.read(0, len(stream)).astype(np.int64))
    losses = []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, context_length):
            block = ids[start : start + context_length + 1]
            probabilities = model(block[None, :-1]).logits[0].double().softmax(-1)
            losses += [-math.log(p[token]) for p, token in zip(probabilities, block[1:], strict=True)]
    return losses


@settings(deadline=None, max_examples=12)
@given(tokens=st.integers(2, 40), context_length=st.integers(1, 12), batch_size=st.integers(1, 9))
def test_every_token_counts_once_whatever_the_batches(tokens, context_length, batch_size):
    model, stream = build_model(), build_stream(tokens)
    result = evaluate(model, stream, context_length, batch_size)
    losses = reference(model.eval(), stream, context_length)
    assert result.tokens == len(losses) == tokens - 1
    assert result.cross_entropy == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.cross_entropy))
    assert result.bits_per_byte == pytest.approx(math.fsum(losses) / math.log(2) / 100, rel=1e-5)


@settings(deadline=None, max_examples=12)
@given(
    tokens=st.integers(2, 30), context_length=st.integers(1, 8), stride=st.integers(1, 8), batch_size=st.integers(1, 4)
)
def test_a_sliding_window(tokens, context_length, stride, batch_size):
    """Each token from all that its window holds before it: up to context_length, in strides."""
    stride = min(stride, context_length)
    model, stream = build_model().eval(), build_stream(tokens)
    ids = torch.from_numpy(stream.read(0, tokens).astype(np.int64))
    nats = 0.0
    for token in range(1, tokens):
        start = max(0, -(-(token - context_length) // stride)) * stride
        with torch.no_grad():
            log_probs = model(ids[None, start:token]).logits[0, -1].double().log_softmax(-1)
        nats -= float(log_probs[ids[token]])
    result = evaluate(model, stream, context_length, batch_size, stride=stride)
    assert result.tokens == tokens - 1
    assert result.cross_entropy == pytest.approx(nats / (tokens - 1), rel=1e-5)


def test_a_model_that_knows_the_text_has_perplexity_one():
    stream = build_stream(30)
    ids = stream.read(0, 30).tolist()
    blocks = [ids[start : start + 8] for start in range(0, 29, 7)]
    result = evaluate(oracle(blocks, 13), stream, 7, 3)
    assert (result.cross_entropy, result.perplexity, result.bits_per_byte, result.standard_error) == (0, 1, 0, 0)
    result = evaluate(uniform(13), stream, 7, 3)
    assert result.perplexity == pytest.approx(13)
    assert result.standard_error == pytest.approx(0, abs=1e-6)


def test_any_model_with_logits():
    """Whatever maps ids to logits is scored by the same code."""
    stream = build_stream(40)
    config = LlamaConfig(
        vocab_size=13, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=None, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    rival = LlamaForCausalLM(config).eval()
    result = evaluate(rival, stream, 9, 2)
    losses = reference(rival, stream, 9)
    assert result.cross_entropy == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)


def test_texts_together_are_one_text():
    model, streams = build_model(), [build_stream(30, 50), build_stream(23, 7)]
    whole = joined(block_sums(model, stream, 7, 2) for stream in streams)
    assert whole.num_bytes == 57
    result = summarise(*whole)
    assert result.tokens == 29 + 22
    each = [evaluate(model, stream, 7, 2) for stream in streams]
    nats = sum(one.cross_entropy * one.tokens for one in each)
    assert result.cross_entropy == pytest.approx(nats / 51)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 57)


def test_progress_ends_with_all_tokens():
    calls = []
    evaluate(build_model(), build_stream(30), 7, 2, lambda *call: calls.append(call))
    assert calls == [("evaluate", 14, 29), ("evaluate", 28, 29), ("evaluate", 29, 29)]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = build_model().train(training)
    state = torch.get_rng_state()
    evaluate(model, build_stream(30), 7, 2)
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(IndexError):
        evaluate(model, TokenStream([np.array([0, 99, 0])], np.array([[1, 1]])), 7, 2)
    assert model.training is training
    model(torch.arange(5)[None], torch.arange(5)[None]).loss.backward()
    assert model.embedding.weight.grad is not None


def test_nothing_to_score():
    with pytest.raises(ValueError, match="no text to evaluate"):
        evaluate(build_model(), build_stream(1), 7, 2)


def test_summary_by_hand():
    """Three blocks of 2, 2 and 1 tokens that cost 4, 2 and 3 nats: 9/5 a token; they stray by 0.4, −1.6 and 1.2."""
    result = summarise([4.0, 2.0, 3.0], [2, 2, 1], 6)
    assert result.cross_entropy == pytest.approx(1.8)
    assert result.bits_per_byte == pytest.approx(9 / math.log(2) / 6)
    assert result.standard_error == pytest.approx(math.sqrt(3 / 2 * (0.16 + 2.56 + 1.44)) / 5)
    assert (result.tokens, result.bytes) == (5, 6)
    assert summarise([4.0], [2], 6).standard_error == math.inf


def test_standard_error_is_that_of_independent_blocks():
    """With blocks that are independent, it is the deviation of the mean over many repetitions."""
    generator = np.random.default_rng(0)
    draws = generator.exponential(2.0, (2000, 64))
    results = [summarise(row.tolist(), [1] * 64, 1) for row in draws]
    spread = np.std([result.cross_entropy for result in results])
    assert np.mean([result.standard_error for result in results]) == pytest.approx(spread, rel=0.05)


def test_perplexity_too_large_for_a_float():
    assert perplexity(1.0) == math.e
    assert perplexity(1000.0) == math.inf
