"""How fast are the expert layers, measured against what the same machine does at best?

    OMP_PROC_BIND=true python benchmarks/experts.py layers [--shapes A B C D] [--routing uniform zipf] [--dtype float32]
    OMP_PROC_BIND=true python benchmarks/experts.py switchhead [--models moeut-44m …] [--tokens 4096]
    OMP_PROC_BIND=true python benchmarks/experts.py decoding [--rows 1 8 64]
    python benchmarks/experts.py memory
    python benchmarks/experts.py                       all of them

Variants take turns in one process; medians are reported, as shares of a ceiling measured in the same run: a dense
product with the same multiplications, or reading as many bytes. A variant whose outputs or gradients differ from the
reference's is reported as wrong, without a time. OMP_PROC_BIND keeps the two threads on two cores: without it a single
other process can make a product many times slower. On a machine that others use as well, `--threads 1 --clock cpu`
counts the processor time of one thread instead.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from measure.layers import choose, close, run_both, run_forward
from measure.machine import CLOCKS, medians
from torch import Tensor

from moeut.experts import ExpertBackend, Routes, expert_linear, expert_mlp
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.presets import PRESETS

OURS: tuple[ExpertBackend, ...] = ("cpu", "native")
PAPER = [name for name in PRESETS if name.startswith("moeut-")]


@dataclass(frozen=True)
class Shape:
    """Tokens N, hidden size D, experts E, expert size S, experts per token K."""

    tokens: int
    hidden_size: int
    num_experts: int
    expert_size: int
    num_experts_per_tok: int


SHAPES = {
    "A": Shape(4096, 412, 155, 128, 12),  # the paper's 44M model
    "B": Shape(4096, 1024, 387, 128, 16),  # the paper's 244M model
    "C": Shape(2048, 256, 64, 64, 8),
    "D": Shape(512, 128, 32, 32, 4),
}


@dataclass(frozen=True)
class Timing:
    """How often, with which clock and how many threads."""

    repetitions: int
    clock: Callable[[], float]

    def medians(self, variants: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Seconds of each variant, which take turns."""
        return medians(variants, self.repetitions, self.clock)


