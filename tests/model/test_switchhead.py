"""Does SwitchHead mix value and output experts by two routers of its own?"""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from moeut.experts import ExpertBackend
from moeut.model.initialise import InitialWeights
from moeut.model.rope import rotary_phases, rotate
from moeut.model.surroundings import Inputs, Surroundings, Tokens, visibility
from moeut.model.switchhead import SwitchHeadAttention, SwitchHeadConfig

HEADS, HEAD_DIM, HIDDEN, LENGTH = 2, 4, 8, 5


def build(experts: int, selected: int, backend: ExpertBackend = "auto", expert_dropout: float = 0.0):
    config = SwitchHeadConfig(
        num_attention_heads=HEADS, head_dim=HEAD_DIM, num_experts=experts, num_experts_per_tok=selected,
        expert_dropout=expert_dropout,
    )  # fmt: skip
    return SwitchHeadAttention(config, HIDDEN, InitialWeights("paper", 2, post_norm=False), backend).double()


def surroundings() -> Surroundings:
    mask, is_causal = visibility(None, LENGTH, LENGTH, causal=True, device=torch.device("cpu"))
    places = torch.arange(LENGTH)
    return Surroundings(rotary_phases(places[None], 2, 10000.0, torch.float64), places, mask, is_causal, Tokens())


def gates(scored: Tensor, router: Tensor, selected: int) -> Tensor:
    """[B, T, H, A]: the sigmoid of the selected experts' scores, 0 for the others."""
    scores = (scored @ router.T).unflatten(-1, (HEADS, -1))
    threshold = scores.topk(selected, dim=-1).values[..., -1:]
    return scores.sigmoid() * (scores >= threshold)


def plain(attention: SwitchHeadAttention, scored: Tensor, projected: Tensor) -> Tensor:
    """The formula as dense sums over all experts, each times a gate that is 0 where it was not selected."""
    selected = attention.config.num_experts_per_tok
    v_experts = attention.v_experts.unflatten(0, (HEADS, -1))
    o_experts = attention.o_experts.unflatten(0, (HEADS, -1))
    for_values = gates(scored, attention.v_router.weight, selected)
    for_outputs = gates(scored, attention.o_router.weight, selected)
    value = torch.einsum("btha,btd,hadp->bhtp", for_values, projected, v_experts)
    q, k = ((scored @ proj.weight.T).unflatten(-1, (HEADS, -1)).transpose(1, 2) for proj in
            (attention.q_proj, attention.k_proj))  # fmt: skip
    phases = surroundings().phases
    logits = rotate(q, phases) @ rotate(k, phases).mT / math.sqrt(HEAD_DIM)
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    context = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ value
    return torch.einsum("btha,bhtp,hapd->btd", for_outputs, context, o_experts)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("experts", "selected"), [(5, 2), (3, 3), (1, 1)])
def test_switchhead_equals_the_formula(backend: ExpertBackend, experts: int, selected: int):
    """With A = K this is the dense sum; with A = 1 both gates are there (defect 10)."""
    attention = build(experts, selected, backend)
    scored, projected = torch.randn(2, 2, LENGTH, HIDDEN, dtype=torch.float64)
    inputs = Inputs(scored, projected)
    found, _ = attention(inputs, inputs, surroundings(), None)
    expected = plain(attention, scored, projected)
    assert_close(found, expected)
    target = torch.randn_like(found)
    parameters = list(attention.parameters())
    ours = torch.autograd.grad((found * target).sum(), parameters)
    assert_close(ours, torch.autograd.grad((expected * target).sum(), parameters))


def test_values_and_outputs_have_routers_of_their_own():
    attention = build(4, 2)
    stream = torch.randn(1, LENGTH, HIDDEN, dtype=torch.float64)
    inputs = Inputs(stream, stream)
    _, before = attention(inputs, inputs, surroundings(), None)
    with torch.no_grad():
        attention.v_router.weight.neg_()
    _, after = attention(inputs, inputs, surroundings(), None)
    changed, kept = "attention_value", "attention_output"
    assert before.keys() == after.keys() == {changed, kept}
    assert before[changed].experts.shape == (1, LENGTH, HEADS, 2)
    assert not torch.equal(before[changed].experts, after[changed].experts)
    assert torch.equal(before[kept].experts, after[kept].experts)
    assert before[kept].statistics.probability.shape == (1, HEADS, 4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_nearly_everything_dropped_stays_finite(backend: ExpertBackend):
    """Defect 6, for attention: a head whose experts are all hidden contributes nothing."""
    attention = build(4, 2, backend, expert_dropout=0.99)
    scored = torch.randn(8, LENGTH, HIDDEN, dtype=torch.float64, requires_grad=True)
    inputs = Inputs(scored, scored)
    update, selections = attention(inputs, inputs, surroundings(), None)
    update.square().sum().backward()
    assert scored.grad is not None
    assert scored.grad.isfinite().all()
    nobody = (selections["attention_output"].experts == 4).all(dim=-1).all(dim=-1)
    assert nobody.any()
    assert update[nobody].count_nonzero() == 0
    assert max((selections[name].experts < 4).sum(-1).max().item() for name in selections) <= 2


@pytest.mark.parametrize(("experts", "selected"), list(itertools.product([1, 3], [4, 5])))
def test_more_selected_than_there_are_is_refused(experts: int, selected: int):
    """Defect 19."""
    with pytest.raises(ValueError, match="num_experts_per_tok"):
        SwitchHeadConfig(num_attention_heads=2, head_dim=4, num_experts=experts, num_experts_per_tok=selected)
