"""Is fresh memory what was asked for, wherever it comes from?"""

import pytest
import torch

from moeut.experts import fresh_memory


@pytest.mark.parametrize("limit", [1, 2**30], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4), (2, 0, 5), (7,)])
def test_fresh(shape: tuple[int, ...], dtype: torch.dtype, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh_memory, "_HUGE_PAGE_BYTES", limit)
    tensor = fresh_memory.fresh(shape, dtype)
    assert (tensor.shape, tensor.dtype) == (shape, dtype)
    assert tensor.is_contiguous()
    tensor.fill_(1.5)
    assert tensor.eq(1.5).all()
