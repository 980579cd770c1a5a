"""What does autocast do to products of ours? What it does to torch's linear maps: it rounds what goes in."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def rounded(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where autocast is on; like torch, it leaves float64 alone."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Inside, autocast is off; nothing is done where it is off already, because that takes as long as a small product.

    device_type: as in `torch.device`, such as `cpu`.
    """
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()
