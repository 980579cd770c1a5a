"""What does `auto` mean on this machine? The precision, the code that multiplies with experts' matrices, and how many
sequences fit into memory at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from moeut.config import RunConfig
from moeut.experts import native, resolve_backend
from moeut.experts.compiling import compiler
from moeut.model.cost import cost
from moeut.training.distributed import Ranks
from moeut.training.health import router_sizes
from moeut.training.machine import free_memory_bytes, peak_flops
from moeut.training.memory import peak_bytes
from moeut.training.precision import resolve_precision
from moeut.training.report import human

USED_SHARE = 0.8
"""How much of the free memory a micro-batch may take: estimates err, and a machine has other things to do."""

WORTH_COMPILING_SECONDS = 300
"""A run expected to last longer has the experts' C++ compiled for it, which takes seconds."""

SHARE_OF_PEAK = 0.5
"""How fast a training is assumed to multiply, as a share of one large product's speed, before anything is measured."""

MEASURED_SECONDS = 0.2
"""For so long a large product's speed is measured; on a busy machine a few of them say little."""


def resolved(config: RunConfig, ranks: Ranks, notice: Callable[[str], None]) -> RunConfig:
    """The same configuration with something in the place of every `auto`; all processes on one CPU share its memory.

    micro_batch_size is the rank's whole share of a step, or the first of its halves that is estimated to fit.
    expert_backend is what `moeut.experts.resolve_backend` says, once `native` is compiled where the run is long enough
    for that; notice is told where it would be and cannot. Raises ValueError where not even one sequence fits.
    """
    if config.model.expert_backend == "auto" and router_sizes(config.model):
        backend = resolve_backend("auto", ranks.device)
        if backend == "cpu" and _compiled_because_worth_it(config, ranks, notice):
            backend = "native"
        config = replace(config, model=replace(config.model, expert_backend=backend))
    training = config.training
    precision = resolve_precision(training.precision, ranks.device)
    rows = training.micro_batch_size
    if rows == "auto":
        rows = training.batch_size // ranks.world_size
        processes = ranks.world_size if ranks.device.type == "cpu" else 1
        free = free_memory_bytes(ranks.device)
        while (needed := peak_bytes(config.model, training, rows, precision)) * processes > USED_SHARE * free:
            if rows == 1:
                raise ValueError(
                    f"training.micro_batch_size: one sequence at a time needs about {human(needed)}, and "
                    f"{human(free)} are free; shorten training.context_length, choose a smaller model, or say 1"
                )
            rows = -(-rows // 2)
    return replace(config, training=replace(training, precision=precision, micro_batch_size=rows))


def _compiled_because_worth_it(config: RunConfig, ranks: Ranks, notice: Callable[[str], None]) -> bool:
    [expected] = expected_seconds([config], ranks)
    if expected < WORTH_COMPILING_SECONDS:
        return False
    if compiler() is None:
        notice(
            f"expert backend cpu, because there is no C++ compiler (c++, g++ or clang++); with one, this run of about "
            f"{expected / 60:,.0f} minutes would be faster"
        )
        return False
    try:
        native.library()
    except ValueError as error:
        notice(f"expert backend cpu, because native cannot be had: {error}")
        return False
    return True


def expected_seconds(configs: Sequence[RunConfig], ranks: Ranks) -> list[float]:
    """Roughly how long the steps of each run take here: as fast as half of a large product on each device."""
    speed = SHARE_OF_PEAK * _macs_per_second(ranks.device) * ranks.world_size
    return [
        cost(config.model, config.training.context_length).training_macs_per_token
        * config.training.batch_tokens
        * config.training.num_steps
        / speed
        for config in configs
    ]


def _macs_per_second(device: torch.device) -> float:
    """Of a product of two square matrices, the best within a moment; of a GPU what its maker says, if that is known."""
    if (peak := peak_flops(device, "bfloat16")) is not None:
        return peak / 2
    size, dtype = (512, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    matrix, seconds = torch.ones(size, size, dtype=dtype, device=device), float("inf")
    until = time.perf_counter() + MEASURED_SECONDS
    while (started := time.perf_counter()) < until:
        torch.mm(matrix, matrix)[0, 0].item()  # waits for a GPU
        seconds = min(seconds, time.perf_counter() - started)
    return size**3 / seconds