def mlp_leaves(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, up and down, scaled so that outputs are of order one."""
    N, D, E, S, K = (getattr(shape, name) for name in shape.__dataclass_fields__)
    x, up, down = torch.randn(N, D), torch.randn(E, D, S) / D**0.5, torch.randn(E, S, D) / (K * S) ** 0.5
    return x.to(dtype), up.to(dtype), down.to(dtype)


def our_mlp(x: Tensor, up: Tensor, down: Tensor, gates: Tensor, *, expert: Tensor, backend: ExpertBackend) -> Tensor:
    """Sorting included: in a model it is done once for each selection."""
    return expert_mlp(x, up, down, Routes(expert, up.shape[0]), gates.flatten(), backend=backend)


def our_linear(
    x: Tensor, weight: Tensor, gates: Tensor, *, routes: Routes, backend: ExpertBackend, outputs: int
) -> Tensor:
    return expert_linear(x, weight, routes, gates.flatten(), outputs, backend=backend)


def masked_loop(x: Tensor, up: Tensor, down: Tensor, gates: Tensor, expert: Tensor) -> Tensor:
    """A loop over experts that finds the tokens of each in a one-hot mask, as transformers writes its mixtures."""
    y = torch.zeros_like(x)
    mask = torch.nn.functional.one_hot(expert, up.shape[0]).permute(2, 1, 0)
    for e in mask.sum((1, 2)).nonzero()[:, 0]:
        choice, token = torch.where(mask[e])
        hidden = torch.relu(x[token] @ up[e])
        y.index_add_(0, token, (hidden @ down[e] * gates[token, choice, None]).to(y.dtype))
    return y


def compare(
    name: str, variants: dict[str, Callable[..., Tensor]], leaves: tuple[Tensor, ...],
    ceiling: Callable[..., Tensor], ceiling_leaves: tuple[Tensor, ...], macs: int, timing: Timing,
) -> None:  # fmt: skip
    """Print one table row a variant: its share of the ceiling, forward and forward + backward, and its FLOP/s."""
    expected = run_both(variants["reference"], leaves)
    limit = 1e-4 if expected[0].dtype == torch.float32 else 3e-2
    wrong = [variant for variant, layer in variants.items() if not close(run_both(layer, leaves), expected, limit)]
    del expected
    right = {variant: layer for variant, layer in variants.items() if variant not in wrong}
    results = []
    for run in (run_forward, run_both):
        runs = {variant: partial(run, layer, leaves) for variant, layer in right.items()}
        results.append(timing.medians({"dense": partial(run, ceiling, ceiling_leaves), **runs}))
    forward, both = results
    for variant in forward:
        shares = f"{forward['dense'] / forward[variant]:.2f} | {both['dense'] / both[variant]:.2f}"
        times = f"{1e3 * forward[variant]:.2f} | {1e3 * both[variant]:.2f}"
        rates = f"{2e-9 * macs / forward[variant]:.0f} | {6e-9 * macs / both[variant]:.0f}"
        print(f"| {name} | {variant} | {shares} | {times} | {rates} |", flush=True)
    for variant in wrong:
        print(f"| {name} | {variant} | WRONG |", flush=True)


TABLE = (
    "| layer | variant | share, forward | share, forward + backward | ms | ms | GFLOP/s | GFLOP/s |\n"
    "|---|---|---|---|---|---|---|---|"
)


def layers(shapes: list[str], routings: list[str], dtype: torch.dtype, rivals: bool, timing: Timing) -> None:
    """σ-MoE layers."""
    print(TABLE)
    for name in shapes:
        for routing in routings:
            torch.manual_seed(0)
            shape = SHAPES[name]
            K, S, E, D = shape.num_experts_per_tok, shape.expert_size, shape.num_experts, shape.hidden_size
            gates, expert = choose(shape.tokens, E, K, routing)
            x, up, down = mlp_leaves(shape, dtype)
            variants: dict[str, Callable[..., Tensor]] = {
                backend: partial(our_mlp, expert=expert, backend=backend) for backend in (*OURS, "reference")
            }
            if rivals:
                variants["masked loop"] = partial(masked_loop, expert=expert)
            width = K * S
            wide = (x, torch.randn(D, width).to(dtype), torch.randn(width, D).to(dtype))
            compare(
                f"{name}, {routing}", variants, (x, up, down, gates),
                lambda x, up, down: torch.relu(x @ up) @ down, wide, 2 * shape.tokens * D * width, timing,
            )  # fmt: skip


def switchhead(models: list[str], tokens: int, timing: Timing) -> None:
    """SwitchHead's value and output projections, and the σ-MoE, of the paper's models."""
    print(TABLE)
    for name in models:
        torch.manual_seed(0)
        config = PRESETS[name].model
        attention, moe, D = config.attention, config.feed_forward, config.hidden_size
        assert isinstance(attention, SwitchHeadConfig)
        assert isinstance(moe, SigmaMoEConfig)
        H, A, K, P = (
            attention.num_attention_heads, attention.num_experts, attention.num_experts_per_tok, attention.head_dim
        )  # fmt: skip
        gates, within = choose(tokens * H, A, K)
        expert = within.view(tokens, H, K) + torch.arange(H)[:, None] * A
        routes = Routes(expert, H * A)
        for kind, rows, outputs, I, O in (
            ("values", tokens, tokens * H, D, P),
            ("outputs", tokens * H, tokens, P, D),
        ):
            leaves = (torch.randn(rows, I), torch.randn(H * A, I, O) / I**0.5, gates)
            compare(
                f"{name}, {kind}",
                {b: partial(our_linear, routes=routes, backend=b, outputs=outputs) for b in (*OURS, "reference")},
                leaves,
                lambda x, weight: x @ weight, (torch.randn(tokens * H * K, I), torch.randn(I, O)),
                tokens * H * K * I * O, timing,
            )  # fmt: skip


def decode(leaves: tuple[Tensor, ...], left: list[Tensor], backend: ExpertBackend) -> Tensor:
    """One layer for a few tokens, with other experts at every call."""
    with torch.no_grad():
        return our_mlp(*leaves, expert=left.pop(), backend=backend)


def decoding(rows: list[int], names: list[str], timing: Timing) -> None:
    """A few tokens: reading the experts' matrices takes the time. The ceiling is reading as many bytes in a row."""
    print("| layer | rows | MB read | variant | ms | share of reading |\n|---|---|---|---|---|---|")
    for name in names:
        shape = SHAPES[name]
        E, K = shape.num_experts, shape.num_experts_per_tok
        _, up, down = mlp_leaves(shape, torch.float32)
        for count in rows:
            x, gates = torch.randn(count, shape.hidden_size), torch.rand(count * K)
            turns = [choose(count, E, K, "uniform")[1] for _ in range(timing.repetitions + 1)]
            used = median(len(expert.unique()) for expert in turns)
            numbers = int(used) * 2 * shape.hidden_size * shape.expert_size
            weights = torch.cat([up.flatten(), down.flatten()])

            def read(numbers: int = numbers, weights: Tensor = weights) -> Tensor:
                start = int(torch.randint(max(1, len(weights) - numbers), ()))
                return weights[start : start + numbers].sum()

            leaves = (x, up, down, gates)
            runs = {backend: partial(decode, leaves, list(turns), backend) for backend in OURS}
            times = timing.medians({"read": read, **runs})
            for variant, taken in times.items():
                print(
                    f"| {name} | {count} | {4e-6 * numbers:.1f} | {variant} | {1e3 * taken:.3f} "
                    f"| {times['read'] / taken:.2f} |",
                    flush=True,
                )  # fmt: skip


def memory(names: list[str]) -> None:
    """Peak memory of a training step of one layer beyond inputs, outputs and gradients."""
    print("| layer | variant | MB beyond inputs, outputs and gradients |\n|---|---|---|")
    for name in names:
        for variant in (*OURS, "dense"):
            print(f"| {name} | {variant} | {extra_megabytes(SHAPES[name], variant):.0f} |", flush=True)


def extra_megabytes(shape: Shape, variant: str) -> float:
    """Read from Linux's count for this process, which must not use memory freed before: a process of its own."""
    import subprocess

    settings = [str(value) for value in (variant, *(getattr(shape, field) for field in shape.__dataclass_fields__))]
    done = subprocess.run(
        [sys.executable, __file__, "one-step", *settings], capture_output=True, text=True, check=True
    )  # fmt: skip
    return float(done.stdout)


def one_step(variant: str, shape: Shape) -> float:
    """MB that a step adds to the process at its peak, less the output and the gradients."""
    step_of(variant, Shape(8, 8, 2, 8, 1))()  # libraries load much at the first call
    N, D, E, S, K = (getattr(shape, name) for name in shape.__dataclass_fields__)
    results = 2 * N * D + 2 * D * S * (K if variant == "dense" else E)
    return (peak_bytes(step_of(variant, shape)) - 4 * results) / 1e6


def step_of(variant: str, shape: Shape) -> Callable[[], None]:
    """Forward and backward of one layer."""
    gates, expert = choose(shape.tokens, shape.num_experts, shape.num_experts_per_tok, "uniform")
    width = shape.num_experts_per_tok * shape.expert_size
    x, up, down = mlp_leaves(shape, torch.float32)
    if variant == "dense":
        up, down = torch.randn(shape.hidden_size, width), torch.randn(width, shape.hidden_size)
    x, up, down, gates = (leaf.requires_grad_() for leaf in (x, up, down, gates))
    dy = torch.randn(shape.tokens, shape.hidden_size)

    def step() -> None:
        if variant == "dense":
            y = torch.relu(x @ up) @ down
        else:
            routes = Routes(expert, shape.num_experts)
            y = expert_mlp(x, up, down, routes, gates.flatten(), backend=variant)  # pyright: ignore[reportArgumentType]
        y.backward(dy)

    return step


def peak_bytes(run: Callable[[], object]) -> int:
    """How far the memory of this process rises above where it was, as Linux counts it."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(dict(line.split(":", 1) for line in lines)[field].split()[0])

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["one-step"]:
        print(one_step(arguments[1], Shape(*map(int, arguments[2:]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["layers", "switchhead", "decoding", "memory"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--routing", nargs="+", choices=["uniform", "zipf"], default=["uniform"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--no-rivals", action="store_true", help="leave out the masked loop, which is slow")
    parser.add_argument("--models", nargs="+", choices=PAPER, default=PAPER[:3])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    timing = Timing(chosen.repetitions, CLOCKS[chosen.clock])
    print(f"{torch.__version__}, {chosen.threads} threads, {chosen.clock} time, medians of {chosen.repetitions}\n")
    if chosen.what in (None, "layers"):
        layers(chosen.shapes, chosen.routing, getattr(torch, chosen.dtype), not chosen.no_rivals, timing)
    if chosen.what in (None, "switchhead"):
        switchhead(chosen.models, chosen.tokens, timing)
    if chosen.what in (None, "decoding"):
        decoding(chosen.rows, [name for name in chosen.shapes if name in "AB"], timing)
    if chosen.what in (None, "memory"):
        memory([name for name in chosen.shapes if name in "AB"])


if __name__ == "__main__":
    main(sys.argv[1:])
