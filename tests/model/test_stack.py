"""Does the right layer run at each depth, on vectors alone, and is the balance term taken over all repeats?"""

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache

from moeut.model.attention import DenseAttentionConfig
from moeut.model.halting import ActConfig, HaltingGate
from moeut.model.routing import Router
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.stack import MoEUT, StackConfig
from moeut.model.switchhead import SwitchHeadConfig

CONFIG = StackConfig(
    hidden_size=8,
    num_hidden_layers=6,
    group_size=2,
    attention=SwitchHeadConfig(num_attention_heads=2, head_dim=4, num_experts=3),
    feed_forward=SigmaMoEConfig(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=4),
)
BATCH, LENGTH = 3, 5


def build(config: StackConfig = CONFIG) -> MoEUT:
    return MoEUT(config).double()


def vectors(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, LENGTH, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("layers", "group", "order", "expected"),
    [
        (6, 2, "abab", [0, 1, 0, 1, 0, 1]),
        (6, 2, "aabb", [0, 0, 0, 1, 1, 1]),
        (6, 3, "aabb", [0, 0, 1, 1, 2, 2]),
        (3, 1, "abab", [0, 0, 0]),
        (3, 3, "aabb", [0, 1, 2]),
    ],
)
def test_schedule(layers: int, group: int, order: str, expected: list[int]):
    config = dataclasses.replace(CONFIG, num_hidden_layers=layers, group_size=group, layer_order=order)
    assert config.schedule == expected
    assert len(build(config).layers) == group


@given(group=st.integers(1, 9), repeats=st.integers(1, 9))
def test_every_layer_runs_once_a_repeat(group: int, repeats: int):
    for order in ("abab", "aabb"):
        config = dataclasses.replace(CONFIG, num_hidden_layers=group * repeats, group_size=group, layer_order=order)
        assert sorted(config.schedule) == [layer for layer in range(group) for _ in range(repeats)]
        assert config.num_repeats == repeats


@pytest.mark.parametrize(("layers", "group"), [(5, 2), (1, 2), (18, 4)])
def test_layers_that_do_not_divide_are_refused(layers: int, group: int):
    """Defect 3: the release ran fewer layers than asked for, or divided by zero."""
    with pytest.raises(ValueError, match=f"group_size: {layers} layers .* whole groups of {group}"):
        dataclasses.replace(CONFIG, num_hidden_layers=layers, group_size=group)


@pytest.mark.parametrize("order", ["abab", "aabb"])
def test_a_shared_stack_equals_an_unshared_one_with_copied_weights(order: str):
    """Sharing is nothing but the same weights at several depths."""
    shared = build(dataclasses.replace(CONFIG, layer_order=order))
    unshared = build(dataclasses.replace(CONFIG, group_size=6))
    for layer, index in zip(unshared.layers, shared.config.schedule, strict=True):
        layer.load_state_dict(shared.layers[index].state_dict())
    x = vectors()
    assert torch.equal(shared.eval()(x).hidden_states, unshared.eval()(x).hidden_states)


# On its own, without tokens.


def test_no_mask_at_all_is_causal_by_default_and_bidirectional_on_request():
    """Defects 13 and 14: both raised a TypeError."""
    stack, x = build().eval(), vectors()
    changed = x.clone()
    changed[:, -1] += 1
    assert_close(stack(changed).hidden_states[:, :-1], stack(x).hidden_states[:, :-1])
    both_ways = stack(x, causal=False).hidden_states
    assert not torch.isclose(stack(changed, causal=False).hidden_states, both_ways).all(dim=-1).any()
    everyone = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    assert_close(stack(x, everyone, causal=False).hidden_states, both_ways)
    assert_close(stack(x, everyone).hidden_states, stack(x).hidden_states)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("integers", [True, False])
def test_padding_changes_no_real_vector(causal: bool, left: bool, integers: bool):
    """True, or 1, means a real token."""
    stack, x = build().eval(), vectors()
    real = torch.arange(LENGTH) < torch.tensor([[5], [3], [1]])
    real = real.flip(-1) if left else real
    padded = stack(x, real.long() if integers else real, causal=causal).hidden_states
    assert padded.isfinite().all()
    for b in range(BATCH):
        alone = stack(x[b : b + 1, real[b]], causal=causal).hidden_states[0]
        assert_close(padded[b, real[b]], alone, rtol=1e-9, atol=1e-12)


