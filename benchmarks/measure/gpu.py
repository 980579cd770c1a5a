"""How is something timed on a GPU, and compared with what it must equal and with what is possible?"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from .layers import close, run_both, run_forward
from .machine import seconds

LIMIT = 3e-2  # of the largest error beside the largest value, in bfloat16


class Machine:
    """The device, how often to measure, and how long there is."""

    def __init__(self, minutes: float, repetitions: int, tiny: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.repetitions, self.tiny = repetitions, tiny
        self.end = time.perf_counter() + 60 * minutes

    def late(self, what: str, seconds: float = 20) -> bool:
        """Whether there is no time left for something that may take so long; says so."""
        if time.perf_counter() + seconds < self.end:
            return False
        print(f"\n{what}: left out, the minutes are over", flush=True)
        return True

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one run, as the device counts it."""
        if self.device.type == "cpu":
            return seconds(run)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return 1e-3 * start.elapsed_time(end)

    def medians(self, variants: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Seconds of each variant, which take turns; the first three turns warm up."""
        times: dict[str, list[float]] = {name: [] for name in variants}
        for repetition in range(3 + self.repetitions):
            for name, run in variants.items():
                taken = self.seconds(run)
                if repetition >= 3:
                    times[name].append(taken)
        return {name: median(measured) for name, measured in times.items()}

    def peak_megabytes(self, run: Callable[[], object]) -> float:
        """How far device memory rises above where it is."""
        if self.device.type == "cpu":
            return float("nan")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """The same as a CUDA graph: without the time that launching takes."""
        if self.device.type == "cpu":
            return run
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay


def compare(
    machine: Machine, name: str, variants: dict[str, Callable[..., Tensor]], leaves: tuple[Tensor, ...],
    ceiling: Callable[..., Tensor], ceiling_leaves: tuple[Tensor, ...], macs: int,
) -> None:  # fmt: skip
    """Print one table row a variant; the first variant is what the others must equal."""
    reference, *others = variants
    expected = run_both(variants[reference], leaves)
    wrong = [variant for variant in others if not close(run_both(variants[variant], leaves), expected, LIMIT)]
    del expected
    right = {variant: layer for variant, layer in variants.items() if variant in others and variant not in wrong}
    results = []
    for run in (run_forward, run_both):
        runs = {variant: partial(run, layer, leaves) for variant, layer in right.items()}
        results.append(machine.medians({"dense": partial(run, ceiling, ceiling_leaves), **runs}))
    forward, both = results
    for variant in forward:
        layer, inputs = (ceiling, ceiling_leaves) if variant == "dense" else (right[variant], leaves)
        megabytes = machine.peak_megabytes(lambda layer=layer, inputs=inputs: run_both(layer, inputs))
        print(
            f"| {name} | {variant} | {forward['dense'] / forward[variant]:.2f} | {both['dense'] / both[variant]:.2f} "
            f"| {1e3 * forward[variant]:.3f} | {1e3 * both[variant]:.3f} "
            f"| {6e-12 * macs / both[variant]:.0f} | {megabytes:.0f} |",
            flush=True,
        )
    for variant in wrong:
        print(f"| {name} | {variant} | WRONG |", flush=True)


TABLE = (
    "| layer | variant | share of dense, forward | forward + backward | ms | ms | TFLOP/s | peak MB with gradients |\n"
    "|---|---|---|---|---|---|---|---|"
)
