"""Does attention look where it may, in the proportions it should?"""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from moeut.model.attention import DenseAttention, DenseAttentionConfig
from moeut.model.initialise import InitialWeights
from moeut.model.rope import rotary_phases
from moeut.model.surroundings import Inputs, Surroundings, Tokens, visibility

LENGTH = 5


def build(*, output_gate: bool = False, attention_dropout: float = 0.0) -> DenseAttention:
    config = DenseAttentionConfig(
        num_attention_heads=2, head_dim=6, output_gate=output_gate, attention_dropout=attention_dropout
    )
    return DenseAttention(config, 8, InitialWeights("paper", 2, post_norm=False)).double()


def surroundings(padding_mask: Tensor | None = None, *, causal: bool = True, length: int = LENGTH) -> Surroundings:
    mask, is_causal = visibility(padding_mask, length, length, causal=causal, device=torch.device("cpu"))
    places = torch.arange(length)
    return Surroundings(rotary_phases(places[None], 2, 10000.0, torch.float64), places, mask, is_causal, Tokens())


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
    inputs = Inputs(scored, projected)
    found, selections = attention(inputs, inputs, surroundings(causal=causal), None)
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
    inputs = Inputs(stream, stream)
    kept = attention.eval()(inputs, inputs, surroundings(causal=False), None)[0][..., 0]
    assert_close(kept, torch.ones_like(kept))
    dropped = attention.train()(inputs, inputs, surroundings(causal=False), None)[0][..., 0] * LENGTH / 2
    assert_close(dropped, dropped.round())
    assert dropped.unique().numel() > 1


def test_a_query_that_sees_nothing_gives_no_nan():
    """Left padding: the result is used by nobody, but must not poison the gradient."""
    attention = build()
    stream = torch.randn(1, LENGTH, 8, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[False, False, True, True, True]])
    inputs = Inputs(stream, stream)
    update, _ = attention(inputs, inputs, surroundings(real), None)
    update.sum().backward()
    assert update.isfinite().all()
    assert stream.grad is not None
    assert stream.grad.isfinite().all()