def test_a_ready_mask_says_which_query_sees_which_key():
    stack, x = build().eval(), vectors()
    triangle = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    assert_close(stack(x, triangle, causal=False).hidden_states, stack(x).hidden_states)
    added = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.float64).masked_fill(~triangle, -torch.inf)
    assert_close(stack(x, added).hidden_states, stack(x).hidden_states)


def test_a_mask_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"attention_mask: expected shape \(3, 5\) .* got \(3, 4\)"):
        build()(vectors(), torch.ones(BATCH, LENGTH - 1))


def test_positions_may_start_anywhere():
    """Rotary positions count by distance only."""
    stack, x = build().eval(), vectors()
    later = torch.arange(100, 100 + LENGTH)[None]
    assert_close(stack(x, position_ids=later).hidden_states, stack(x).hidden_states, rtol=1e-8, atol=1e-10)
    spread = 2 * torch.arange(LENGTH)[None]
    assert not torch.allclose(stack(x, position_ids=spread).hidden_states[:, 1:], stack(x).hidden_states[:, 1:])


def test_what_was_not_asked_for_is_not_returned():
    stack, x = build(), vectors()
    plain = stack(x)
    assert plain.routing is None
    assert plain.all_hidden_states is None
    told = stack(x, return_routing=True, return_hidden_states=True)
    assert [sorted(selected) for selected in told.routing] == [
        ["attention_output", "attention_value", "feed_forward"]
    ] * 6
    assert len(told.all_hidden_states) == 7
    assert torch.equal(told.all_hidden_states[0], x)
    assert torch.equal(told.all_hidden_states[-1], told.hidden_states)
    assert told.routing[0]["feed_forward"].experts.shape == (BATCH, LENGTH, 1, 2)
    assert told.routing[0]["attention_value"].gates.shape == (BATCH, LENGTH, 2, 2)
    assert all(selected.scores is None for at_depth in told.routing for selected in at_depth.values())


def test_scores_are_what_the_experts_were_chosen_by():
    stack, x = build(), vectors()
    with_scores = stack(x, return_scores=True).routing
    for at_depth, without in zip(with_scores, stack(x, return_routing=True).routing, strict=True):
        for name, selected in at_depth.items():
            assert torch.equal(selected.experts, without[name].experts)
            assert torch.equal(selected.scores.topk(2, dim=-1).indices, selected.experts)
            assert torch.equal(selected.scores.gather(-1, selected.experts).sigmoid(), selected.gates)
    assert with_scores[0]["attention_value"].scores.shape == (BATCH, LENGTH, 2, 3)


# The balance term of a whole stack.


def recorded_scores(stack: MoEUT, x: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[Router, list[Tensor]]]:
    """A forward's regulariser, and the raw scores of every router at each of its repeats."""
    scores: dict[Router, list[Tensor]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Router)
        scores.setdefault(module, []).append(module.scores(inputs[0]))

    handles = [module.register_forward_pre_hook(record) for module in stack.modules() if isinstance(module, Router)]
    regulariser = stack(x, mask).regulariser
    for handle in handles:
        handle.remove()
    return regulariser, scores


@pytest.mark.parametrize("order", ["abab", "aabb"])
@pytest.mark.parametrize("padded", [True, False])
def test_regulariser_equals_the_formula_over_all_repeats(order: str, padded: bool):
    """From the raw scores: within a sequence, over real tokens (defect 11) and over a layer's repeats."""
    stack, x = build(dataclasses.replace(CONFIG, layer_order=order)), vectors()
    real = torch.arange(LENGTH) < torch.tensor([[5], [3], [1]]) if padded else torch.ones(BATCH, LENGTH).bool()
    regulariser, scores = recorded_scores(stack, x, real if padded else None)
    expected = 0.0
    for router, repeats in scores.items():
        assert len(repeats) == 3
        coefficient = 0.01 if router.num_groups == 1 else 0.001
        for b in range(BATCH):
            mean = torch.cat([repeat[b, real[b]].softmax(-1) for repeat in repeats]).mean(0)
            expected += coefficient * (mean * mean.log()).sum(-1).mean().item() / BATCH
    assert len(scores) == 6
    assert regulariser.item() == pytest.approx(expected, abs=1e-12)


