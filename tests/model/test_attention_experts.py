"""Do SUT's attention experts attend as the formula says, by relative position, whatever mask and cache there are?"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache

from moeut.experts import ExpertBackend
from moeut.model.attention_experts import AttentionExperts, AttentionExpertsConfig, RelativePositions, masked
from moeut.model.cache import CacheSlot
from moeut.model.rope import rotary_phases
from moeut.model.surroundings import Inputs, Surroundings, Tokens, visibility

D, EXPERTS, HEADS, SIZE, BATCH, LENGTH = 6, 4, 2, 3, 2, 5
FARTHEST = 2


def config_of(**options: Any) -> AttentionExpertsConfig:
    settings = {
        "num_attention_heads": HEADS, "head_dim": SIZE, "num_experts": EXPERTS,
        "max_relative_positions": FARTHEST + 1, **options,
    }  # fmt: skip
    return AttentionExpertsConfig(**settings)


def build(backend: ExpertBackend = "auto", **options: Any) -> AttentionExperts:
    attention = AttentionExperts(config_of(**options), D, backend).double()
    nn.init.normal_(attention.relative_embedding.weight)
    for experts in (attention.q_experts, attention.o_experts):
        nn.init.normal_(experts, std=0.5)
    return attention


def surroundings(
    length: int = LENGTH, past: int = 0, real: Tensor | None = None, survival: Tensor | None = None, causal: bool = True
) -> Surroundings:
    mask, is_causal = visibility(real, length, past + length, causal=causal, device=torch.device("cpu"))
    places = torch.arange(past, past + length)
    tokens = Tokens(None if real is None else real[:, past:], survival)
    return Surroundings(rotary_phases(places[None], 0, 1.0, torch.float64), places, mask, is_causal, tokens)


def streams(count: int = 4) -> tuple[Tensor, ...]:
    return tuple(torch.randn(count, BATCH, LENGTH, D, dtype=torch.float64))


def plain(attention: AttentionExperts, queries: Inputs, sources: Inputs, allowed: Tensor) -> Tensor:
    """The formula, token by token and expert by expert; allowed: [B, T, N]."""
    k, v = (
        (x @ w.T).unflatten(-1, (HEADS, SIZE))
        for x, w in ((sources.scored, attention.k_proj.weight), (sources.projected, attention.v_proj.weight))
    )
    p = attention.router.scores(queries.scored).softmax(-1)
    best = p.topk(attention.config.num_experts_per_tok).indices
    rows = []
    for b, t in itertools.product(range(BATCH), range(LENGTH)):
        chosen = p[b, t, best[b, t]]
        row = torch.zeros(D, dtype=torch.float64)
        for expert, gate in zip(best[b, t].tolist(), chosen / (chosen.sum() + 1e-6), strict=True):
            q = (queries.scored[b, t] @ attention.q_experts[expert]).unflatten(-1, (HEADS, SIZE))
            context = []
            for h in range(HEADS):
                seen = [j for j in range(LENGTH) if allowed[b, t, j]]
                scores = []
                for j in seen:
                    distance = max(-FARTHEST, min(FARTHEST, j - t))
                    r = attention.relative_embedding.weight[h, :, distance + FARTHEST + 1]
                    scores.append(q[h] @ k[b, j, h] / SIZE**0.5 + q[h] @ r / SIZE**0.25)
                context.append(torch.stack(scores).softmax(0) @ v[b, seen, h])
            row = row + gate * (torch.cat(context) @ attention.o_experts[expert])
        rows.append(row)
    return torch.stack(rows).view(BATCH, LENGTH, D)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("selected", [1, 2, EXPERTS])
def test_attention_equals_the_formula_with_gradients(backend: ExpertBackend, selected: int):
    """Queries from one stream, keys and values from another, as with halting; scored and projected differ too."""
    attention = build(backend, num_experts_per_tok=selected)
    one, two, three, four = (x.requires_grad_() for x in streams())
    queries, sources = Inputs(one, two), Inputs(three, four)
    found, selections = attention(queries, sources, surroundings(), None)
    expected = plain(attention, queries, sources, torch.ones(BATCH, LENGTH, LENGTH).tril().bool())
    assert_close(found, expected)
    assert selections.keys() == {"attention"}
    leaves = [one, three, four, *attention.parameters()]
    target = torch.randn_like(found)
    ours = torch.autograd.grad((found * target).sum(), leaves)
    assert_close(ours, torch.autograd.grad((expected * target).sum(), leaves))


@pytest.mark.parametrize("causal", [True, False])
def test_masks_of_padding_and_ready_ones(causal: bool):
    """Boolean masks hide, additive ones too; a query looks both ways where nothing is causal."""
    attention = build()
    real = torch.tensor([[False, False, True, True, True], [True, True, True, False, True]])
    x = Inputs(*streams(2))
    around = surroundings(real=real, causal=causal)
    assert around.mask is not None
    allowed = around.mask.expand(BATCH, 1, LENGTH, LENGTH)[:, 0]
    expected = plain(attention, x, x, allowed)
    found, _ = attention(x, x, around, None)
    assert_close(found, expected)
    added = torch.zeros_like(around.mask, dtype=torch.float64).masked_fill(~around.mask, -torch.inf)
    assert_close(attention(x, x, around._replace(mask=added), None)[0], expected)


def test_everything_is_visible_where_there_is_no_mask():
    attention, x = build(), Inputs(*streams(2))
    found, _ = attention(x, x, surroundings(causal=False), None)
    assert_close(found, plain(attention, x, x, torch.ones(BATCH, LENGTH, LENGTH).bool()))


def test_relative_positions_by_hand():
    """One head of size 1, R = 1: entries 1, 2 and 3 are for keys before, at and after the query; 0 and 4 unused."""
    relative = RelativePositions(config_of(num_attention_heads=1, head_dim=1, max_relative_positions=2))
    with torch.no_grad():
        relative.weight.copy_(torch.tensor([[[1000.0, 1.0, 2.0, 3.0, 1000.0]]]))
    query = torch.tensor([1.0, 10.0]).view(1, 1, 1, 2, 1)
    assert relative(query, torch.tensor([1, 2]), 4)[0, 0, 0].tolist() == [[1, 2, 3, 3], [10, 10, 20, 30]]


def test_the_causal_triangle_hides_what_comes_later():
    bias = torch.arange(4.0).view(1, 1, 1, 2, 2)
    found = masked(bias, surroundings(2))
    assert found[0, 0, 0].tolist() == [[0.0, -torch.inf], [2.0, 3.0]]


def test_halted_tokens_get_no_update_but_are_looked_at():
    attention, x = build(), Inputs(*streams(2))
    survival = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.5]] * BATCH, dtype=torch.float64)
    whole, _ = attention(x, x, surroundings(), None)
    found, _ = attention(x, x, surroundings(survival=survival), None)
    assert found[survival == 0].count_nonzero() == 0
    assert_close(found[survival > 0], whole[survival > 0])


def test_remembering_alone_fills_the_cache_as_attending_does():
    attention, x = build(), Inputs(*streams(2))
    caches = DynamicCache(), DynamicCache()
    attention(x, x, surroundings(), CacheSlot(caches[0], 0))
    attention.remember(x, surroundings(), CacheSlot(caches[1], 0))
    for name in ("keys", "values"):
        one, other = (getattr(cache.layers[0], name) for cache in caches)
        assert one.shape == (BATCH, HEADS, LENGTH, SIZE)
        assert torch.equal(one, other)


def test_drawing_more_than_are_selected_is_refused():
    with pytest.raises(ValueError, match="sample_topk: 3 of 2 selected experts cannot be drawn"):
        config_of(sample_topk=3)
    with pytest.raises(ValueError, match="num_experts_per_tok: 5 experts cannot be chosen from 4"):
        config_of(num_experts_per_tok=5)


def test_initial_weights():
    """Experts between ±1/fan-in, keys and values between ±sqrt(3 / (d + width)), positions 0."""
    config = config_of(num_attention_heads=4, head_dim=16, num_experts=9)
    attention = AttentionExperts(config, 32, "auto")
    bounds = {
        attention.q_experts: 1 / 32, attention.o_experts: 1 / 64, attention.k_proj.weight: (3 / 96) ** 0.5,
        attention.v_proj.weight: (3 / 96) ** 0.5, attention.router.weight: 32**-0.5,
    }  # fmt: skip
    for parameter, bound in bounds.items():
        assert 0.9 * bound < parameter.abs().max() <= bound
    assert attention.relative_embedding.weight.count_nonzero() == 0
