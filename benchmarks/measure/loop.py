"""What does the training loop add to forward, backward and optimizer of the same model?

The loop is `moeut.training.loop.train` with what `moeut train` gives it: the reporter writes `metrics.jsonl` and counts
which experts are chosen, gradients are clipped, losses are looked at. It asks for a sample after every step, and that
is when a copy of the model takes a bare step on the same batch: the two take turns, in one process. All that passes
between two bare steps is the loop's. Evaluations and checkpoints are left out; they come as often as one asks for them.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from moeut.data.sampler import Batches, Blocks
from moeut.data.tokens import TokenStream
from moeut.evaluation.perplexity import Perplexity
from moeut.model.language_model import LanguageModel
from moeut.presets import run_preset
from moeut.training import loop
from moeut.training.checkpoint import Checkpointer
from moeut.training.distributed import Ranks
from moeut.training.health import RouteCounts, router_sizes
from moeut.training.machine import peak_memory_bytes
from moeut.training.optimizer import build_optimizer
from moeut.training.progress import Progress
from moeut.training.report import METRICS, Reporter
from moeut.training.trackers import LinesFile

WARMUP = 3


@dataclass
class Turns:
    """Takes a bare step whenever the loop asks for a sample; notes its time and that of the loop."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    clock: Callable[[], float]
    bare: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)
    left: float = 0.0

    def __call__(self) -> str:
        came = self.clock()
        self.loop.append(came - self.left)
        inputs, targets = map(torch.from_numpy, self.batches.batch(len(self.bare)))
        started = self.clock()
        self.optimizer.zero_grad()
        self.model(inputs, targets).loss.backward()
        self.optimizer.step()
        self.left = self.clock()
        self.bare.append(self.left - started)
        return ""


@dataclass(frozen=True)
class Overhead:
    """Medians, in seconds, and the median over pairs of loop / bare."""

    preset: str
    tokens: int
    bare: float
    loop: float
    ratio: float


def overhead(preset: str, batch_size: int, context_length: int, steps: int, clock: Callable[[], float]) -> Overhead:
    """Measure one preset on random tokens, after a few steps to warm up."""
    config = run_preset(preset, "")
    num_steps = WARMUP + steps + 1  # saving and evaluating follow the last
    training = replace(
        config.training, num_steps=num_steps, batch_tokens=batch_size * context_length, context_length=context_length,
        schedule=replace(config.training.schedule, warmup_steps=0), sample_every_steps=1,
        evaluate_every_steps=num_steps, save_every_steps=num_steps, precision="float32",
    )  # fmt: skip
    torch.manual_seed(0)
    model, ranks = LanguageModel(config.model), Ranks()
    bare = copy.deepcopy(model)
    optimizer = build_optimizer(model, training.optimizer)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, 64 * training.batch_tokens, np.int64)
    batches = Batches(Blocks(TokenStream([tokens], np.zeros((0, 2), np.int64)), context_length), batch_size)
    turns = Turns(bare, build_optimizer(bare, training.optimizer), batches, clock)
    with tempfile.TemporaryDirectory() as folder, Progress(quiet=True) as progress:
        run = Path(folder)
        with Reporter(
            [LinesFile(run / METRICS)], progress, num_steps=num_steps, tokens_per_step=training.batch_tokens,
            every=training.report_every_steps, peak_memory_bytes=lambda: peak_memory_bytes(ranks.device),
            routes=RouteCounts(config.model, ranks) if router_sizes(config.model) else None,
        ) as reporter:  # fmt: skip
            checkpointer = Checkpointer(run, model, optimizer, keep=1, notice=reporter.notice, ranks=ranks)
            loop.train(
                training, model, batches, optimizer, lambda: Perplexity(0.0, 1.0, 0.0, 1, 1, 0.0), turns, reporter,
                checkpointer, ranks,
            )  # fmt: skip
    pairs = list(zip(turns.loop, turns.bare, strict=True))[WARMUP:-1]
    return Overhead(
        preset, training.batch_tokens, median(bare for _, bare in pairs), median(loop for loop, _ in pairs),
        median(loop / bare for loop, bare in pairs),
    )  # fmt: skip
