"""Where do a CPU's large results live? In memory that is quick to write for the first time."""

import math

import numpy as np
import torch
from torch import Tensor

_HUGE_PAGE_BYTES = 4 * 2**20  # from here on numpy asks for huge pages


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory not yet written, for a tensor on the CPU."""
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE_PAGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    # numpy asks Linux for huge pages and torch does not: writing to fresh memory takes a third of the time.
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).view(shape)