def test_regulariser_is_a_number_and_zero_in_evaluation():
    """Defect 25: it had shape (1,) and was returned in evaluation too."""
    stack, x = build(), vectors()
    assert stack(x).regulariser.shape == ()
    assert stack(x).regulariser.item() < 0
    assert stack.eval()(x).regulariser.shape == ()
    assert stack.eval()(x).regulariser.item() == 0


def test_usage_is_not_added_up_when_nothing_weighs_it():
    """Defect 26: the term was computed with coefficients of zero."""
    free = dataclasses.replace(
        CONFIG,
        attention=dataclasses.replace(CONFIG.attention, router_aux_loss_coef=0.0),
        feed_forward=dataclasses.replace(CONFIG.feed_forward, router_aux_loss_coef=0.0),
    )
    output = build(free)(vectors(), return_routing=True)
    assert output.regulariser.item() == 0
    assert all(selection.statistics is None for selected in output.routing for selection in selected.values())
    dense = dataclasses.replace(free, attention=DenseAttentionConfig(num_attention_heads=2, head_dim=4))
    assert build(dense)(vectors()).regulariser.item() == 0


def test_a_layer_called_by_itself_changes_no_later_result():
    """Defect 24: scores were kept on the modules until the next whole forward."""
    stack, x = build(), vectors()
    before = stack(x).regulariser
    seen = []
    handle = stack.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    stack(x)
    handle.remove()
    stack.layers[0](*seen[0])
    assert torch.equal(stack(x).regulariser, before)


def test_gradient_of_a_fully_padded_sequence_is_finite():
    stack, x = build(), vectors().requires_grad_()
    real = torch.ones(BATCH, LENGTH).bool()
    real[1] = False
    output = stack(x, real)
    (output.hidden_states[real].sum() + output.regulariser).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in stack.parameters() if parameter.grad is not None)


# Halting.

HALTING = dataclasses.replace(
    CONFIG, num_hidden_layers=5, group_size=1, norm="post",
    attention=DenseAttentionConfig(num_attention_heads=2, head_dim=4), halting=ActConfig(threshold=0.7),
)  # fmt: skip


def halting_stack(*stops: float, config: StackConfig = HALTING) -> MoEUT:
    """A stack whose token at place t stops with the t-th of these probabilities, asked after any layer."""
    stack = build(config).eval()
    stop = torch.tensor([stops], dtype=torch.float64)

    class Gate(HaltingGate):
        def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
            here = stop[:, -h.shape[1] :].expand(h.shape[:2])
            return (1 - here).log(), here.log()

    stack.halting_gates = nn.ModuleList(Gate(8) for _ in range(config.group_size))
    return stack


