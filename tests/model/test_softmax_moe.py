"""Is SUT's feed-forward layer the weighted sum of its experts, biases and all?"""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from moeut.experts import ExpertBackend
from moeut.model.softmax_moe import SoftmaxMoE, SoftmaxMoEConfig
from moeut.model.surroundings import Inputs, Tokens

D, EXPERTS, SIZE = 6, 5, 4
BACKENDS = ["reference", "cpu"]


def build(backend: ExpertBackend, selected: int = 2) -> SoftmaxMoE:
    config = SoftmaxMoEConfig(num_experts=EXPERTS, num_experts_per_tok=selected, moe_intermediate_size=SIZE)
    return SoftmaxMoE(config, D, backend).double()


def streams() -> tuple[Tensor, Tensor]:
    """What the router reads and what the experts read, different so that a mix-up shows."""
    return torch.randn(2, 3, D, dtype=torch.float64), torch.randn(2, 3, D, dtype=torch.float64)


def all_experts(moe: SoftmaxMoE, x: Tensor) -> Tensor:
    """Every expert's result for every token: [B, T, E, d]."""
    assert moe.up is not None
    hidden = (torch.einsum("btd,eds->btes", x, moe.up_experts) + moe.up.bias).clamp(min=0)
    return torch.einsum("btes,esd->bted", hidden, moe.down_experts) + moe.down.bias


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("selected", [1, 2, EXPERTS])
def test_output_is_the_gated_sum_with_gradients(backend: ExpertBackend, selected: int):
    moe = build(backend, selected)
    scored, projected = (x.requires_grad_() for x in streams())
    y, selections = moe(Inputs(scored, projected), Tokens())
    p = moe.router.scores(scored).softmax(-1)
    chosen = torch.zeros_like(p).scatter(-1, p.topk(selected).indices, 1.0)
    gates = p * chosen / ((p * chosen).sum(-1, keepdim=True) + 1e-6)
    expected = torch.einsum("bte,bted->btd", gates, all_experts(moe, projected))
    assert_close(y, expected)
    assert selections["feed_forward"].experts.shape == (2, 3, 1, selected)
    leaves = [scored, projected, *moe.parameters()]
    target = torch.randn_like(y)
    ours = torch.autograd.grad((y * target).sum(), leaves)
    assert_close(ours, torch.autograd.grad((expected * target).sum(), leaves))


@pytest.mark.parametrize("backend", BACKENDS)
def test_halted_tokens_get_nothing_not_even_a_bias(backend: ExpertBackend):
    moe = build(backend)
    scored, projected = streams()
    survival = torch.tensor([[1.0, 0.0, 0.3], [0.0, 0.0, 1.0]], dtype=torch.float64)
    whole, _ = moe(Inputs(scored, projected), Tokens())
    y, _ = moe(Inputs(scored, projected), Tokens(survival=survival))
    assert y[survival == 0].count_nonzero() == 0
    assert_close(y[survival > 0], whole[survival > 0])


def test_initial_weights():
    """Experts between ±1/fan-in, as in the official code; biases between ±1/sqrt(fan-out)."""
    moe = SoftmaxMoE(SoftmaxMoEConfig(num_experts=50, moe_intermediate_size=64), 16, "auto")
    assert moe.up is not None
    bounds = {
        moe.up_experts: 1 / 16, moe.down_experts: 1 / 64, moe.up.bias: 1 / 8, moe.down.bias: 1 / 4,
        moe.router.weight: 1 / 4, moe.router.hidden_proj.weight: 1 / 4, moe.router.hidden_proj.bias: 1 / 4,
    }  # fmt: skip
    assert set(bounds) == set(moe.parameters())
    for parameter, bound in bounds.items():
        assert 0.7 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_has_the_dtype_of_the_stream(dtype: torch.dtype):
    moe = build("auto").to(dtype)
    scored, projected = (x.to(dtype) for x in streams())
    assert moe(Inputs(scored, projected), Tokens())[0].dtype == dtype
