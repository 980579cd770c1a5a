"""Are the paper's numbers ours? Parameters, multiply-accumulates, bounds of the balance term, and what must be equal.

Numbers: arXiv 2405.16039 and the training runs' settings, counted for a vocabulary of 8,000 with a head of its own.
"""

import dataclasses

import pytest
import steps
import torch
from torch import nn
from torch.testing import assert_close

from moeut.model.attention import DenseAttentionConfig
from moeut.model.cost import cost
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.paper_macs import paper_macs
from moeut.model.routing import Router
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.presets import preset
from moeut.trees import to_tree

MAIN = {
    "moeut-44m": (44_345_792, 37_744_968),
    "moeut-126m": (125_669_696, 113_372_160),
    "moeut-244m": (243_326_784, 226_932_736),
    "moeut-318m": (318_107_456, 301_713_408),
    "moeut-727m": (727_424_320, 706_933_760),
    "moeut-1b": (1_040_319_296, 1_015_732_224),
    "dense-44m": (44_544_264, 37_943_440),
    "dense-126m": (125_654_336, 113_356_800),
    "dense-244m": (243_568_700, 227_174_652),
    "dense-318m": (319_293_584, 302_899_536),
    "dense-727m": (728_694_080, 708_203_520),
    "dense-1b": (1_044_300_608, 1_019_713_536),
}
"""Parameters in all; without the embedding, the head's matrix and its bias, but with the final norm."""


SIGMA_MOE = {
    "44m": (44_129_080, 37_528_256),
    "126m": (126_069_056, 113_771_520),
    "244m": (243_844_928, 227_450_880),
    "318m": (319_661_888, 303_267_840),
    "727m": (731_228_480, 710_737_920),
}
"""There is none of the largest size."""

OTHERS = {
    "moeut-g1-244m": 243_589_952,
    "moeut-g3-244m": 243_844_928,
    "moeut-g6-244m": 243_844_928,
    "moeut-g9-244m": 243_844_928,
    "moeut-aabb-244m": 243_326_784,
    "moeut-pre-44m": 44_345_792,
    "moeut-pre-244m": 243_326_784,
    "sut-44m": 44_657_100,
    "sut-without-act-44m": 44_486_120,
    "sut-244m": 244_521_280,
    "sut-without-act-244m": 243_469_632,
}
"""Of the group-size ablation (groups of 2 and 18 are the MoEUT and the σ-MoE), norm placements and SUT."""


def assert_size(config: ModelConfig, total: int) -> None:
    """From the configuration, and from the model built on the meta device."""
    assert cost(config).parameters == total
    with torch.device("meta"):
        model = LanguageModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == total


@pytest.mark.parametrize("name", MAIN)
def test_parameters_of_the_main_models(name: str):
    """Defect 2: the release's profile called 727M builds 582 million, having the wrong hidden size."""
    total, without_embedding = MAIN[name]
    assert_size(preset(name), total)
    found = cost(preset(name))
    assert found.parameters - found.embedding_parameters == without_embedding + 2 * preset(name).hidden_size


@pytest.mark.parametrize("size", SIGMA_MOE)
def test_parameters_of_sigma_moe(size: str):
    total, without_embedding = SIGMA_MOE[size]
    config = preset(f"sigma-moe-{size}")
    assert_size(config, total)
    found = cost(config)
    assert found.parameters - found.embedding_parameters == without_embedding + 2 * config.hidden_size


@pytest.mark.parametrize("name", OTHERS)
def test_parameters_of_ablations_and_sut(name: str):
    assert_size(preset(name), OTHERS[name])


def test_experts_selected():
    """The number of parameters does not tell."""
    expected = {"44m": (2, 12), "126m": (2, 12), "244m": (2, 16), "318m": (2, 16), "727m": (2, 20), "1b": (2, 24)}
    expected = {f"moeut-{size}": both for size, both in expected.items()}
    expected |= {"sut-44m": (2, 2), "sut-244m": (2, 4)}
    for name, both in expected.items():
        config = to_tree(preset(name))
        assert (config["attention"]["num_experts_per_tok"], config["feed_forward"]["num_experts_per_tok"]) == both


