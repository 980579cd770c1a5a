"""What does it cost a training step to count which experts were chosen?

    python benchmarks/routing_health.py [--preset tiny] [--steps 60]

Steps that count and steps that do not take turns in one process, on the same tokens; each counting step also pays its
share of a line of the metrics, which adds up the counts. Compared are medians of the process's own processor time, which
other processes of a busy machine touch little.
"""

import argparse
import time
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from moeut.model.language_model import LanguageModel
from moeut.presets import run_preset
from moeut.training.distributed import Ranks
from moeut.training.guard import Guard
from moeut.training.health import RouteCounts
from moeut.training.optimizer import build_optimizer
from moeut.training.step import training_step


def measure(preset: str, sequences: int, steps: int) -> tuple[float, float, float]:
    """Processor seconds: median of a step that does not count, of one that does, and of adding up for a line."""
    config = run_preset(preset, data="")
    training = replace(config.training, batch_tokens=sequences * config.training.context_length)
    torch.manual_seed(0)
    model = LanguageModel(config.model)
    optimizer, routes = build_optimizer(model, training.optimizer), RouteCounts(config.model, Ranks())
    generator = np.random.default_rng(0)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    lines: list[float] = []
    for step in range(2 * (steps + 2)):
        if step % 2 == 0:
            tokens = generator.integers(0, config.model.vocab_size, (sequences, training.context_length + 1))
        # Which of the two is first on new tokens changes too.
        counting = (step + step // 2) % 2 == 0
        rows = tokens[:, :-1], tokens[:, 1:]
        started = time.process_time()
        training_step(model, optimizer, rows, 1e-4, training, Ranks(), Guard(), routes if counting else None)
        seconds[counting].append(time.process_time() - started)
        started = time.process_time()
        routes.health()
        lines.append(time.process_time() - started)
    return median(seconds[False][2:]), median(seconds[True][2:]), median(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    without, counting, line = measure(options.preset, options.sequences, options.steps)
    every = run_preset(options.preset, data="").training.report_every_steps
    print(
        f"{options.preset}, {options.sequences} sequences a step, {torch.get_num_threads()} threads, medians of "
        f"{options.steps}: {1000 * without:.2f} ms without, {1000 * counting:.2f} ms counting, {1000 * line:.3f} ms "
        f"a line every {every} steps: {(counting + line / every) / without - 1:+.2%}"
    )


if __name__ == "__main__":
    main()
