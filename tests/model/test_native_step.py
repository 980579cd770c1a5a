"""Is a step in C++ what the layers compute, and is it left alone where it is not, or where somebody would miss them?"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache

from moeut.experts import native
from moeut.generation.growing_cache import GrowingCache
from moeut.model.attention import DenseAttentionConfig
from moeut.model.cache import Cache
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

pytestmark = pytest.mark.usefixtures("native")

ATTENTION = SwitchHeadConfig(num_attention_heads=2, head_dim=6, num_experts=3)
FEED_FORWARD = SigmaMoEConfig(num_experts=7, num_experts_per_tok=3, moe_intermediate_size=5)
CONFIG = ModelConfig(
    vocab_size=50, hidden_size=13, num_hidden_layers=4, group_size=2, expert_backend="native", attention=ATTENTION,
    feed_forward=FEED_FORWARD,
)  # fmt: skip
ATTENTIONS = [
    ATTENTION,
    replace(ATTENTION, head_dim=7, partial_rotary_factor=1.0),
    replace(ATTENTION, num_attention_heads=1, num_experts=1, num_experts_per_tok=1, partial_rotary_factor=0.0),
    replace(ATTENTION, num_attention_heads=5, num_experts_per_tok=3),
]
FEED_FORWARDS = [
    FEED_FORWARD,
    replace(FEED_FORWARD, num_experts=1, num_experts_per_tok=1),
    replace(FEED_FORWARD, num_experts_per_tok=7, moe_intermediate_size=17),
]


def build(config: ModelConfig, dtype: torch.dtype = torch.float64) -> LanguageModel:
    model = LanguageModel(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was computed in C++, one entry a call: "step" for all layers, "head"."""
    made: list[str] = []

    def noted(name: str, *arguments: Any) -> None:
        made.append(name)
        native.call(name, *arguments)

    monkeypatch.setattr("moeut.model.native_step.call", noted)
    return made


def decode(model: LanguageModel, tokens: Tensor, cache: Cache, first: int, **settings: Any) -> Tensor:
    """The logits of a prompt and of one token after another."""
    with torch.no_grad():
        chunks = [tokens[:, :first], *tokens[:, first:].split(1, dim=1)]
        return torch.cat([model(chunk, cache=cache, **settings).logits for chunk in chunks], dim=1)


@pytest.mark.parametrize("attention", ATTENTIONS, ids=range(len(ATTENTIONS)))
@pytest.mark.parametrize("feed_forward", FEED_FORWARDS, ids=range(len(FEED_FORWARDS)))
@pytest.mark.parametrize("batch", [1, 3])
def test_steps_are_what_the_layers_compute(
    attention: SwitchHeadConfig, feed_forward: SigmaMoEConfig, batch: int, calls: list[str]
) -> None:
    model = build(replace(CONFIG, attention=attention, feed_forward=feed_forward))
    tokens = torch.randint(50, (batch, 9))
    with torch.no_grad():
        expected = model(tokens).logits
    assert calls == []
    for cache in (GrowingCache(4), DynamicCache()):
        assert_close(decode(model, tokens, cache, 4), expected, rtol=1e-10, atol=1e-12)
    assert calls == ["step", "head"] * 5 * 2


def test_the_first_token_and_places_of_ones_own(calls: list[str]) -> None:
    model = build(CONFIG)
    tokens, places = torch.randint(50, (3, 1)), torch.tensor([[5], [0], [1000]])
    with torch.no_grad():
        alone = model(tokens, position_ids=places).logits
        cached = model(tokens, position_ids=places, cache=GrowingCache(4)).logits
        hidden = model(tokens, position_ids=places, return_hidden_states=True).hidden_states
    assert calls == ["step", "head"] * 3
    with_gradients = model(tokens, position_ids=places, return_hidden_states=True)
    assert len(calls) == 6
    assert_close(alone, with_gradients.logits.detach(), rtol=1e-10, atol=1e-12)
    assert_close(cached, alone)
    assert hidden is not None
    assert with_gradients.hidden_states is not None
    assert len(hidden) == 5
    assert_close(torch.cat(hidden), torch.cat(with_gradients.hidden_states).detach(), rtol=1e-10, atol=1e-12)
    with torch.no_grad():  # rotated by places that differ, to keys that do not
        cache, later = GrowingCache(4), torch.tensor([[9], [1], [1001]])
        model(tokens, position_ids=places, cache=cache)
        stepped = model(tokens, position_ids=later, cache=cache).logits
        both = model(tokens.expand(3, 2), position_ids=torch.cat([places, later], dim=1)).logits
    assert_close(stepped, both[:, 1:], rtol=1e-10, atol=1e-12)


def test_two_threads_and_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(replace(CONFIG, hidden_size=40))
    tokens = torch.randint(50, (2, 6))
    expected = decode(model, tokens, GrowingCache(4), 3)
    monkeypatch.setattr("moeut.model.native_step.shares_of", lambda macs: 3)
    for cache in (GrowingCache, lambda num_slots: DynamicCache()):
        shared = decode(model, tokens, cache(4), 3)
        assert_close(shared, expected)
        assert torch.equal(decode(model, tokens, cache(4), 3), shared)
    assert_close(decode(model.float(), tokens, GrowingCache(4), 3).double(), expected, rtol=1e-3, atol=1e-3)


