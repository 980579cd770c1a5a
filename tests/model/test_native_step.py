"""Is a step in C++ what the layers compute, and is it left alone where it is not, or where somebody would miss them?"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache

from moeut.generation.growing_cache import GrowingCache
from moeut.model.attention import DenseAttentionConfig
from moeut.model.cache import Cache
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.native_step import LayerStep, steps_of
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
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each layer that was taken in C++."""
    taken: list[int] = []
    take = LayerStep.__call__

    def counted(self: LayerStep, *arguments: Any) -> Tensor:
        taken.append(1)
        return take(self, *arguments)

    monkeypatch.setattr(LayerStep, "__call__", counted)
    return taken


def decode(model: LanguageModel, tokens: Tensor, cache: Cache, first: int, **settings: Any) -> Tensor:
    """The logits of a prompt and of one token after another."""
    with torch.no_grad():
        chunks = [tokens[:, :first], *tokens[:, first:].split(1, dim=1)]
        return torch.cat([model(chunk, cache=cache, **settings).logits for chunk in chunks], dim=1)


@pytest.mark.parametrize("attention", ATTENTIONS, ids=range(len(ATTENTIONS)))
@pytest.mark.parametrize("feed_forward", FEED_FORWARDS, ids=range(len(FEED_FORWARDS)))
@pytest.mark.parametrize("batch", [1, 3])
def test_steps_are_what_the_layers_compute(
    attention: SwitchHeadConfig, feed_forward: SigmaMoEConfig, batch: int, steps: list[int]
) -> None:
    model = build(replace(CONFIG, attention=attention, feed_forward=feed_forward))
    tokens = torch.randint(50, (batch, 9))
    with torch.no_grad():
        expected = model(tokens).logits
    assert steps == []
    for cache in (GrowingCache(4), DynamicCache()):
        assert_close(decode(model, tokens, cache, 4), expected, rtol=1e-10, atol=1e-12)
    assert len(steps) == 2 * 5 * 4


def test_the_first_token_and_places_of_ones_own(steps: list[int]) -> None:
    model = build(CONFIG)
    tokens, places = torch.randint(50, (3, 1)), torch.tensor([[5], [0], [1000]])
    with torch.no_grad():
        alone = model(tokens, position_ids=places).logits
        cached = model(tokens, position_ids=places, cache=GrowingCache(4)).logits
        hidden = model(tokens, return_hidden_states=True).hidden_states
    assert len(steps) == 12
    with_gradients = model(tokens, position_ids=places)
    assert len(steps) == 12
    assert_close(alone, with_gradients.logits.detach(), rtol=1e-10, atol=1e-12)
    assert_close(cached, alone)
    assert hidden is not None
    assert len(hidden) == 5
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
    shared = decode(model, tokens, GrowingCache(4), 3)
    assert_close(shared, expected)
    assert torch.equal(decode(model, tokens, GrowingCache(4), 3), shared)
    assert_close(decode(model.float(), tokens, GrowingCache(4), 3).double(), expected, rtol=1e-3, atol=1e-3)


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
def test_other_layers_are_left_alone(name: str, steps: list[int]) -> None:
    with torch.no_grad():
        build(OTHERS[name])(torch.tensor([[1]]))
    assert steps == []


class Adapter(nn.Linear):
    """What an adapter puts in the place of a linear map."""


def test_layers_that_somebody_would_miss_are_left_alone(steps: list[int]) -> None:
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
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(token)
    with torch.no_grad():
        assert steps == []
        build(CONFIG, torch.bfloat16)(token)
        model(token, attention_mask=torch.tensor([[True]]))
        assert steps == []
        model(token)
    assert len(steps) == 4


def test_a_compiled_graph_has_the_layers_themselves() -> None:
    model = build(CONFIG)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    token = torch.tensor([[1]])
    with torch.no_grad():
        assert_close(compiled(token).logits, model(token).logits)


def test_more_than_a_token_is_no_step() -> None:
    model = build(CONFIG)
    x = torch.randn(1, 2, 13, dtype=torch.float64)
    around = model.stack._surroundings(x, None, 0, True, None)
    with torch.no_grad():
        assert steps_of(model.stack.layers, "native", x, around) is None
        one = model.stack._surroundings(x[:, :1], None, 0, True, None)
        assert steps_of(model.stack.layers, "native", x[:, :1], one) is not None
        assert steps_of(model.stack.layers, "native", x[:, :1], around._replace(mask=torch.ones(1, 1, 1, 1))) is None
    assert steps_of(model.stack.layers, "native", x[:, :1], one) is None
