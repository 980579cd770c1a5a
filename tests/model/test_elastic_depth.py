"""Does a model at another depth have the same weights, a cache of that depth, and does it compute what it should?"""

from dataclasses import replace

import pytest
import torch
from steps import build, in_chunks, tokens
from torch.testing import assert_close
from transformers import DynamicCache

from moeut.hf.modeling import MoEUTForCausalLM
from moeut.model.elastic_depth import with_repeats
from moeut.model.language_model import ModelConfig
from moeut.presets import preset

SHARED = ["tiny", "moeut-gated-tiny", "moeut-post-tiny", "moeut-aabb-tiny", "ut-tiny", "ut-act-tiny", "sut-tiny",
          "sut-without-act-tiny"]  # fmt: skip
UNSHARED = ["dense-tiny", "sigma-moe-tiny", "sigma-moe-plain-tiny", "switchhead-tiny"]


def small(name: str) -> ModelConfig:
    return replace(preset(name), hidden_size=16, vocab_size=16)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("num_repeats", [1, 3])
def test_the_same_parameters_at_another_depth(name: str, num_repeats: int):
    model = build(small(name)).eval()
    other = with_repeats(model, num_repeats)
    assert other.config.num_hidden_layers == num_repeats * model.config.group_size
    assert not other.training
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(theirs[key] is parameter for key, parameter in ours.items())
    inputs, _ = tokens(model.config, batch=2, length=5)
    found = other(inputs).logits
    fresh = build(small(name).with_repeats(num_repeats)).eval()
    fresh.load_state_dict(model.state_dict())
    assert_close(found, fresh(inputs).logits, rtol=0, atol=0)
    assert not torch.allclose(found, model(inputs).logits)
    assert_close(in_chunks(other, inputs, [2, 3]), found, rtol=1e-9, atol=1e-12)


def test_as_trained_is_the_model_itself():
    model = build(small("tiny")).eval()
    inputs, _ = tokens(model.config)
    assert_close(with_repeats(model, model.config.num_repeats)(inputs).logits, model(inputs).logits, rtol=0, atol=0)


def test_tied_weights_stay_tied():
    other = with_repeats(build(replace(small("tiny"), tie_word_embeddings=True)), 3)
    assert other.lm_head.weight is other.embedding.weight


@pytest.mark.parametrize("name", ["tiny", "sut-tiny"])
def test_generation_has_a_cache_of_that_depth(name: str):
    wrapped = MoEUTForCausalLM.wrap(with_repeats(build(small(name)).eval(), 3))
    inputs, _ = tokens(wrapped.model.config, batch=1, length=4)
    cache = DynamicCache(config=wrapped.config)
    with torch.no_grad():
        wrapped(inputs, past_key_values=cache)
    assert len(cache.layers) == 3 * wrapped.model.config.group_size
    made = [
        wrapped.generate(inputs, max_new_tokens=4, do_sample=False, use_cache=use_cache)  # pyright: ignore
        for use_cache in (True, False)
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize("name", UNSHARED)
def test_a_model_that_repeats_nothing_is_refused(name: str):
    with pytest.raises(ValueError, match="repeats: this model repeats none of its 4 layers, so it has one depth only"):
        with_repeats(build(small(name)), 2)


@pytest.mark.parametrize("number", [0, -1])
def test_less_than_once_is_refused(number: int):
    with pytest.raises(ValueError, match=f"repeats: a layer cannot run {number} times; say 1 or more"):
        with_repeats(build(small("tiny")), number)