def test_parameters_of_post_layernorm():
    """There is no norm before the head."""
    assert_size(preset("moeut-post-44m"), 44_345_792 - 2 * 412)
    assert_size(preset("moeut-post-244m"), 243_326_784 - 2 * 1024)


# Multiply-accumulates of a forward pass over 1,024 tokens, in 10⁹, embedding and head left out.
CONTEXT = 1024
PAPER_MACS = {
    "dense": {"44m": 52.5, "126m": 141.7, "244m": 271.1, "318m": 361.5, "727m": 821.4, "1b": 1159.6},
    "moeut": {"44m": 46.2, "126m": 94.5, "244m": 162.3, "318m": 215.2, "727m": 494.5, "1b": 700.3},
    "sigma-moe": {"44m": 40.7, "126m": 80.1, "244m": 136.1, "318m": 181.5, "727m": 413.2},
}
"""As the authors count."""
MOEUT_MACS = {"44m": 46.5, "126m": 95.4, "244m": 163.5, "318m": 216.7, "727m": 499.4, "1b": 707.1}
"""The same with the routers of all heads."""


def stack_macs(config: ModelConfig) -> int:
    return (cost(config, CONTEXT).macs_per_token - config.vocab_size * config.hidden_size) * CONTEXT


@pytest.mark.parametrize(("family", "size"), [(family, size) for family, sizes in PAPER_MACS.items() for size in sizes])
def test_computation_as_the_authors_count_it(family: str, size: str):
    assert round(paper_macs(preset(f"{family}-{size}"), CONTEXT) / 1e9, 1) == PAPER_MACS[family][size]


@pytest.mark.parametrize("size", PAPER_MACS["dense"])
def test_dense_models_are_counted_alike(size: str):
    assert stack_macs(preset(f"dense-{size}")) == paper_macs(preset(f"dense-{size}"), CONTEXT)


@pytest.mark.parametrize("size", MOEUT_MACS)
def test_what_the_authors_leave_out(size: str):
    """Ours is theirs with the routers of all heads, d channels in the sum of outputs, and σ-MoE's weighted sums."""
    config = preset(f"moeut-{size}")
    attention, feed_forward, d = config.attention, config.feed_forward, config.hidden_size
    assert isinstance(attention, SwitchHeadConfig)
    assert isinstance(feed_forward, SigmaMoEConfig)
    heads, selected = attention.num_attention_heads, attention.num_experts_per_tok
    per_token = CONTEXT * config.num_hidden_layers
    with_routers = paper_macs(config, CONTEXT) + per_token * 2 * (heads - 1) * attention.num_experts * d
    assert round(with_routers / 1e9, 1) == MOEUT_MACS[size]
    sums = heads * selected * (d - attention.head_dim) + feed_forward.num_experts_per_tok * d
    assert stack_macs(config) == with_routers + per_token * sums


@pytest.mark.parametrize(
    ("name", "bound"),
    [("44m", -0.1092), ("126m", -0.1200), ("244m", -0.1284), ("318m", -0.1885), ("727m", -0.2664), ("1b", -0.2734)],
)
def test_bound_of_the_balance_term(name: str, bound: float):
    """−G (γ ln E + 2δ ln A): the formula that the contract compares every variant's regulariser with."""
    assert steps.balance_bounds(preset(f"moeut-{name}"))[0] == pytest.approx(bound, abs=5e-5)


# What must be equal, on a small model of every kind.

SMALL = ModelConfig(
    vocab_size=11,
    hidden_size=12,
    num_hidden_layers=6,
    group_size=2,
    attention=SwitchHeadConfig(num_attention_heads=2, head_dim=6, num_experts=3),
    feed_forward=SigmaMoEConfig(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=4),
)


def routers(model: LanguageModel) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]