class BrokenCache(DynamicCache):
    """A cache whose slot 2 takes nothing."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if layer_idx == 2:
            raise OSError("no memory is left on the disk")
        assert layer_idx < 2, "slots after one that failed are left alone"
        return super().update(key_states, value_states, layer_idx)


def test_what_a_cache_raises_is_raised() -> None:
    with torch.no_grad(), pytest.raises(OSError, match="no memory is left on the disk"):
        build(CONFIG)(torch.tensor([[1]]), cache=BrokenCache())


@pytest.mark.parametrize("kind", [GrowingCache, lambda num_slots: DynamicCache()], ids=["growing", "dynamic"])
def test_a_cache_of_other_sequences_is_refused(kind: Any) -> None:
    model, cache = build(CONFIG), kind(4)
    with torch.no_grad():
        model(torch.tensor([[1]]), cache=cache)
        with pytest.raises((ValueError, RuntimeError), match=r"cache: keys|Sizes of tensors must match"):
            model(torch.tensor([[1], [2]]), cache=cache)
        with pytest.raises(ValueError, match=r"cache: .*torch.float64, cannot follow on from .*torch.float32"):
            model.float()(torch.tensor([[1]]), cache=cache)


@pytest.mark.parametrize("where", ["router.weight", "up_experts"])
def test_nan_is_not_hidden(where: str) -> None:
    model = build(CONFIG)
    layer = model.stack.layers[0]
    with torch.no_grad():
        part = layer.get_parameter(f"feed_forward.{where}")
        part.view(-1)[: part[0].numel()] = torch.nan  # of one expert
        tokens = torch.arange(20)[:, None]
        ours, theirs = model(tokens).logits.isnan(), model(tokens.expand(20, 2)).logits[:, :1].isnan()
    assert ours.any()
    assert torch.equal(ours, theirs)


SOFTMAX = replace(FEED_FORWARD, gate="softmax")
OTHERS = {
    "dense heads": replace(CONFIG, attention=DenseAttentionConfig(num_attention_heads=2, head_dim=6)),
    "pre-layernorm": replace(CONFIG, norm="pre"),
    "softmax": replace(CONFIG, feed_forward=SOFTMAX),
    "router bias": replace(CONFIG, attention=replace(ATTENTION, router_bias=True)),
    "expert bias": replace(CONFIG, feed_forward=replace(FEED_FORWARD, expert_bias=True)),
    "output bias": replace(CONFIG, feed_forward=replace(FEED_FORWARD, output_bias=True)),
    "backend": replace(CONFIG, expert_backend="cpu"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_are_left_alone(name: str, calls: list[str]) -> None:
    with torch.no_grad():
        build(OTHERS[name])(torch.tensor([[1]]))
    assert "step" not in calls


class Adapter(nn.Linear):
    """What an adapter puts in the place of a linear map."""


def test_layers_that_somebody_would_miss_are_left_alone(calls: list[str]) -> None:
    model, token = build(CONFIG), torch.tensor([[1]])
    layer: Any = model.stack.layers[0]
    router, attention = layer.feed_forward.router, layer.attention
    with torch.no_grad():
        assert model(token, return_routing=True).routing
        for hook in (router.register_forward_hook, router.register_forward_pre_hook):
            handle = hook(lambda *_: None)
            model(token)
            handle.remove()
        router.forward = router.forward
        model(token)
        del router.forward
        router.train()
        model(token)
        router.eval()
        dense, attention.q_proj = attention.q_proj, Adapter(13, 12, bias=False).double()
        model(token)
        attention.q_proj = dense
        experts = attention.v_experts
        attention.v_experts = nn.Parameter(experts.mT.contiguous().mT)
        model(token)
        attention.v_experts = experts
        config = router.config  # of one layer of two: they are no longer alike
        router.config = replace(config, num_experts_per_tok=2)
        model(token)
        router.config = config
        assert "step" not in calls
        assert "head" in calls
        calls.clear()
        model.lm_head.register_forward_hook(lambda *_: None)
        model(token)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(token)
    assert calls == ["step"]
    with torch.no_grad():
        build(CONFIG, torch.bfloat16)(token)
        model(token, attention_mask=torch.tensor([[True]]))
        assert calls == ["step"]
        model(token)
    assert calls == ["step"] * 2


def test_heads_that_are_no_norm_and_map_with_bias_are_left_alone(calls: list[str]) -> None:
    token = torch.tensor([[1]])
    with torch.no_grad():
        for config in (replace(CONFIG, norm="post"), replace(CONFIG, final_norm=False)):
            build(config)(token)
        model = build(CONFIG)
        model.lm_head = Adapter(13, 50).double()  # pyright: ignore[reportAttributeAccessIssue]
        model(token)
        assert "head" not in calls
        tied = build(replace(CONFIG, tie_word_embeddings=True))
        one, two = tied(token).logits, tied(token.expand(1, 2)).logits
    assert calls[-1] == "head"
    assert_close(one, two[:, :1], rtol=1e-10, atol=1e-12)


def test_a_compiled_graph_has_the_layers_themselves() -> None:
    model = build(CONFIG)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    token = torch.tensor([[1]])
    with torch.no_grad():
        assert_close(compiled(token).logits, model(token).logits)


def test_more_than_a_token_is_no_step(calls: list[str]) -> None:
    model = build(CONFIG)
    with torch.no_grad():
        several = model(torch.tensor([[1, 2]])).logits
        assert calls == []
        last = model(torch.tensor([[1, 2]]), logits_to_keep=1).logits
    assert calls == ["head"]
    assert_close(last, several[:, 1:], rtol=1e-10, atol=1e-12)
