"""How does attention know where a token stands? Rotary position embedding on the first channels of each head.

Letters: B batch, T tokens, H heads, P head size, n rotated channels. RoPE is arXiv 2104.09864; which channels rotate
follows the training code of arXiv 2405.16039. Nothing is cached: phases are computed in each forward pass, so that no
stale table can meet another device, dtype or length.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Phases(NamedTuple):
    """cos and sin of every rotation angle, each [B or 1, 1, T, n/2], at least float32."""

    cos: Tensor
    sin: Tensor


def num_rotated_channels(head_dim: int, partial_rotary_factor: float) -> int:
    """n = ⌊factor · P⌋ rounded down to even, so that channels pair up (the official release forgets to round)."""
    return int(head_dim * partial_rotary_factor) // 2 * 2


def rotary_phases(positions: Tensor, num_channels: int, theta: float, dtype: torch.dtype) -> Phases:
    """Angles position · theta^(−2j/n) for j = 0 … n/2−1.

    positions: [B or 1, T] integers; dtype: of the model, raised to at least float32, because bfloat16 cannot tell
    position 1000 from 1001.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponent = torch.arange(0, -num_channels, -2, dtype=dtype, device=positions.device) / max(num_channels, 1)
    angles = positions[:, None, :, None] * theta**exponent
    return Phases(angles.cos(), angles.sin())


def rotate(x: Tensor, phases: Phases) -> Tensor:
    """Rotate the first n channels of x [B, H, T, P]; channel j pairs with channel j + n/2; the rest pass through."""
    half = phases.cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    rotated_first = first * phases.cos - second * phases.sin
    rotated_second = second * phases.cos + first * phases.sin
    return torch.cat([rotated_first.to(x.dtype), rotated_second.to(x.dtype), rest], dim=-1)
