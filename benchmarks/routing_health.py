"""What does it cost a training step to count which experts were chosen?

    python benchmarks/routing_health.py [--preset tiny] [--steps 60]

Steps that count and steps that do not take turns in one process, on the same tokens: the median of the pairs' ratios.
Told beside it is the time spent in counting itself, whose share of a step is steadier than a difference of two nearly
equal steps, and that of adding the counts up for a line of the metrics. All of it is the process's own processor time.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from moeut.model.language_model import LanguageModel
from moeut.model.routing import Selection
from moeut.presets import run_preset
from moeut.training.distributed import Ranks
from moeut.training.guard import Guard
from moeut.training.health import RouteCounts
from moeut.training.optimizer import build_optimizer
from moeut.training.step import training_step


class TimedCounts(RouteCounts):
    """Counts, and how long each step's counting took."""

    seconds = 0.0

    def add(self, routing: Sequence[Mapping[str, Selection]]) -> None:
        started = time.process_time()
        super().add(routing)
        self.seconds += time.process_time() - started


class Costs(NamedTuple):
    """Processor seconds of a step that does not count, of its counting alone, of a line; a counting step's ratio."""

    step: float
    counting: float
    line: float
    ratio: float


def measure(preset: str, sequences: int, steps: int) -> Costs:
    """The medians of so many pairs of steps; the first two of each are not measured."""
    config = run_preset(preset, data="")
    training = replace(config.training, batch_tokens=sequences * config.training.context_length)
    torch.manual_seed(0)
    model = LanguageModel(config.model)
    optimizer, generator = build_optimizer(model, training.optimizer), np.random.default_rng(0)
    costs: list[Costs] = []
    for step in range(steps + 2):
        tokens = generator.integers(0, config.model.vocab_size, (sequences, training.context_length + 1))
        rows = tokens[:, :-1], tokens[:, 1:]
        routes, seconds = TimedCounts(config.model, Ranks()), {}
        # Which of the two comes first changes too.
        for counted in (routes, None) if step % 2 else (None, routes):
            started = time.process_time()
            training_step(model, optimizer, rows, 1e-4, training, Ranks(), Guard(), counted)
            seconds[counted is routes] = time.process_time() - started
        started = time.process_time()
        routes.health()
        costs.append(
            Costs(seconds[False], routes.seconds, time.process_time() - started, seconds[True] / seconds[False])
        )
    return Costs(*map(median, zip(*costs[2:], strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    costs = measure(options.preset, options.sequences, options.steps)
    every = run_preset(options.preset, data="").training.report_every_steps
    print(
        f"{options.preset}, {options.sequences} sequences a step, {torch.get_num_threads()} threads, {options.steps} "
        f"pairs: a step that counts takes {costs.ratio - 1:+.2%}"
    )
    print(
        f"counting alone {1000 * costs.counting:.3f} ms, a line every {every} steps {1000 * costs.line:.3f} ms: "
        f"together {(costs.counting + costs.line / every) / costs.step:.2%} of {1000 * costs.step:.2f} ms"
    )


if __name__ == "__main__":
    main()
