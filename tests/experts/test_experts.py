"""Which backend runs, and what is said where shapes do not fit?"""

import pytest
import torch

from moeut import experts
from moeut.experts import ExpertBackend, Routes, expert_linear, expert_mlp, resolve_backend

GPU = torch.device("cuda")


def test_backend_choice() -> None:
    processor, elsewhere = torch.device("cpu"), torch.device("meta")
    assert resolve_backend("auto", processor) == "cpu"
    assert resolve_backend("auto", elsewhere) == "reference"
    assert resolve_backend("reference", processor) == "reference"
    for backend in ("cpu", "native"):
        with pytest.raises(ValueError, match=f"'{backend}' needs tensors on a CPU"):
            resolve_backend(backend, elsewhere)
    assert resolve_backend("grouped", processor) == "grouped"
    with pytest.raises(ValueError, match="'fast' is unknown: use one of auto, reference, cpu, native, triton"):
        resolve_backend("fast", processor)  # type: ignore[arg-type]


def test_auto_takes_triton_on_a_gpu_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_backend("auto", GPU) == "triton"
    assert resolve_backend("auto", GPU, torch.bfloat16) == "triton"
    assert resolve_backend("triton_atomic", GPU) == "triton_atomic"
    assert resolve_backend("auto", GPU, torch.float64) == "reference"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert resolve_backend("auto", GPU) == "reference"
    with pytest.raises(ValueError, match=r"'triton' needs a GPU of compute capability 8\.0 or more: use 'reference'"):
        resolve_backend("triton", GPU)
    monkeypatch.setattr(experts, "find_spec", lambda name: None)
    assert resolve_backend("auto", GPU) == "reference"
    with pytest.raises(ValueError, match=r"'triton' needs triton: pip install 'moeut\[triton\]'"):
        resolve_backend("triton", GPU)


@pytest.mark.parametrize("backend", ["triton", "triton_atomic"])
def test_triton_needs_a_gpu_or_its_interpreter(backend: ExpertBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=f"'{backend}' needs tensors on a GPU, these are on cpu: use 'auto'"):
        resolve_backend(backend, torch.device("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_backend(backend, torch.device("cpu")) == backend
    assert resolve_backend("auto", torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("backend", ["triton", "grouped"])
def test_float64_is_refused(backend: ExpertBackend) -> None:
    x, weight = torch.randn(2, 3, dtype=torch.float64), torch.randn(1, 3, 4, dtype=torch.float64)
    routes = Routes(torch.zeros(2, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match=f"'{backend}' needs float32, bfloat16 or float16, these are torch.float64"):
        expert_linear(x, weight, routes, None, 2, backend=backend)


def test_shapes_that_do_not_fit_are_one_line() -> None:
    x, up, down, gates = torch.randn(7, 5), torch.randn(4, 5, 3), torch.randn(4, 3, 5), torch.rand(14)
    routes = Routes(torch.randint(4, (7, 2)), 4)
    with pytest.raises(ValueError, match=r"^14 routes cannot be shared out evenly over 6 input rows$"):
        expert_mlp(x[:6], up, down, routes, gates)
    with pytest.raises(ValueError, match=r"^14 routes cannot be shared out evenly over 3 output rows$"):
        expert_linear(x, up, routes, gates, 3)
    with pytest.raises(ValueError, match=r"^gates must have shape \(14,\), one a route, not \(7, 2\)$"):
        expert_mlp(x, up, down, routes, gates.view(7, 2))
    with pytest.raises(ValueError, match=r"^the routes know 4 experts, the weights 3$"):
        expert_mlp(x, up[:3], down, routes, gates)
    with pytest.raises(ValueError, match=r"^rows are torch.bfloat16 but weights torch.float32"):
        expert_mlp(x.bfloat16(), up, down, routes, gates)
