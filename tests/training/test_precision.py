"""Is the precision chosen that the hardware has, and does autocast leave alone what must stay exact?"""

import pytest
import torch

from moeut.training.precision import autocast, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "chosen"), [((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_auto_on_gpus(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA) == chosen
    assert resolve_precision("float32", CUDA) == "float32"


def test_auto_elsewhere():
    assert resolve_precision("auto", CPU) == resolve_precision("auto", torch.device("mps")) == "float32"
    assert resolve_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_products_are_in_that_precision(precision, dtype):
    x = torch.randn(4, 4)
    with autocast(precision, CPU):
        assert (x @ x).dtype == dtype
        assert torch.nn.functional.cross_entropy(x, torch.arange(4)).dtype == torch.float32
    assert (x @ x).dtype == torch.float32
