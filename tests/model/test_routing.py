"""Are the best experts chosen, weighted by their own sigmoid, sorted into routes, and balanced as the formula says?

Routers here have the identity as weight, so that their scores are their inputs.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from moeut.model.routing import BalanceScope, GateName, Router, RouterConfig, Usage, balance_loss, total, usage_sum
from moeut.model.surroundings import Tokens

sizes = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6))
seeds = st.integers(0, 2**31)


def router_of_scores(groups: int, experts: int, selected: int, **options: Any) -> Router:
    settings = {"router_aux_loss_coef": 1.0, **options}
    config = RouterConfig(kind="any", num_experts=experts, num_experts_per_tok=selected, **settings)
    return Router("any", config, groups * experts, groups, nn.init.eye_)


def distinct_scores(shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """Scores [B, T, G, E] in float64, all different by at least 1/10."""
    count = math.prod(shape)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return (order.double() / 10 - count / 20).view(shape)


@given(shape=sizes, seed=seeds, data=st.data())
@settings(deadline=None)
def test_selection_equals_brute_force(shape: tuple[int, int, int, int], seed: int, data: st.DataObject):
    batch, length, groups, experts = shape
    selected = data.draw(st.integers(1, experts))
    scores = distinct_scores(shape, seed)
    selection, routes = router_of_scores(groups, experts, selected)(scores.flatten(2), Tokens())
    places = list(itertools.product(range(batch), range(length), range(groups)))
    for b, t, g in places:
        row = scores[b, t, g]
        best = sorted(range(experts), key=lambda expert: -row[expert].item())[:selected]
        assert sorted(selection.experts[b, t, g].tolist()) == sorted(best)
        assert_close(selection.gates[b, t, g], 1 / (1 + (-row[selection.experts[b, t, g]]).exp()))
    expected = [g * experts + e for b, t, g in places for e in selection.experts[b, t, g].tolist()]
    assert routes.expert.tolist() == expected
    assert routes.num_experts == groups * experts
    for expert in range(routes.num_experts):
        mine = routes.order[routes.offsets[expert] : routes.offsets[expert + 1]]
        assert mine.tolist() == [route for route, chosen in enumerate(expected) if chosen == expert]
    assert_close(selection.statistics.probability, scores.softmax(-1).sum(1))


def test_gradient_reaches_the_scores_of_selected_experts_only():
    scores = distinct_scores((1, 3, 2, 4), 0).flatten(2).requires_grad_()
    selection, _ = router_of_scores(2, 4, 2)(scores, Tokens())
    selection.gates.sum().backward()
    assert scores.grad is not None
    chosen = torch.zeros(1, 3, 2, 4, dtype=torch.bool).scatter(-1, selection.experts, True)
    probability = scores.detach().view(1, 3, 2, 4).sigmoid()
    assert_close(scores.grad.view(1, 3, 2, 4), (probability * (1 - probability)).where(chosen, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saturated_scores_are_still_told_apart(dtype: torch.dtype):
    """Defect 9: sigmoids of 20 to 40 are all 1 in 16 bits; the raw scores are not."""
    scores = torch.tensor([[[20.0, 40.0, 30.0, 25.0]]], dtype=dtype)
    selection, _ = router_of_scores(1, 4, 2).to(dtype)(scores, Tokens())
    assert set(selection.experts.flatten().tolist()) == {1, 2}
    assert selection.gates.dtype == dtype
    assert selection.statistics.probability.dtype == torch.float32


def test_scores_of_a_low_precision_router_are_summed_in_float32():
    """Defects 9 and 21: products rounded to bfloat16 would give 256 for both experts."""
    config = RouterConfig(kind="any", num_experts=2, num_experts_per_tok=1)
    router = Router("any", config, 2, 1, nn.init.ones_).bfloat16()
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[256.0, 0.0], [256.0, 0.5]]))
    x = torch.ones(1, 1, 2, dtype=torch.bfloat16)
    assert router.scores(x).flatten().tolist() == [256.0, 256.5]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert router.scores(x.float()).flatten().tolist() == [256.0, 256.5]
        selection, _ = router(x, Tokens())
    assert selection.experts.item() == 1


@given(seed=seeds, rate=st.sampled_from([0.1, 0.5, 0.9, 0.99]), selected=st.integers(1, 6))
@settings(deadline=None)
def test_expert_dropout_hides_experts_from_the_choice_only(seed: int, rate: float, selected: int):
    """Defect 6: dropping probabilities to −inf gave infinite outputs when fewer than K experts survived."""
    scores = distinct_scores((2, 8, 1, 6), seed)
    router = router_of_scores(1, 6, selected, expert_dropout=rate)
    torch.manual_seed(seed)
    survives = torch.rand_like(scores) >= rate
    torch.manual_seed(seed)
    selection, routes = router(scores.flatten(2), Tokens())
    for b, t in itertools.product(range(2), range(8)):
        survivors = [expert for expert in range(6) if survives[b, t, 0, expert]]
        best = sorted(survivors, key=lambda expert: -scores[b, t, 0, expert].item())[:selected]
        used = [expert for expert in selection.experts[b, t, 0].tolist() if expert < 6]
        assert sorted(used) == sorted(best)
    real = selection.experts < 6
    gates = scores.gather(-1, selection.experts.clamp(max=5)).sigmoid()
    assert_close(selection.gates[real], gates[real])
    assert selection.gates.isfinite().all()
    assert routes.offsets[-1] == real.sum()
    assert_close(selection.statistics.probability, scores.softmax(-1).sum(1))


def test_expert_dropout_is_for_training_only():
    scores = distinct_scores((1, 4, 1, 6), 0).flatten(2)
    dropped = router_of_scores(1, 6, 2, expert_dropout=0.99).eval()(scores, Tokens())[0]
    whole = router_of_scores(1, 6, 2)(scores, Tokens())[0]
    assert torch.equal(dropped.experts, whole.experts)


# The balance term.


def brute_force(scores: Tensor, real: Tensor) -> float:
    """The formula once more, for scores [R, B, T, G, E] of R repeats, with the real tokens [B, T] only."""
    total, present = 0.0, 0
    for b in range(scores.shape[1]):
        if not real[b].any():
            continue
        present += 1
        probabilities = scores[:, b][:, real[b]].softmax(-1).flatten(0, 1)
        mean = probabilities.mean(0)
        total += torch.special.xlogy(mean, mean).sum(-1).mean().item()
    return total / max(present, 1)


def balance(scores: Tensor, real: Tensor) -> Tensor:
    return balance_loss(*total([usage_sum(repeat, real) for repeat in scores]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = (draw(st.integers(1, 3)), *draw(sizes))
    generator = torch.Generator().manual_seed(draw(seeds))
    scores = torch.randn(shape, dtype=torch.float64, generator=generator) * draw(st.sampled_from([0.1, 3.0, 100.0]))
    return scores, torch.rand(shape[1:3], generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.1]))


@given(case=cases())
@settings(deadline=None)
def test_balance_equals_the_formula_and_its_bounds(case: tuple[Tensor, Tensor]):
    """Defect 11: padded positions do not count."""
    scores, real = case
    value = balance(scores, real).item()
    assert value == pytest.approx(brute_force(scores, real), abs=1e-12)
    assert -math.log(scores.shape[-1]) - 1e-12 <= value <= 0


@given(case=cases(), seed=seeds)
@settings(deadline=None)
def test_balance_ignores_order_and_padding(case: tuple[Tensor, Tensor], seed: int):
    scores, real = case
    generator = torch.Generator().manual_seed(seed)
    value = balance(scores, real).item()
    sequences = torch.randperm(scores.shape[1], generator=generator)
    positions = torch.randperm(scores.shape[2], generator=generator)
    assert balance(scores[:, sequences], real[sequences]).item() == pytest.approx(value, abs=1e-12)
    assert balance(scores[:, :, positions], real[:, positions]).item() == pytest.approx(value, abs=1e-12)
    other = torch.randn(scores.shape, dtype=torch.float64, generator=generator)
    repadded = scores.where(real[None, :, :, None, None], other)
    assert balance(repadded, real).item() == pytest.approx(value, abs=1e-12)


@given(case=cases())
@settings(deadline=None)
def test_balance_has_a_finite_gradient_that_padding_does_not_get(case: tuple[Tensor, Tensor]):
    scores, real = case
    scores.requires_grad_()
    balance(scores, real).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[:, ~real].count_nonzero() == 0


def test_a_fully_padded_sequence_is_left_out():
    scores = torch.randn(2, 3, 4, 1, 5, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[True] * 4, [False] * 4, [True, False, True, False]])
    value = balance(scores, real)
    assert value.item() == pytest.approx(balance(scores[:, [0, 2]], real[[0, 2]]).item())
    value.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    nobody = torch.zeros(3, 4, dtype=torch.bool)
    assert balance(scores, nobody).item() == 0


@pytest.mark.parametrize("experts", [1, 2, 155])
def test_even_use_attains_the_bound_and_one_expert_gives_zero(experts: int):
    even = torch.zeros(1, 1, 3, 1, experts, dtype=torch.float64)
    everyone = torch.ones(1, 3, dtype=torch.bool)
    assert balance(even, everyone).item() == pytest.approx(-math.log(experts), abs=1e-12)
    one = even.clone()
    one[..., 0] = 1000.0
    assert balance(one, everyone).item() == 0


# Kinds of gates, halted tokens, scopes.


@given(shape=sizes, seed=seeds, data=st.data())
@settings(deadline=None)
def test_gates_of_every_kind(shape: tuple[int, int, int, int], seed: int, data: st.DataObject):
    """The same experts whatever the gate; a softmax over all, or over the selected ones."""
    groups, experts = shape[2:]
    selected = data.draw(st.integers(1, experts))
    scores = distinct_scores(shape, seed)
    found = {}
    kinds: tuple[GateName, ...] = ("sigmoid", "softmax", "softmax_of_selected")
    for gate in kinds:
        found[gate], _ = router_of_scores(groups, experts, selected, gate=gate)(scores.flatten(2), Tokens())
    chosen = found["sigmoid"].experts
    assert all(torch.equal(selection.experts, chosen) for selection in found.values())
    exponentials = scores.exp().gather(-1, chosen)
    assert_close(found["softmax"].gates, exponentials / scores.exp().sum(-1, keepdim=True))
    assert_close(found["softmax_of_selected"].gates, exponentials / exponentials.sum(-1, keepdim=True))


def test_halted_tokens_go_to_nobody_and_count_as_much_as_they_survive():
    scores = distinct_scores((1, 3, 2, 4), 0)
    survival = torch.tensor([[1.0, 0.0, 0.25]], dtype=torch.float64)
    selection, routes = router_of_scores(2, 4, 2)(scores.flatten(2), Tokens(None, survival))
    assert (selection.experts == 4).all(-1).all(-1).tolist() == [[False, True, False]]
    assert (routes.expert.view(3, 4) == 8).all(-1).tolist() == [False, True, False]
    weighted = (scores.softmax(-1) * survival[:, :, None, None]).sum(1)
    assert_close(tuple(selection.statistics), (weighted, survival.sum(1)))


@pytest.mark.parametrize("scope", ["sequence", "batch", "application"])
def test_scopes_of_the_balance_term(scope: BalanceScope):
    """Two applications of a layer: what is averaged before the entropy is taken, and what after."""
    scores = torch.randn(2, 3, 5, 1, 4, dtype=torch.float64) * 2
    router = router_of_scores(1, 4, 2, balance_scope=scope, router_aux_loss_coef=0.5)
    applications = [router(application.flatten(2), Tokens())[0].statistics for application in scores]
    probabilities = scores.softmax(-1).squeeze(3)  # [application, B, T, E]
    mean = {"sequence": (0, 2), "batch": (0, 1, 2), "application": (2,)}[scope]
    entropy = torch.special.entr(probabilities.mean(mean)).sum(-1)
    assert_close(router.regulariser(applications), -0.5 * entropy.mean())


def test_statistics_add_up_field_by_field():
    one, other = Usage(torch.ones(2, 1, 3), torch.tensor([1, 2])), Usage(torch.zeros(2, 1, 3), torch.tensor([3, 4]))
    assert_close(tuple(total([one, other])), (torch.ones(2, 1, 3), torch.tensor([4, 6])))
    assert isinstance(total([one, other]), Usage)