def layers_run(stack: MoEUT, *args: Any, **kwargs: Any) -> int:
    """How many layers a forward pass runs."""
    calls: list[nn.Module] = []
    handles = [layer.register_forward_pre_hook(lambda layer, _: calls.append(layer)) for layer in stack.layers]
    stack(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return len(calls)


SOON, NEVER = 0.8, 0.01
"""Halted after one layer (1 − 0.8 < 1 − τ), and not within five."""


def test_keys_and_values_of_a_halted_token_are_those_of_its_halting_depth():
    stack, cache = halting_stack(SOON, NEVER, 0.5, 0.5, NEVER), DynamicCache()
    stack(vectors(), cache=cache)
    for name in ("keys", "values"):
        slots = torch.stack([getattr(layer, name) for layer in cache.layers])  # [L, B, H, T, P]
        # The first token's result stays what it was after layer 0, the third's and fourth's after layer 1.
        for place, halted_at in ((0, 1), (2, 2), (3, 2)):
            deeper = slots[halted_at:, :, :, place]
            assert torch.equal(deeper, deeper[:1].expand_as(deeper))
            assert not torch.allclose(slots[halted_at - 1, :, :, place], deeper[0])
        for place in (1, 4):
            assert all(not torch.allclose(one[:, :, place], two[:, :, place]) for one, two in pairwise(slots))


def test_the_depth_loop_is_left_when_all_have_halted():
    """With the result, and the cache, of running on; the streams have their number."""
    stack, x, left, run = halting_stack(*[SOON] * LENGTH), vectors(), DynamicCache(), DynamicCache()
    assert layers_run(stack, x) == 1
    early = stack(x, cache=left, return_hidden_states=True)
    whole = stack(x, cache=run, return_hidden_states=True, return_routing=True)
    assert len(whole.routing) == len(left.layers) == 5
    assert_close(early.hidden_states, whole.hidden_states)
    assert_close(early.all_hidden_states, whole.all_hidden_states)
    for name in ("keys", "values"):
        one, other = ([getattr(layer, name) for layer in cache.layers] for cache in (left, run))
        assert_close(one, other)
    more = torch.randn(BATCH, 2, 8, dtype=torch.float64)
    assert_close(stack(more, cache=left).hidden_states, stack(more, cache=run, return_routing=True).hidden_states)


def test_the_depth_loop_is_not_left_while_one_token_goes_on():
    x = vectors()
    assert layers_run(halting_stack(*[SOON] * 4, NEVER), x) == 5
    assert layers_run(halting_stack(*[0.5] * LENGTH), x) == 2
    # Unless that token is padding.
    real = torch.arange(LENGTH).expand(BATCH, LENGTH) < 4
    assert layers_run(halting_stack(*[SOON] * 4, NEVER), x, real) == 1


def test_the_depth_loop_is_never_left_in_training_nor_among_ranks(monkeypatch: pytest.MonkeyPatch):
    """Ranks would wait for each other's layers."""
    stack, x = halting_stack(*[SOON] * LENGTH), vectors()
    assert layers_run(stack.train(), x) == 5
    with torch.no_grad():
        assert layers_run(stack, x) == 5
    assert layers_run(stack.eval(), x, return_routing=True) == 5
    assert layers_run(stack, x, return_scores=True) == 5
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert layers_run(stack, x) == 5


def test_expected_layers():
    """A token that stops after the first layer for sure takes one; one that never does takes all."""
    almost = 1 - 1e-12
    stack, x = halting_stack(almost, 1e-12, 0.5, 0.5, 0.5), vectors()
    layers = stack(x, return_routing=True).expected_layers
    assert_close(layers[:, :2], torch.tensor([[1.0, 5.0]] * BATCH, dtype=torch.float64))
    assert build()(x).expected_layers is None


def test_halting_is_forced_at_the_last_layer_of_any_depth():
    """What has not stopped goes into the result there: with peri layers that add nothing, the input comes back."""
    for repeats in (1, 2, 7):
        config = dataclasses.replace(HALTING, norm="peri").with_repeats(repeats)
        stack, x = halting_stack(0.1, 0.2, 0.3, 0.4, 0.0, config=config), vectors()
        for name, parameter in stack.layers.named_parameters():
            if name.endswith(("o_proj.weight", "down_experts")):
                nn.init.zeros_(parameter)
        assert_close(stack(x).hidden_states, x)


def test_the_expected_depth_costs_what_its_coefficient_says():
    quiet = dataclasses.replace(HALTING.feed_forward, router_aux_loss_coef=0.0)
    config = dataclasses.replace(HALTING, feed_forward=quiet, halting=ActConfig(act_loss_coef=0.25))
    stack, x = halting_stack(0.1, 0.2, 0.3, 0.4, 0.5, config=config).train(), vectors()
    real = torch.arange(LENGTH) < torch.tensor([[5], [3], [1]])
    output = stack(x, real)
    depths = [(output.expected_layers[b, real[b]] - 1).mean() for b in range(BATCH)]
    assert_close(output.regulariser, 0.25 * torch.stack(depths).mean())
    assert stack.eval()(x, real).regulariser.item() == 0


def test_a_layer_of_a_group_has_a_gate_of_its_own():
    config = dataclasses.replace(HALTING, num_hidden_layers=4, group_size=2)
    stack, asked = build(config), []
    for number, gate in enumerate(stack.halting_gates):
        gate.register_forward_pre_hook(lambda *_, number=number: asked.append(number))
    stack(vectors())
    assert asked == [1, 0, 1]