def test_even_routers_attain_the_bound_and_sure_ones_give_zero():
    model = LanguageModel(SMALL).double()
    inputs, _ = steps.tokens(SMALL)
    lowest, _ = steps.balance_bounds(SMALL)
    assert lowest == pytest.approx(-2 * (0.01 * 1.791759469228055 + 2 * 0.001 * 1.0986122886681098))
    assert lowest < model(inputs).regulariser.item() < 0
    for router in routers(model):
        nn.init.zeros_(router.weight)
    assert model(inputs).regulariser.item() == pytest.approx(lowest, abs=1e-15)
    for norm in model.stack.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.zeros_(norm.weight)
            nn.init.ones_(norm.bias)
    with torch.no_grad():
        for router in routers(model):
            router.weight.view(router.num_groups, router.config.num_experts, -1)[:, 0] = 1000.0
    assert model(inputs).regulariser.item() == 0


def test_one_group_as_deep_as_the_stack_is_an_unshared_stack():
    """ABAB and AABB are then the same, every layer once."""
    deep = dataclasses.replace(SMALL, group_size=6)
    assert deep.schedule == dataclasses.replace(deep, layer_order="aabb").schedule == list(range(6))
    assert_same_in_both_orders(deep)


def test_one_layer_repeated_is_the_same_in_both_orders():
    assert_same_in_both_orders(dataclasses.replace(SMALL, group_size=1))


def assert_same_in_both_orders(config: ModelConfig) -> None:
    inputs, targets = steps.tokens(config)
    abab, aabb = (dataclasses.replace(config, layer_order=order) for order in ("abab", "aabb"))
    one, other = (steps.train_step(steps.build(each), inputs, targets) for each in (abab, aabb))
    assert_close(one[0].loss, other[0].loss, rtol=0, atol=0)
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(gradient, other[1][name]) for name, gradient in one[1].items())


def test_the_two_orders_differ_otherwise():
    model, other = steps.build(SMALL), steps.build(dataclasses.replace(SMALL, layer_order="aabb"))
    inputs, _ = steps.tokens(SMALL)
    assert not torch.allclose(model(inputs).logits, other(inputs).logits)


def test_open_gates_and_every_expert_make_a_dense_transformer():
    """K = E and A = K_A with gates of one: dense products of concatenated or added experts."""
    attention = SwitchHeadConfig(num_attention_heads=2, head_dim=6, num_experts=3, num_experts_per_tok=3)
    feed_forward = SigmaMoEConfig(num_experts=6, num_experts_per_tok=6, moe_intermediate_size=4)
    wide = LanguageModel(
        dataclasses.replace(SMALL, norm="pre", attention=attention, feed_forward=feed_forward)
    ).double()
    dense = LanguageModel(
        dataclasses.replace(
            SMALL,
            norm="pre",
            attention=DenseAttentionConfig(num_attention_heads=2, head_dim=6),
            feed_forward=MLPConfig(intermediate_size=24),
        )
    ).double()
    with torch.no_grad():
        # A score of 0 is a gate of one half: the experts carry the factor of two that opens it.
        for router in routers(wide):
            router.weight.zero_()
        weights = wide.state_dict()
        for index in range(2):
            here = f"stack.layers.{index}."
            up, down = weights.pop(here + "feed_forward.up_experts"), weights.pop(here + "feed_forward.down_experts")
            weights[here + "feed_forward.up_proj.weight"] = up.transpose(1, 2).flatten(0, 1)
            weights[here + "feed_forward.up_proj.bias"] = up.new_zeros(24)
            weights[here + "feed_forward.down_proj.weight"] = down.flatten(0, 1).T / 2
            weights[here + "feed_forward.down_proj.bias"] = up.new_zeros(12)
            value = weights.pop(here + "attention.v_experts").unflatten(0, (2, 3)).sum(1) / 2
            output = weights.pop(here + "attention.o_experts").unflatten(0, (2, 3)).sum(1) / 2
            weights[here + "attention.v_proj.weight"] = value.transpose(1, 2).flatten(0, 1)
            weights[here + "attention.o_proj.weight"] = output.flatten(0, 1).T
        dense.load_state_dict({name: value for name, value in weights.items() if "router" not in name})
    inputs, _ = steps.tokens(SMALL)
    assert_close(wide(inputs).logits, dense(inputs).logits, rtol=1e-10, atol=1e-12)
