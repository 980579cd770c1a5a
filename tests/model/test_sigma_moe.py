"""Does σ-MoE add up what its selected experts say, and only that?"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from moeut.experts import ExpertBackend
from moeut.model.initialise import InitialWeights
from moeut.model.sigma_moe import SigmaMoE, SigmaMoEConfig
from moeut.model.surroundings import Inputs, Tokens

BACKENDS = ["reference", "cpu"]


def build(backend: ExpertBackend, experts: int = 6, selected: int = 2, **options: Any) -> SigmaMoE:
    config = SigmaMoEConfig(num_experts=experts, num_experts_per_tok=selected, moe_intermediate_size=4, **options)
    return SigmaMoE(config, 8, InitialWeights("paper", 2, post_norm=False), backend).double()


def streams() -> tuple[Tensor, Tensor]:
    """What the router reads and what the experts read, different so that a mix-up shows."""
    return torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)


def one_expert(moe: SigmaMoE, x: Tensor, expert: int) -> Tensor:
    return (x @ moe.up_experts[expert]).clamp(min=0) @ moe.down_experts[expert]


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_is_the_sum_over_selected_experts(backend: ExpertBackend):
    """Sigmoid gates, the K largest, no renormalisation; the router reads one stream, experts the other."""
    moe = build(backend)
    scored, projected = streams()
    y, selections = moe(Inputs(scored, projected), Tokens())
    for b in range(2):
        for t in range(5):
            scores = moe.router.weight @ scored[b, t]
            best = scores.argsort(descending=True)[:2].tolist()
            expected = sum(scores[e].sigmoid() * one_expert(moe, projected[b, t], e) for e in best)
            assert_close(y[b, t], expected)
            assert sorted(selections["feed_forward"].experts[b, t, 0].tolist()) == sorted(best)


@pytest.mark.parametrize("backend", BACKENDS)
def test_selecting_every_expert_is_a_dense_sum(backend: ExpertBackend):
    """With K = E nothing is left to choose; gradients too."""
    moe = build(backend, experts=5, selected=5)
    scored, projected = streams()
    y, _ = moe(Inputs(scored, projected), Tokens())
    gates = (scored @ moe.router.weight.T).sigmoid()
    hidden = torch.einsum("btd,eds->btes", projected, moe.up_experts).clamp(min=0)
    dense = torch.einsum("bte,btes,esd->btd", gates, hidden, moe.down_experts)
    assert_close(y, dense)
    parameters = list(moe.parameters())
    target = torch.randn_like(y)
    ours = torch.autograd.grad((y * target).sum(), parameters)
    assert_close(ours, torch.autograd.grad((dense * target).sum(), parameters))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("selected", [1, 6])
def test_nearly_everything_dropped_stays_finite(backend: ExpertBackend, selected: int):
    """Defect 6: with 99 percent of experts hidden, most tokens get nothing, and nothing is infinite."""
    moe = build(backend, selected=selected, expert_dropout=0.99)
    scored, projected = (x.repeat(20, 1, 1).requires_grad_() for x in streams())
    y, selections = moe(Inputs(scored, projected), Tokens())
    y.square().sum().backward()
    for gradient in (scored.grad, projected.grad, *(parameter.grad for parameter in moe.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()
    chosen = selections["feed_forward"].experts
    nobody = (chosen == 6).all(dim=(-1, -2))
    assert 0.8 < nobody.double().mean() < 1
    assert y[nobody].count_nonzero() == 0
    one = ((chosen < 6).sum(dim=(-1, -2)) == 1).nonzero()[0].tolist()
    expert = int(chosen[tuple(one)].min())
    gate = (moe.router.weight[expert] @ scored[tuple(one)]).sigmoid()
    assert_close(y[tuple(one)], gate * one_expert(moe, projected[tuple(one)], expert))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_has_the_dtype_of_the_stream(dtype: torch.dtype):
    """Defect 21: 16-bit inputs came back as float32."""
    moe = build("auto").to(dtype)
    scored, projected = (x.to(dtype) for x in streams())
    y, _ = moe(Inputs(scored, projected), Tokens())
    assert y.dtype == dtype


def test_more_selected_than_there_are_is_refused():
    """Defect 19."""
    with pytest.raises(ValueError, match="num_experts_per_tok: 7 experts cannot be chosen from 6"):
        SigmaMoEConfig(num_experts=6, num_experts_per_tok=7)


def test_usage_is_reported_in_training():
    moe = build("auto")
    inputs = Inputs(*streams())
    assert moe.eval()(inputs, Tokens())[1]["feed_forward"].statistics is None
    usage, tokens = moe.train()(inputs, Tokens())[1]["feed_forward"].statistics
    assert usage.shape == (2, 1, 6)
    assert_close(usage.sum(-1), torch.full((2, 1), 5.0, dtype=torch.float64))
    assert tokens.tolist() == [5, 5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_biases_of_experts_of_the_output_and_of_scores(backend: ExpertBackend):
    """Each expert's before its ReLU, one for the layer, and one a score, which also decides who is selected."""
    moe = build(backend, expert_bias=True, output_bias=True, router_bias=True)
    assert moe.up is not None
    assert moe.bias is not None
    assert moe.router.bias is not None
    biases = (moe.up.bias, moe.bias, moe.router.bias)
    assert all(bias.count_nonzero() == 0 for bias in biases)
    with torch.no_grad():
        for bias in biases:
            bias.normal_()
    scored, projected = streams()
    y, selections = moe(Inputs(scored, projected), Tokens())
    scores = scored @ moe.router.weight.T + moe.router.bias
    chosen = torch.zeros_like(scores).scatter(-1, selections["feed_forward"].experts.squeeze(2), 1.0)
    assert torch.equal(chosen, (scores >= scores.topk(2).values[..., -1:]).double())
    hidden = (torch.einsum("btd,eds->btes", projected, moe.up_experts) + moe.up.bias).clamp(min=0)
    expected = torch.einsum("bte,btes,esd->btd", chosen * scores.sigmoid(), hidden, moe.down_experts) + moe.bias
    assert_close(y, expected)
