"""Does each token stop where its gates say, and is its result the mixture of its states?"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from moeut.model.halting import ActConfig, HaltingGate, act_loss, advance, begin, decide, mixture

D = 3


class FixedGate(HaltingGate):
    """Stops with given probabilities, whatever it reads."""

    def __init__(self, stop: Tensor) -> None:
        super().__init__(D)
        self.stop = stop

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - self.stop).log(), self.stop.log()


def ponder(states: list[Tensor], stops: list[Tensor], config: ActConfig) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Result and expected depth after layers that give `states`, and survival before each but the first."""
    now = advance(begin(torch.zeros_like(states[0])), states[0], 0, config)
    survival = []
    for n, (state, stop) in enumerate(zip(states[1:], stops, strict=True), start=1):
        now = decide(now, FixedGate(stop), n, config)
        survival.append(now.survival)
        now = advance(now, state, n, config)
    return now.result, now.expected, survival


def states(count: int, batch: int = 1, length: int = 1) -> list[Tensor]:
    return list(torch.randn(count, batch, length, D, dtype=torch.float64))


def stop(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64)


def test_accumulated_by_hand():
    """Stops ½, then ½ of what is left, then the rest at the last layer: weights ½, ¼, ¼."""
    h = states(3)
    result, expected, survival = ponder(h, [stop(0.5), stop(0.5)], ActConfig())
    assert_close(result, h[0] / 2 + h[1] / 4 + h[2] / 4)
    assert [s.item() for s in survival] == [0.5, 0.25]
    # Stops after 0, 1 or 2 layers behind the first.
    assert expected.item() == 0 * 0.5 + 1 * 0.25 + 2 * 0.25


def test_interpolated_by_hand():
    """y ← y + w (h − y), from y = 0: later states push earlier ones out."""
    h = states(3)
    result, _, _ = ponder(h, [stop(0.5), stop(0.5)], ActConfig(mixture="interpolated"))
    first = 0.5 * h[0]
    second = 0.75 * first + 0.25 * h[1]
    assert_close(result, 0.75 * second + 0.25 * h[2])


@pytest.mark.parametrize("name", ["accumulated", "interpolated"])
def test_a_token_that_halts_keeps_its_result(name: Any):
    """τ = 0.7: halted when less than 0.3 goes on. The neighbour that goes on is not disturbed."""
    h = states(4, length=2)
    config = ActConfig(threshold=0.7, mixture=name)
    stops = [stop(0.5, 0.1), stop(0.5, 0.1), stop(0.1, 0.1)]
    result, expected, survival = ponder(h, stops, config)
    assert [s.tolist()[0] for s in survival] == [[0.5, 0.9], pytest.approx([0.0, 0.81]), pytest.approx([0.0, 0.729])]
    # The first token: its result is what stood after layer 1.
    early, *_ = ponder(h[:2], stops[:1], config)
    assert torch.equal(result[:, 0], early[:, 0])
    alone, *_ = ponder([x[:, 1:] for x in h], [s[:, 1:] for s in stops], config)
    assert torch.equal(result[:, 1:], alone)
    assert expected[0, 1] == pytest.approx(0.09 + 2 * 0.081 + 3 * 0.729)


def test_with_one_layer_the_result_is_its_state():
    h = states(1)
    result, expected, _ = ponder(h, [], ActConfig())
    assert torch.equal(result, h[0])
    assert expected.item() == 0


def test_weights_add_up_to_one_at_any_depth():
    """Halting is forced at the last layer: what has not stopped goes in there."""
    ones = [torch.ones(1, 4, D, dtype=torch.float64)] * 7
    stops = [torch.rand(1, 4, dtype=torch.float64) * 0.5 for _ in ones[1:]]
    for depth in range(1, 8):
        result, expected, _ = ponder(ones[:depth], stops[: depth - 1], ActConfig())
        assert_close(result, ones[0])
        assert (expected <= depth - 1).all()


def test_the_gate_by_its_formula():
    gate = HaltingGate(D).double()
    h = torch.randn(2, 4, D, dtype=torch.float64)
    go_on, stopping = gate(h)
    assert_close(go_on, torch.full((2, 4), math.log(0.5)).double())
    torch.nn.init.normal_(gate.gate_proj.weight)
    hidden = h @ gate.hidden_proj.weight.T + gate.hidden_proj.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    logits = hidden @ gate.gate_proj.weight.T
    expected = logits.exp() / logits.exp().sum(-1, keepdim=True)
    go_on, stopping = gate(h)
    assert_close(torch.stack([go_on, stopping], -1).exp(), expected)


def test_gradients_reach_gates_through_result_and_depth():
    """d result / d p and d depth / d p by finite differences."""
    h, config = states(4), ActConfig()

    def both(*stops: Tensor) -> Tensor:
        result, expected, _ = ponder(h, list(stops), config)
        return torch.cat([result.flatten(), expected.flatten()])

    stops = [stop(p).requires_grad_() for p in (0.2, 0.5, 0.3)]
    assert torch.autograd.gradcheck(both, stops)


def test_mixtures_are_named():
    mixed, state = torch.tensor(2.0), torch.tensor(6.0)
    assert mixture("accumulated")(mixed, torch.tensor(0.25), state) == 3.5
    assert mixture("interpolated")(mixed, torch.tensor(0.25), state) == 3.0


def test_the_loss_by_hand():
    """Mean over each sequence's real tokens, then over sequences; after the last layer, or officially all of them."""
    expected = [torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 3.0], [5.0, 7.0]])]
    real = torch.tensor([[True, True], [True, False]])
    once, summed = (ActConfig(act_loss_coef=0.1, loss_form=form) for form in ("corrected", "official"))
    assert act_loss(expected, None, once).item() == pytest.approx(0.1 * 4)
    assert act_loss(expected, real, once).item() == pytest.approx(0.1 * (2 + 5) / 2)
    assert act_loss([*expected, expected[1]], real, summed).item() == pytest.approx(0.1 * (2 + 5))
    assert act_loss(expected, real & False, once).item() == 0
    assert act_loss(expected, torch.tensor([[True, True], [False, False]]), once).item() == pytest.approx(0.1 * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shares_stay_wide_in_narrow_models(dtype: torch.dtype):
    """Products of many probabilities near one would drift in 16 bits; the stream keeps its dtype."""
    x = torch.randn(1, 2, D).to(dtype)
    now = decide(advance(begin(x), x, 0, ActConfig()), HaltingGate(D).to(dtype), 1, ActConfig())
    assert {now.survival.dtype, now.log_survival.dtype, now.depth.dtype, now.mixed.dtype} == {torch.float32}
    assert advance(now, x, 1, ActConfig()).result.dtype == dtype


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_thresholds_outside_their_range_are_refused(threshold: float):
    with pytest.raises(ValueError, match="threshold"):
        ActConfig(threshold=threshold)
