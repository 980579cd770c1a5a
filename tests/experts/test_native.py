"""Does the native path run when it is there, and give the same bits whichever thread is faster?"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moeut.experts import Routes, compiling, expert_linear, expert_mlp, native, resolve_backend

CPU = torch.device("cpu")


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """As in a new process."""
    native.built.cache_clear()
    yield
    native.built.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_auto_uses_it_when_it_was_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not native.built()
    assert resolve_backend("auto", CPU) == "cpu"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = compiling.library_path(native.SOURCE)
    path.parent.mkdir()
    path.touch()
    assert resolve_backend("auto", CPU) == "cpu"  # a process keeps to its choice
    native.built.cache_clear()
    assert native.built()
    assert resolve_backend("auto", CPU) == "native"


@pytest.mark.usefixtures("native")
def test_the_same_bits_from_two_threads() -> None:
    torch.set_num_threads(2)
    try:
        x, up, down = torch.randn(300, 96), torch.randn(7, 96, 64), torch.randn(7, 64, 96)
        gates, expert = torch.rand(300, 7).topk(3)
        routes = Routes(expert, 7)
        leaves = [tensor.requires_grad_() for tensor in (x, up, down, gates)]

        def run() -> list[torch.Tensor]:
            y = expert_mlp(x, up, down, routes, gates.flatten(), backend="native")
            z = expert_linear(x, up, routes, gates.flatten(), 300, backend="native")
            return [y, z, *torch.autograd.grad(y.sum() + z.square().sum(), leaves)]

        assert native.shares_of(2 * 900 * 96 * 64) == 2
        first = run()
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    finally:
        torch.set_num_threads(1)


def test_small_work_stays_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert [native.shares_of(macs) for macs in (0, 2**17 - 1, 2**17, 2**40)] == [1, 1, 2, 16]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("nan_in", ["x", "up", "down"])
def test_nan_is_not_hidden(nan_in: str) -> None:
    tensors = {"x": torch.randn(6, 4), "up": torch.randn(2, 4, 3), "down": torch.randn(2, 3, 4)}
    tensors[nan_in].flatten()[0] = torch.nan
    routes = Routes(torch.zeros(6, 1, dtype=torch.long), 2)
    y = expert_mlp(**tensors, routes=routes, gates=torch.ones(6), backend="native")
    expected = expert_mlp(**tensors, routes=routes, gates=torch.ones(6), backend="reference")
    assert y.isnan().any()
    assert torch.equal(y.isnan(), expected.isnan())
