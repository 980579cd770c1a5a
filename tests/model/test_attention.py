"""Does attention look where it may, in the proportions it should?"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from moeut.model.attention import DenseAttention, DenseAttentionConfig, Surroundings, visibility
from moeut.model.initialise import InitialWeights
from moeut.model.rope import rotary_phases

LENGTH = 5


def build(*, output_gate: bool = False, attention_dropout: float = 0.0) -> DenseAttention:
    config = DenseAttentionConfig(
        num_attention_heads=2, head_dim=6, output_gate=output_gate, attention_dropout=attention_dropout
    )
    return DenseAttention(config, 8, InitialWeights("paper", 2, post_norm=False)).double()


def surroundings(padding_mask: Tensor | None = None, *, causal: bool = True, length: int = LENGTH) -> Surroundings:
    mask, is_causal = visibility(padding_mask, length, length, causal=causal, device=torch.device("cpu"))
    return Surroundings(
        rotary_phases(torch.arange(length)[None], 2, 10000.0, torch.float64), mask, is_causal, None, with_usage=False
    )


def turn(vector: Tensor, position: int) -> Tensor:
    """Rotation of two of six channels (⌊half⌋ rounded to even is 2): by the position itself, since theta^0 = 1."""
    cos, sin = math.cos(position), math.sin(position)
    first, second = vector[0] * cos - vector[1] * sin, vector[1] * cos + vector[0] * sin
    return torch.cat([torch.stack([first, second]), vector[2:]])


@pytest.mark.parametrize("output_gate", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_dense_heads_equal_the_formula(output_gate: bool, causal: bool):
    """Query, key and gate read one stream, values the other; query by query."""
    attention = build(output_gate=output_gate)
    scored, projected = torch.randn(2, 1, LENGTH, 8, dtype=torch.float64)
    found, selections = attention(scored, projected, surroundings(causal=causal), None)
    q, k = ((scored[0] @ proj.weight.T).view(LENGTH, 2, 6) for proj in (attention.q_proj, attention.k_proj))
    v = (projected[0] @ attention.v_proj.weight.T).view(LENGTH, 2, 6)
    for t in range(LENGTH):
        heads = []
        for h in range(2):
            keys = range(t + 1) if causal else range(LENGTH)
            scores = torch.stack([turn(q[t, h], t) @ turn(k[s, h], s) / math.sqrt(6) for s in keys])
            context = sum(weight * v[s, h] for weight, s in zip(scores.softmax(0), keys, strict=True))
            assert isinstance(context, Tensor)
            if output_gate:
                context = context * (attention.gate_proj.weight[h] @ scored[0, t]).sigmoid()
            heads.append(context)
        assert_close(found[0, t], attention.o_proj.weight @ torch.cat(heads))
    assert selections == {}


@given(data=st.data(), causal=st.booleans(), padded=st.booleans(), new=st.integers(1, 5), past=st.integers(0, 4))
@settings(deadline=None)
def test_visibility_equals_its_description(data: st.DataObject, causal: bool, padded: bool, new: int, past: int):
    """Query i of the new tokens stands at key past + i. None and "plain triangle" mean what torch makes of them."""
    total = past + new
    real = torch.tensor([data.draw(st.lists(st.booleans(), min_size=total, max_size=total)) for _ in range(2)])
    mask, is_causal = visibility(real if padded else None, new, total, causal=causal, device=torch.device("cpu"))
    if mask is None:
        allowed = torch.ones(2, new, total, dtype=torch.bool)
        allowed = allowed.tril() if is_causal else allowed
        assert not is_causal or new == total
    else:
        assert not is_causal
        allowed = mask.expand(2, 1, new, total)[:, 0]
    for b, i in itertools.product(range(2), range(new)):
        wanted = [(not causal or s <= past + i) and (not padded or bool(real[b, s])) for s in range(total)]
        assert allowed[b, i].tolist() == (wanted if any(wanted) else [True] * total)


def test_a_plain_triangle_needs_no_mask():
    """Defect 36: a mask of T × T rules fast attention out."""
    around = surroundings()
    assert around.mask is None
    assert around.is_causal


def test_dropout_hits_attention_weights():
    """Defect 5: the release dropped features of q. With equal scores and values, only dropped weights show."""
    attention = build(attention_dropout=0.5)
    with torch.no_grad():
        attention.q_proj.weight.zero_()
        attention.v_proj.weight.zero_()
        attention.v_proj.weight[:, 0] = 1
        attention.o_proj.weight.zero_()
        attention.o_proj.weight[0, 0] = 1
    stream = torch.ones(1, LENGTH, 8, dtype=torch.float64)
    kept = attention.eval()(stream, stream, surroundings(causal=False), None)[0][..., 0]
    assert_close(kept, torch.ones_like(kept))
    dropped = attention.train()(stream, stream, surroundings(causal=False), None)[0][..., 0] * LENGTH / 2
    assert_close(dropped, dropped.round())
    assert dropped.unique().numel() > 1


def test_a_query_that_sees_nothing_gives_no_nan():
    """Left padding: the result is used by nobody, but must not poison the gradient."""
    attention = build()
    stream = torch.randn(1, LENGTH, 8, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[False, False, True, True, True]])
    update, _ = attention(stream, stream, surroundings(real), None)
    update.sum().backward()
    assert update.isfinite().all()
    assert stream.grad is not None
    assert stream.grad.isfinite().all()
