"""Does rotation turn channel pairs by the right angle, in enough precision, for any head width?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from moeut.model.rope import Phases, num_rotated_channels, rotary_phases, rotate


@pytest.mark.parametrize(
    ("head_dim", "channels"),
    [(128, 64), (96, 48), (82, 40), (64, 32), (48, 24), (41, 20), (7, 2), (3, 0), (1, 0)],
)
def test_half_of_the_channels_are_rotated_rounded_down_to_even(head_dim: int, channels: int):
    """Defect 12: 82 channels gave 41 rotated ones and a crash."""
    assert num_rotated_channels(head_dim, 0.5) == channels


@given(head_dim=st.integers(1, 300), factor=st.floats(0, 1))
def test_rotated_channels_pair_up_and_fit(head_dim: int, factor: float):
    channels = num_rotated_channels(head_dim, factor)
    assert channels % 2 == 0
    assert 0 <= channels <= head_dim
    assert channels > factor * head_dim - 2


@given(head_dim=st.integers(1, 16), position=st.integers(0, 5000), seed=st.integers(0, 99))
@settings(deadline=None)
def test_rotation_is_complex_multiplication(head_dim: int, position: int, seed: int):
    """Channels j and j + n/2 are one complex number, turned by position · theta^(−2j/n); the rest stay."""
    channels = num_rotated_channels(head_dim, 0.5)
    x = torch.randn(1, 1, 1, head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    phases = rotary_phases(torch.tensor([[position]]), channels, 10000.0, torch.float64)
    half = channels // 2
    angles = torch.tensor([position * 10000.0 ** (-2 * j / channels) for j in range(half)], dtype=torch.float64)
    number = torch.complex(x[0, 0, 0, :half], x[0, 0, 0, half:channels])
    turned = number * torch.polar(torch.ones_like(angles), angles)
    found = rotate(x, phases)[0, 0, 0]
    assert_close(found, torch.cat([turned.real, turned.imag, x[0, 0, 0, channels:]]), rtol=1e-9, atol=1e-9)


@given(offset=st.integers(0, 2000))
@settings(deadline=None, max_examples=20)
def test_scores_depend_on_distance_only(offset: int):
    query, key = torch.randn(2, 1, 1, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def scores(first: int) -> torch.Tensor:
        phases = rotary_phases(torch.arange(first, first + 4)[None], 4, 10000.0, torch.float64)
        return rotate(query, phases) @ rotate(key, phases).mT

    assert_close(scores(offset), scores(0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_phases_are_at_least_float32_and_rotation_keeps_the_dtype(dtype: torch.dtype):
    """Angles in bfloat16 cannot tell position 1000 from 1001."""
    phases = rotary_phases(torch.tensor([[1000, 1001]]), 4, 10000.0, dtype)
    assert phases.cos.dtype == phases.sin.dtype == torch.promote_types(dtype, torch.float32)
    assert (phases.cos[0, 0, 0] - phases.cos[0, 0, 1]).abs().max() > 0.1
    assert rotate(torch.ones(1, 1, 2, 8, dtype=dtype), phases).dtype == dtype


def test_rotation_keeps_lengths():
    x = torch.randn(2, 3, 5, 12, dtype=torch.float64)
    phases = rotary_phases(torch.arange(5)[None], 6, 10000.0, torch.float64)
    assert_close(rotate(x, phases).norm(dim=-1), x.norm(dim=-1))


def test_nothing_to_rotate_leaves_everything():
    x = torch.randn(1, 2, 3, 5)
    empty = torch.empty(1, 1, 3, 0)
    assert torch.equal(rotate(x, Phases(empty, empty)), x)
