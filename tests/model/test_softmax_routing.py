"""Does SUT's router choose, weigh and balance as its formulas say, also where tokens have halted or are padding?"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from moeut.model.softmax_routing import (
    SoftmaxRouter,
    SoftmaxRouterConfig,
    SoftmaxUsage,
    mutual_information_loss,
    switch_loss,
    variation_loss,
    z_loss,
)
from moeut.model.surroundings import Tokens

D, EXPERTS, SELECTED, BATCH, LENGTH = 6, 5, 2, 2, 7
LOSSES = ("mutual_information", "variation", "switch", "z")


def build(sampled: int = 0, **options: Any) -> SoftmaxRouter:
    """A router whose scores are far apart, with no loss but those in `options`."""
    settings = {"num_experts": EXPERTS, "num_experts_per_tok": SELECTED, "mutual_information_loss_coef": 0.0, **options}
    router = SoftmaxRouter("any", SoftmaxRouterConfig(kind="any", **settings), D, sampled).double()
    nn.init.normal_(router.weight, std=2.0)
    return router


def stream() -> Tensor:
    return torch.randn(BATCH, LENGTH, D, dtype=torch.float64)


def probabilities(router: SoftmaxRouter, x: Tensor) -> Tensor:
    """[B, T, E] by the formula."""
    hidden = (x @ router.hidden_proj.weight.T + router.hidden_proj.bias).tanh()
    exponentials = (hidden @ router.weight.T).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def test_selection_and_gates_token_by_token():
    router, x = build(), stream()
    selection, routes = router(x, Tokens())
    everything = probabilities(router, x)
    for b in range(BATCH):
        for t in range(LENGTH):
            p = everything[b, t]
            best = p.argsort(descending=True)[:SELECTED]
            assert selection.experts[b, t, 0].tolist() == best.tolist()
            assert_close(selection.gates[b, t, 0], p[best] / (p[best].sum() + 1e-6))
    assert routes.expert.tolist() == selection.experts.flatten().tolist()
    assert routes.num_experts == EXPERTS
    assert selection.statistics is None, "nothing is added up that nothing weighs"


def test_gradients_reach_the_gates_through_all_probabilities():
    """Softmax is competitive: what an expert gains, others lose; renormalised over those selected."""
    router, x = build(), stream()
    target = torch.randn(BATCH, LENGTH, 1, SELECTED, dtype=torch.float64)
    selection, _ = router(x, Tokens())
    chosen = probabilities(router, x).gather(-1, selection.experts[:, :, 0])
    expected = (chosen / (chosen.sum(-1, keepdim=True) + 1e-6)).unsqueeze(2)
    parameters = list(router.parameters())
    ours = torch.autograd.grad((selection.gates * target).sum(), parameters)
    assert_close(ours, torch.autograd.grad((expected * target).sum(), parameters))


def test_halted_tokens_go_to_nobody_with_gates_of_zero():
    router, x = build(), stream()
    survival = torch.rand(BATCH, LENGTH, dtype=torch.float64)
    survival[0, 1:4] = 0
    whole, _ = router(x, Tokens())
    selection, routes = router(x, Tokens(survival=survival))
    halted = survival == 0
    assert (selection.experts[halted] == EXPERTS).all()
    assert selection.gates[halted].count_nonzero() == 0
    assert torch.equal(selection.experts[~halted], whole.experts[~halted])
    assert torch.equal(selection.gates[~halted], whole.gates[~halted])
    assert routes.offsets[-1] == SELECTED * (~halted).sum()


def test_the_last_are_drawn_in_training_only():
    """With K = 2, one drawn: the best is always there; the other follows its probability among the rest."""
    router = build(sampled=1)
    x = stream()[:1, :1].expand(4000, 1, D)
    evaluated = router.eval()(x, Tokens())[0]
    assert torch.equal(evaluated.experts, build_like(router)(x, Tokens())[0].experts)
    selection, _ = router.train()(x, Tokens())
    p = probabilities(router, x[0, 0])
    best = int(p.argmax())
    assert (selection.experts[..., 0] == best).all()
    drawn = selection.experts[..., 1].flatten()
    assert (drawn != best).all()
    rest = p + 1e-6
    rest[best] = 0
    frequency = drawn.bincount(minlength=EXPERTS).double() / len(drawn)
    # Four standard deviations of a share of 4,000 draws.
    assert_close(frequency, rest / rest.sum(), rtol=0, atol=4 * 0.5 / 4000**0.5)
    chosen = p[selection.experts[:, 0, 0]]
    assert_close(selection.gates[:, 0, 0], chosen / (chosen.sum(-1, keepdim=True) + 1e-6))


def build_like(router: SoftmaxRouter) -> SoftmaxRouter:
    """The same weights, nothing drawn."""
    other = SoftmaxRouter("any", router.config, D).double()
    other.load_state_dict(router.state_dict())
    return other


def losses_of(router: SoftmaxRouter, applications: list[tuple[Tensor, Tokens]]) -> Tensor:
    return router.regulariser([router(x, tokens)[0].statistics for x, tokens in applications])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("halting", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_losses_over_all_tokens_and_applications(loss: str, halting: bool, padded: bool):
    """Each by its own formula, token by token; weights are survival, and padding is left out."""
    router = build(0, **{f"{loss}_loss_coef": 0.25})
    applications, weights, streams = [], [], []
    for _ in range(3):
        survival = torch.rand(BATCH, LENGTH, dtype=torch.float64) if halting else None
        real = torch.rand(BATCH, LENGTH) < 0.6 if padded else None
        if survival is not None:
            survival[1, :2] = 0
        x = stream()
        applications.append((x, Tokens(real, survival)))
        weight = torch.ones(BATCH, LENGTH, dtype=torch.float64) if survival is None else survival
        weights.append((weight if real is None else weight * real).flatten())
        streams.append(x.flatten(0, 1))
    x, w = torch.cat(streams), torch.cat(weights)
    x, w = x[w > 0], w[w > 0]
    p = probabilities(router, x)
    best = p.topk(SELECTED).indices
    gates = torch.zeros_like(p).scatter(-1, best, p.gather(-1, best))
    gates = gates / (gates.sum(-1, keepdim=True) + 1e-6)
    match loss:
        case "mutual_information":
            share = w / w.sum()
            marginal = (share[:, None] * p).sum(0)
            expected = (marginal * marginal.log()).sum() - (share[:, None] * p * p.log()).sum()
        case "variation":
            mass = gates.sum(0) / gates.sum()
            expected = ((mass - 1 / EXPERTS) ** 2).sum() / (EXPERTS - 1) * EXPERTS**2
        case "switch":
            expected = EXPERTS * (p.mean(0) * (gates > 0).double().mean(0) / SELECTED).sum()
        case _:
            hidden = (x @ router.hidden_proj.weight.T + router.hidden_proj.bias).tanh()
            expected = ((hidden @ router.weight.T).exp().sum(-1).log() ** 2).mean()
    found = losses_of(router, applications)
    assert_close(found, 0.25 * expected, rtol=1e-6, atol=1e-9)
    parameters = list(router.parameters())
    ours = torch.autograd.grad(found, parameters)
    assert_close(ours, torch.autograd.grad(0.25 * expected, parameters), rtol=1e-6, atol=1e-9)


def usage_of(p: Tensor, w: Tensor) -> SoftmaxUsage:
    """Statistics of tokens with probabilities p [N, E] (zeros allowed) and weights w [N]; the best two selected."""
    best = p.topk(2).indices
    chosen = torch.zeros_like(p).scatter(-1, best, 1.0)
    return SoftmaxUsage(
        weight=w.sum(),
        probability=(w[:, None] * p).sum(0),
        negative_entropy=-(w[:, None] * torch.special.entr(p)).sum(),
        tokens=torch.tensor(float(len(p))),
        plain_probability=p.sum(0),
        gate=(chosen * p).sum(0),
        choices=chosen.sum(0),
        squared_log_normaliser=torch.tensor(float(len(p))) * 9,
    )


def test_mutual_information_by_hand():
    """Sure and even: −ln E, the least. All alike: 0. The official form has it the wrong way round."""
    ones = torch.ones(4).double()
    sure = usage_of(torch.eye(4).double(), ones)
    collapsed = usage_of(torch.eye(4).double()[[0, 0, 0, 0]], ones)
    undecided = usage_of(torch.full((4, 4), 0.25).double(), ones)
    nothing, everything = 0.0, math.log(4)
    for usage, corrected, official in (
        (sure, -everything, everything),
        (collapsed, nothing, nothing),
        (undecided, nothing, 2 * everything),
    ):
        assert mutual_information_loss(usage, "corrected").item() == pytest.approx(corrected, abs=1e-12)
        assert mutual_information_loss(usage, "official").item() == pytest.approx(official, abs=1e-12)


def test_weights_are_relative():
    p, w = torch.rand(9, 4).double().softmax(-1), torch.rand(9).double()
    for form in ("corrected", "official"):
        assert_close(mutual_information_loss(usage_of(p, w), form), mutual_information_loss(usage_of(p, 7 * w), form))


def test_the_official_form_without_halting_divides_by_tokens_and_experts():
    """2.2 of the official code's defects: weights are 1/(N·E) where they should be 1/N."""
    router, x = build(mutual_information_loss_coef=1.0, loss_form="official"), stream()
    p = probabilities(router, x).flatten(0, 1)
    marginal = p.mean(0) / EXPERTS
    expected = -(marginal * marginal.log()).sum() - (p * p.log()).sum(-1).mean() / EXPERTS
    assert_close(losses_of(router, [(x, Tokens())]), expected)
    # With halting it divides by the sum of survival.
    marginal = p.mean(0)
    expected = -(marginal * marginal.log()).sum() - (p * p.log()).sum(-1).mean()
    survival = torch.full((BATCH, LENGTH), 0.5, dtype=torch.float64)
    assert_close(losses_of(router, [(x, Tokens(survival=survival))]), expected)


