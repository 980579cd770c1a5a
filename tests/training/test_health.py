"""Are the experts that nobody chooses found, whatever the micro-batches, and also across a stop?"""

import math
from dataclasses import replace

import pytest
import torch
from tiny_run import VOCAB_SIZE, tiny_model

from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.halting import ActConfig
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.routing import Router
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.softmax_routing import SoftmaxRouter
from moeut.training.distributed import Ranks
from moeut.training.health import RouteCounts, router_health, router_sizes

DENSE = replace(
    tiny_model(),
    attention=DenseAttentionConfig(num_attention_heads=2, head_dim=8),
    feed_forward=MLPConfig(intermediate_size=8),
)


SUT = replace(
    tiny_model(),
    norm="post",
    attention=AttentionExpertsConfig(num_attention_heads=2, head_dim=4, num_experts=5),
    feed_forward=SoftmaxMoEConfig(num_experts=7, moe_intermediate_size=8),
    halting=ActConfig(),
)


@pytest.mark.parametrize("config", [tiny_model(), DENSE, SUT], ids=["moeut", "dense", "sut"])
def test_routers_are_those_of_the_model(config: ModelConfig):
    """Names and sizes that follow from the configuration are those of a built layer's routers and their selections."""
    tokens = torch.randint(VOCAB_SIZE, (2, 8))
    model = LanguageModel(config)
    experts = {
        router.name: router.config.num_experts
        for router in model.stack.layers[0].modules()
        if isinstance(router, Router | SoftmaxRouter)
    }
    for selections in model(tokens, tokens, return_routing=True).routing:
        found = {name: (selection.experts.shape[2], experts[name]) for name, selection in selections.items()}
        assert found == router_sizes(config)


def test_halted_tokens_choose_nobody():
    """A token that has halted adds to the count of no expert."""
    config = replace(SUT, halting=ActConfig(threshold=0.4))
    counts, model = RouteCounts(config, Ranks()), LanguageModel(config)
    # Every gate is at one half: before the second layer, less than 1 - 0.4 of every token goes on.
    counts.add(model(torch.randint(VOCAB_SIZE, (2, 8)), return_routing=True).routing)
    chosen = counts._by_router(torch.tensor(counts.state()))["0.feed_forward"]
    assert chosen[0, :-1].sum() == 2 * 8 * 2, "the first layer's choices"
    assert chosen[0, -1] == 2 * 8 * 2, "nobody, at the layer's second application"


def test_every_choice_counts_once():
    config = tiny_model()
    model, tokens = LanguageModel(config), torch.randint(VOCAB_SIZE, (5, 8))
    counts, parts = (RouteCounts(config, Ranks()) for _ in range(2))
    routing = model(tokens, tokens, return_routing=True).routing
    counts.add(routing)
    for half in (tokens[:2], tokens[2:]):
        parts.add(model(half, half, return_routing=True).routing)
    assert counts.state() == parts.state()
    expected = torch.zeros(6, dtype=torch.long)
    for depth in (1, 3):
        expected += routing[depth]["feed_forward"].experts.flatten().bincount(minlength=6)
    health = counts.health()
    assert set(health) == {
        f"{layer}.{name}" for layer in (0, 1) for name in ("attention_value", "attention_output", "feed_forward")
    }
    assert health["1.feed_forward"].dead_experts == (expected == 0).sum()
    shares = (expected / expected.sum()).tolist()
    entropy = -sum(share * math.log(share) for share in shares if share) / math.log(6)
    assert health["1.feed_forward"].usage_entropy == pytest.approx(entropy)


def test_counting_goes_on_after_a_stop():
    config = tiny_model()
    model = LanguageModel(config)
    whole, first = (RouteCounts(config, Ranks()) for _ in range(2))
    for part in range(3):
        tokens = torch.randint(VOCAB_SIZE, (2, 8))
        routing = model(tokens, tokens, return_routing=True).routing
        whole.add(routing)
        first.add(routing)
        second = RouteCounts(config, Ranks())
        second.load(first.state())
        first = second
        assert first.health() == whole.health(), part
    whole.load([])
    assert sum(whole.state()) == 0


@pytest.mark.parametrize(
    ("counts", "dead", "entropy"),
    [
        ([[3, 3, 3, 0]], 0, 1.0),
        ([[9, 0, 0, 5]], 2, 0.0),
        ([[4, 4, 0, 0]], 1, math.log(2) / math.log(3)),
        ([[2, 2, 2, 0], [0, 7, 0, 0]], 2, 0.5),
        ([[0, 0, 0, 4]], 3, 0.0),
        ([[8, 1]], 0, 1.0),
    ],
)
def test_health_by_hand(counts: list[list[int]], dead: int, entropy: float):
    """The last column counts choices of no expert, which say nothing of the others."""
    assert router_health(torch.tensor(counts)) == (dead, pytest.approx(entropy))
