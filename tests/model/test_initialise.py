"""Does every parameter start as the table says, and once?"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from moeut.model import initialise
from moeut.model.attention import DenseAttentionConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.initialise import InitialWeights, NormalWithEqualRows, TruncatedNormal
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.layer import NormName
from moeut.model.sigma_moe import SigmaMoE, SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

D, L, HEADS, HEAD_DIM, EXPERTS, SIZE, VOCABULARY = 96, 8, 4, 16, 20, 32, 300

MOEUT = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=D,
    num_hidden_layers=L,
    group_size=2,
    attention=SwitchHeadConfig(num_attention_heads=HEADS, head_dim=HEAD_DIM, num_experts=10),
    feed_forward=SigmaMoEConfig(num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=SIZE),
)
DENSE = dataclasses.replace(
    MOEUT,
    norm="pre",
    attention=DenseAttentionConfig(num_attention_heads=HEADS, head_dim=HEAD_DIM, output_gate=True),
    feed_forward=MLPConfig(intermediate_size=SIZE),
)


def parameters(config: ModelConfig) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: parameter.detach() for name, parameter in LanguageModel(config).named_parameters()}


def assert_normal(parameter: Tensor, std: float) -> None:
    """Mean, deviation and kurtosis of so many normal numbers, each within five of its own standard errors."""
    count = parameter.numel()
    normalised = parameter.double() / std
    assert abs(normalised.mean()) < 5 / math.sqrt(count)
    assert abs(normalised.std() - 1) < 5 / math.sqrt(2 * count)
    assert abs(normalised.pow(4).mean() - 3) < 5 * math.sqrt(96 / count)


@pytest.mark.parametrize(("norm", "alpha"), [("peri", math.sqrt(2 / L)), ("pre", math.sqrt(2 / L)), ("post", 1.0)])
def test_moeut_starts_as_the_training_runs_did(norm: NormName, alpha: float):
    """Defect 8: by the formulas of the table; L is the executed depth, not the number of layers."""
    found = parameters(dataclasses.replace(MOEUT, norm=norm))
    assert_normal(found["embedding.weight"], 1 / math.sqrt(D))
    for index in range(2):
        layer = f"stack.layers.{index}."
        for name in ("q_proj.weight", "k_proj.weight", "v_experts", "v_router.weight", "o_router.weight"):
            assert_normal(found[f"{layer}attention.{name}"], alpha / math.sqrt(D))
        assert_normal(found[layer + "attention.o_experts"], alpha / math.sqrt(HEADS * HEAD_DIM))
        assert_normal(found[layer + "feed_forward.router.weight"], alpha / math.sqrt(D))
        assert_normal(found[layer + "feed_forward.up_experts"], alpha / math.sqrt(D))
        assert_normal(found[layer + "feed_forward.down_experts"], alpha / math.sqrt(EXPERTS * SIZE))


@pytest.mark.parametrize("config", [MOEUT, DENSE], ids=["moeut", "dense"])
def test_head_and_norms(config: ModelConfig):
    found = parameters(config)
    for name in ("lm_head.weight", "lm_head.bias"):
        values = found[name].double() * math.sqrt(D)
        assert values.abs().max() <= 1
        assert values.abs().max() > 0.9
        assert abs(values.mean()) < 5 / math.sqrt(3 * values.numel())
        assert values.square().mean() == pytest.approx(1 / 3, abs=5 * math.sqrt(4 / 45 / values.numel()))
    norms = {name: value for name, value in found.items() if "norm" in name}
    assert len(norms) == 2 + 2 * 2 * 2
    for name, value in norms.items():
        assert (value == (1 if name.endswith("weight") else 0)).all()


def test_dense_parts_start_with_an_exact_deviation():
    """A normal cut at two deviations, rescaled; that leaves nothing beyond 2 / 0.88 of them."""
    found = parameters(DENSE)
    alpha = math.sqrt(2 / L)
    fan_in = {"q_proj": D, "k_proj": D, "v_proj": D, "o_proj": HEADS * HEAD_DIM}
    for name, size in fan_in.items():
        assert_cut_normal(found[f"stack.layers.0.attention.{name}.weight"], alpha / math.sqrt(size))
    assert_cut_normal(found["stack.layers.1.feed_forward.up_proj.weight"], alpha / math.sqrt(D))
    assert_cut_normal(found["stack.layers.1.feed_forward.down_proj.weight"], alpha / math.sqrt(SIZE))
    assert_normal(found["stack.layers.1.attention.gate_proj.weight"], alpha / math.sqrt(D))
    biases = [
        value for name, value in found.items() if "feed_forward" in name and "norm" not in name and "bias" in name
    ]
    assert len(biases) == 4
    assert all(value.count_nonzero() == 0 for value in biases)


def assert_cut_normal(parameter: Tensor, std: float) -> None:
    assert parameter.std().item() == pytest.approx(std, rel=1e-5)
    assert 2.1 < parameter.abs().max().item() / std < 2.4


@pytest.mark.parametrize("post_norm", [True, False])
def test_the_release_scheme_gives_routers_rows_of_one_length(post_norm: bool):
    """Defect 7: the release divided each row by its own deviation, which changed nothing."""
    std = (1 if post_norm else math.sqrt(2 / L)) / math.sqrt(D)
    paper, release = (InitialWeights(scheme, L, post_norm=post_norm).router(D) for scheme in ("paper", "release"))
    weight = torch.empty(40, D)
    torch.manual_seed(0)
    paper(weight)
    assert weight.norm(dim=-1).std() > 0.01 * std
    before = weight.std().item()
    torch.manual_seed(0)
    release(weight)
    assert weight.std().item() == pytest.approx(before, rel=1e-5)
    lengths = weight.norm(dim=-1)
    assert_close(lengths, lengths.mean().expand(40))


def test_the_release_scheme_reaches_every_router_and_nothing_else():
    paper, release = parameters(MOEUT), parameters(dataclasses.replace(MOEUT, initialisation="release"))
    different = {name for name, value in paper.items() if not torch.equal(value, release[name])}
    assert different == {name for name in paper if "router" in name}
    assert len(different) == 6


@pytest.mark.parametrize("config", [MOEUT, DENSE], ids=["moeut", "dense"])
def test_every_parameter_is_filled_once(config: ModelConfig, monkeypatch: pytest.MonkeyPatch):
    """Defect 27: two fillings waste time and random numbers."""
    filled: Counter[int] = Counter()
    for name in ("normal_", "uniform_", "trunc_normal_", "zeros_", "kaiming_uniform_", "kaiming_normal_"):
        monkeypatch.setattr(nn.init, name, counted(filled, getattr(nn.init, name)))
    model = LanguageModel(config)
    counts = {name: filled[id(parameter)] for name, parameter in model.named_parameters() if "norm" not in name}
    assert set(counts.values()) == {1}, counts


def counted(filled: Counter[int], fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrapper(parameter: Tensor, *arguments: float, **options: float) -> Tensor:
        filled[id(parameter)] += 1
        return fill(parameter, *arguments, **options)

    return wrapper


def test_only_the_named_parameters_are_filled():
    model = LanguageModel(MOEUT)
    moe = model.stack.get_submodule("layers.0.feed_forward")
    assert isinstance(moe, SigmaMoE)
    up, down = moe.up_experts.clone(), moe.down_experts.clone()
    initialise.initialise(moe, {"up_experts"})
    assert not torch.equal(moe.up_experts, up)
    assert torch.equal(moe.down_experts, down)


def test_one_number_alone_is_no_division_by_zero():
    for fill in (TruncatedNormal(0.5), NormalWithEqualRows(0.5)):
        single = torch.full((1, 1), torch.nan)
        fill(single)
        assert single.isfinite().all()
