"""What does a training step of each variant cost? Time, multiply-accumulates and memory, beside the dense model's.

A variant and the dense model take turns in one process, and only these two are there. Peak memory is that of a process
of its own, which takes a few steps of the variant and nothing else.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import torch

from moeut.experts import ExpertBackend
from moeut.model.cost import cost
from moeut.model.language_model import LanguageModel
from moeut.presets import PRESETS, run_preset
from moeut.training.distributed import Ranks
from moeut.training.guard import Guard
from moeut.training.health import RouteCounts, router_sizes
from moeut.training.machine import peak_memory_bytes
from moeut.training.optimizer import build_optimizer
from moeut.training.step import training_step

from .machine import seconds

WARMUP = 1
MEMORY_STEPS = 3


@dataclass(frozen=True)
class Step:
    """A training step of a variant: its parameters, its tokens, the multiply-accumulates of a token forward and
    backward; seconds, and those of the dense model measured in turn with it; bytes that the process grew to at most."""

    name: str
    parameters: int
    tokens: int
    macs_per_token: int
    dense_macs_per_token: int
    seconds: float
    dense_seconds: float
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def relative_macs_per_second(self) -> float:
        """Multiply-accumulates a second, as a share of the dense model's."""
        return self.macs_per_token / self.dense_macs_per_token * self.dense_seconds / self.seconds


def variants(size: str) -> list[str]:
    """The presets of one size, the dense one first."""
    dense = f"dense-{size}"
    return [dense, *(name for name in PRESETS if name.endswith(f"-{size}") and name != dense)]


def stepper(name: str, batch_size: int, context_length: int, backend: ExpertBackend) -> Callable[[], object]:
    """Something that takes a whole training step of a preset on random tokens, routing health and clipping included."""
    config = run_preset(name, "")
    training = replace(
        config.training, batch_tokens=batch_size * context_length, context_length=context_length,
        micro_batch_size=batch_size, precision="float32",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LanguageModel(replace(config.model, expert_backend=backend))
    optimizer = build_optimizer(model, training.optimizer)
    routes = RouteCounts(config.model, Ranks()) if router_sizes(config.model) else None
    generator = np.random.default_rng(0)

    def step() -> None:
        tokens = generator.integers(0, config.model.vocab_size, (batch_size, context_length + 1))
        training_step(model, optimizer, (tokens[:, :-1], tokens[:, 1:]), 1e-4, training, Ranks(), Guard(), routes)

    return step


def memory(name: str, batch_size: int, context_length: int, backend: ExpertBackend) -> int:
    """Bytes that this process grows by until its peak; for a fresh process."""
    torch.set_num_threads(1)
    stepper("nano", 1, 8, backend)()  # what the first step imports is not the model's
    before = peak_memory_bytes(torch.device("cpu"))
    step = stepper(name, batch_size, context_length, backend)
    for _ in range(MEMORY_STEPS):
        step()
    return peak_memory_bytes(torch.device("cpu")) - before


def measure(
    names: list[str], batch_size: int, context_length: int, backend: ExpertBackend, repetitions: int,
    clock: Callable[[], float],
) -> Iterator[Step]:  # fmt: skip
    """Each preset in turn with the first, which is the dense one."""
    dense = names[0]
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(memory, (name, batch_size, context_length, backend))
        times: dict[str, list[float]] = {}
        steppers = {key: stepper(key, batch_size, context_length, backend) for key in dict.fromkeys((dense, name))}
        for _ in range(WARMUP + repetitions):
            for key, step in steppers.items():
                times.setdefault(key, []).append(seconds(partial(step), clock))
        middle = {key: median(measured[WARMUP:]) for key, measured in times.items()}
        of_name, of_dense = (cost(run_preset(key, "").model, context_length) for key in (name, dense))
        yield Step(
            name, of_name.parameters, batch_size * context_length, of_name.training_macs_per_token,
            of_dense.training_macs_per_token, middle[name], middle[dense], peak,
        )  # fmt: skip
