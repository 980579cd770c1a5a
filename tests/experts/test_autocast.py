"""Are tensors rounded as torch's linear map rounds them, and is autocast off where it has to be?"""

import pytest
import torch

from moeut.experts.autocast import rounded, without_autocast


def test_rounded_only_under_autocast() -> None:
    tensors = (torch.randn(3), torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float16))
    assert all(mine is given for mine, given in zip(rounded(*tensors), tensors, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert [tensor.dtype for tensor in rounded(*tensors)] == [torch.bfloat16, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("enabled", [True, False])
def test_off_inside_and_as_it_was_outside(enabled: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        with without_autocast("cpu"):
            assert not torch.is_autocast_enabled("cpu")
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu") is enabled