def test_even_use_is_the_least_variation_and_a_switch_loss_of_one():
    even = usage_of(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]).double(), torch.ones(2).double())
    assert variation_loss(even).item() == 0
    assert switch_loss(even).item() == pytest.approx(1)
    collapsed = usage_of(torch.tensor([[0.5, 0.5, 0.0, 0.0]]).double(), torch.ones(1).double())
    # Shares ½ ½ 0 0: variance 1/12, mean 1/4.
    assert variation_loss(collapsed).item() == pytest.approx(16 / 12)
    assert switch_loss(collapsed).item() == pytest.approx(2)
    assert z_loss(collapsed).item() == 9


def test_one_expert_has_no_variation():
    router = build(num_experts=1, num_experts_per_tok=1, variation_loss_coef=1.0, mutual_information_loss_coef=1.0)
    found = losses_of(router, [(stream(), Tokens())])
    assert found.item() == pytest.approx(0, abs=1e-12)


def test_a_batch_without_real_tokens_costs_nothing_and_has_finite_gradients():
    router = build(0, **{f"{loss}_loss_coef": 1.0 for loss in LOSSES})
    nobody = Tokens(real=torch.zeros(BATCH, LENGTH, dtype=torch.bool))
    found = losses_of(router, [(stream(), nobody)])
    gradients = torch.autograd.grad(found, list(router.parameters()))
    assert found.item() == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_evaluation_reports_nothing():
    router = build(mutual_information_loss_coef=1.0).eval()
    assert router(stream(), Tokens())[0].statistics is None


def test_more_selected_than_there_are_is_refused():
    with pytest.raises(ValueError, match="num_experts_per_tok: 6 experts cannot be chosen from 5"):
        SoftmaxRouterConfig(kind="any", num_experts=5, num_experts_per_tok=6)
