"""Which backend runs, and what is said where shapes do not fit?"""

import pytest
import torch

from moeut.experts import Routes, expert_linear, expert_mlp, resolve_backend


def test_backend_choice() -> None:
    processor, elsewhere = torch.device("cpu"), torch.device("meta")
    assert resolve_backend("auto", processor) == "cpu"
    assert resolve_backend("auto", elsewhere) == "reference"
    assert resolve_backend("reference", processor) == "reference"
    for backend in ("cpu", "native"):
        with pytest.raises(ValueError, match=f"'{backend}' needs tensors on a CPU"):
            resolve_backend(backend, elsewhere)
    with pytest.raises(ValueError, match="'fast' is unknown: use one of auto, reference, cpu, native"):
        resolve_backend("fast", processor)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_one_line() -> None:
    x, up, down, gates = torch.randn(7, 5), torch.randn(4, 5, 3), torch.randn(4, 3, 5), torch.rand(14)
    routes = Routes.sort(torch.randint(4, (7, 2)), 4)
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
