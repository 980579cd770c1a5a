"""How fast is each expert backend, as a share of the dense product with the same multiplications?

    OMP_PROC_BIND=true python benchmarks/experts.py [--shapes A B C D] [--repetitions 15] [--threads 2] [--clock wall]

The variants take turns in one process; medians are reported. A variant whose outputs or gradients differ from the
reference's is reported as wrong, without a time. OMP_PROC_BIND keeps the two threads on two cores: without it a single
other process can make a product many times slower. On a machine that others use as well, `--threads 1 --clock cpu`
counts the processor time of one thread instead.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from moeut.experts import ExpertBackend, Routes, expert_mlp


@dataclass(frozen=True)
class Shape:
    """Tokens N, hidden size D, experts E, expert size S, experts per token K."""

    tokens: int
    hidden_size: int
    num_experts: int
    expert_size: int
    num_experts_per_tok: int

    def macs(self) -> int:
        """Multiplications of one forward."""
        return 2 * self.tokens * self.num_experts_per_tok * self.hidden_size * self.expert_size


SHAPES = {
    "A": Shape(4096, 412, 155, 128, 12),
    "B": Shape(4096, 1024, 387, 128, 16),
    "C": Shape(2048, 256, 64, 64, 8),
    "D": Shape(512, 128, 32, 32, 4),
}

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Inputs:
    """One layer's tensors: x [N, D], up [E, D, S], down [E, S, D], gates and expert [N, K]."""

    x: Tensor
    up: Tensor
    down: Tensor
    gates: Tensor
    expert: Tensor

    @classmethod
    def random(cls, shape: Shape, dtype: torch.dtype = torch.float32) -> "Inputs":
        N, D, E = shape.tokens, shape.hidden_size, shape.num_experts
        S, K = shape.expert_size, shape.num_experts_per_tok
        gates, expert = torch.rand(N, E).topk(K, sorted=False)
        up, down = torch.randn(E, D, S) / D**0.5, torch.randn(E, S, D) / (K * S) ** 0.5
        return cls(torch.randn(N, D).to(dtype), up.to(dtype), down.to(dtype), gates, expert)

    def leaves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.up, self.down, self.gates


def ours(inputs: Inputs, backend: ExpertBackend) -> Tensor:
    routes = Routes.sort(inputs.expert, inputs.up.shape[0])
    return expert_mlp(inputs.x, inputs.up, inputs.down, routes, inputs.gates.flatten(), backend=backend)


def masked_loop(inputs: Inputs) -> Tensor:
    """A loop over experts that finds the tokens of each in a one-hot mask, as transformers writes its mixtures."""
    y = torch.zeros_like(inputs.x)
    mask = torch.nn.functional.one_hot(inputs.expert, inputs.up.shape[0]).permute(2, 1, 0)
    for e in mask.sum((1, 2)).nonzero()[:, 0]:
        choice, token = torch.where(mask[e])
        hidden = torch.relu(inputs.x[token] @ inputs.up[e])
        y.index_add_(0, token, hidden @ inputs.down[e] * inputs.gates[token, choice, None])
    return y


def dense(inputs: Inputs, width: int) -> Tensor:
    """The ceiling: a dense perceptron that does the same multiplications."""
    up, down = inputs.up.flatten()[: inputs.x.shape[1] * width], inputs.down.flatten()[: inputs.x.shape[1] * width]
    return torch.relu(inputs.x @ up.view(-1, width)) @ down.view(width, -1)


def forward(layer: Callable[[Inputs], Tensor], inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return [layer(inputs)]


def forward_backward(layer: Callable[[Inputs], Tensor], inputs: Inputs) -> list[Tensor]:
    """The output and the gradient of every tensor that has one."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs.leaves()]
    x, up, down, gates = leaves
    y = layer(Inputs(x, up, down, gates, inputs.expert))
    y.backward(inputs.x)
    return [y, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def close(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether the largest error of each tensor is below 1e-4 of its largest value."""
    return all((a - b).abs().max() <= 1e-4 * b.abs().max() for a, b in zip(ours, theirs, strict=True))


def seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def report(name: str, shape: Shape, repetitions: int, clock: Callable[[], float]) -> None:
    torch.manual_seed(0)
    inputs = Inputs.random(shape)
    variants: dict[str, Callable[[Inputs], Tensor]] = {
        "dense": partial(dense, width=shape.num_experts_per_tok * shape.expert_size),
        "cpu": partial(ours, backend="cpu"),
        "native": partial(ours, backend="native"),
        "reference": partial(ours, backend="reference"),
        "masked loop": masked_loop,
    }
    expected = forward_backward(variants["reference"], inputs)
    right = {
        variant: variant == "dense" or close(forward_backward(layer, inputs), expected)
        for variant, layer in variants.items()
    }
    print(f"\n{name}: {shape}", flush=True)
    for kind, run, factor in (("forward", forward, 1), ("forward + backward", forward_backward, 3)):
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(repetitions):
            for variant, layer in variants.items():
                times[variant].append(seconds(partial(run, layer, inputs), clock))
        ceiling = median(times["dense"])
        for variant, measured in times.items():
            middle = median(measured)
            rate = 2e-9 * factor * shape.macs() / middle
            result = (
                f"{1e3 * middle:9.2f} ms  {ceiling / middle:5.2f}  {rate:6.0f} GFLOP/s" if right[variant] else "WRONG"
            )
            print(f"  {kind:20}{variant:14}{result}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.shapes:
        report(name, SHAPES[name], arguments.repetitions, CLOCKS[arguments.clock])
