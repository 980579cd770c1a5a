"""A training run so small that tests can afford many; also a program, so that tests can kill it.

`python tiny_run.py RUN STEPS KILLS SEED` trains in processes that die of SIGKILL at random moments, KILLS times, and
then lets one finish.
"""

import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # which the optimizer's first step loads: long before any process is forked

from moeut.data.sampler import Batches, Blocks
from moeut.data.tokens import TokenStream
from moeut.evaluation.perplexity import Share, evaluate
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.training.checkpoint import Checkpointer
from moeut.training.compilation import compile_layers
from moeut.training.distributed import Parallel, Ranks, parallelise
from moeut.training.health import RouteCounts
from moeut.training.loop import TrainingResult, train
from moeut.training.optimizer import OptimizerConfig, build_optimizer
from moeut.training.progress import Progress
from moeut.training.random_state import seed_all
from moeut.training.report import Reporter
from moeut.training.schedule import CosineSchedule
from moeut.training.trackers import LinesFile
from moeut.training.training_config import TrainingConfig

VOCAB_SIZE = 23
CALLS = 100_000
"""Moments at which a process may die: about those of four steps and two saves."""


def tiny_model(**changes: Any) -> ModelConfig:
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "group_size": 2,
        "attention": SwitchHeadConfig(num_attention_heads=2, head_dim=8, num_experts=3),
        "feed_forward": SigmaMoEConfig(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=8),
    }
    return ModelConfig(**settings | changes)


def tiny_training(**changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "num_steps": 20,
        "batch_tokens": 3 * 12,
        "context_length": 12,
        "evaluate_every_steps": 6,
        "save_every_steps": 4,
        "report_every_steps": 3,
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "schedule": CosineSchedule(warmup_steps=5),
    }
    return TrainingConfig(**settings | changes)


def token_stream(seed: int, num_documents: int = 40) -> TokenStream:
    """Documents in which each token hints at the next: one of three follows."""
    generator = np.random.default_rng(seed)
    stream, places = [0], []
    for _ in range(num_documents):
        noise = generator.integers(0, 3, generator.integers(5, 40))
        ids = 1 + (np.cumsum(noise + 1) % (VOCAB_SIZE - 1))
        places.append((len(stream), 2 * len(ids)))
        stream += [*ids.tolist(), 0]
    return TokenStream([np.array(stream, np.uint16)], np.array(places, np.int64))


def run_training(
    run: Path,
    training: TrainingConfig,
    model_config: ModelConfig | None = None,
    *,
    before_step: Callable[[int], object] = lambda step: None,
    quiet: bool = True,
    ranks: Ranks = Ranks(),  # noqa: B008 (immutable)
    parallel: Parallel = "auto",
    replicas: int = 1,
    compile: str | None = None,
    change: Callable[[LanguageModel], object] = lambda model: None,
) -> TrainingResult:
    """Build every part and train. before_step: called with the number of each batch that is read. change: called with
    the new model."""
    seed_all(training.seed)
    model_config = model_config or tiny_model()
    model = LanguageModel(model_config).to(ranks.device)
    change(model)
    model.stack.gradient_checkpointing = training.gradient_checkpointing
    if compile is not None:
        compile_layers(model, compile)
    module = parallelise(model, ranks, parallel, replicas)
    optimizer = build_optimizer(model, training.optimizer)

    class WatchedBatches(Batches):
        def batch(self, index: int, rows: slice = slice(None)):
            before_step(index)
            return super().batch(index, rows)

    batches = WatchedBatches(Blocks(token_stream(0), training.context_length), training.batch_size, training.seed)
    share = Share(ranks.rank, ranks.world_size, ranks.sum)
    held_out = partial(evaluate, model, token_stream(1), training.context_length, 16, share=share)
    with Progress(quiet=quiet) as progress:
        reporter = Reporter(
            [LinesFile(run / "metrics.jsonl")] if ranks.is_main else [], progress, num_steps=training.num_steps,
            tokens_per_step=training.batch_tokens, every=training.report_every_steps,
            samples=LinesFile(run / "samples.jsonl") if ranks.is_main else None,
            routes=RouteCounts(model_config, ranks),
        )  # fmt: skip
        checkpointer = Checkpointer(
            run, model, optimizer, keep=training.keep_checkpoints, notice=reporter.notice, ranks=ranks,
            seed=training.seed,
        )  # fmt: skip
        with reporter:
            return train(
                training, module, batches, optimizer, held_out, lambda: f"{torch.rand(1).item()}", reporter,
                checkpointer, ranks,
            )  # fmt: skip


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run without what a clock said."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "tokens_per_second", "memory_bytes")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def final_state(run: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    """Weights, optimizer and the rest of a run's last checkpoint, without what a clock said."""
    state = json.loads((run / "final/training/state.json").read_text())
    sums = {k: v for k, v in state["report"]["sums"].items() if not k.endswith("seconds")}
    report = state["report"] | {"sums": sums}
    weights = (run / "final/model.safetensors").read_bytes()
    return weights, (run / "final/training/optimizer.safetensors").read_bytes(), state | {"report": report}


KILLED_RUN = {"save_every_steps": 2, "evaluate_every_steps": 9}
DROPOUT = 0.1


def kill_and_resume(run: Path, num_steps: int, kills: int, seed: int) -> None:
    """Train in processes that die at a random moment, `kills` times, then in one that lives."""
    generator = random.Random(seed)
    for _ in range(kills):
        status = os.waitpid(fork_training(run, num_steps, calls_to_live=generator.randrange(CALLS)), 0)[1]
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    status = os.waitpid(fork_training(run, num_steps, calls_to_live=None), 0)[1]
    sys.exit(os.waitstatus_to_exitcode(status))


def fork_training(run: Path, num_steps: int, calls_to_live: int | None) -> int:
    """A process that trains, without a second start of Python; this one must not have computed anything before.

    calls_to_live: it kills itself with SIGKILL at this call of any function, counted from the start of training.
    """
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)
    calls = itertools.count()

    def count(*event: object) -> None:
        if next(calls) == calls_to_live:
            os.kill(os.getpid(), signal.SIGKILL)

    if calls_to_live is not None:
        sys.setprofile(count)
    run_training(run, tiny_training(num_steps=num_steps, **KILLED_RUN), tiny_model(hidden_dropout=DROPOUT))
    sys.setprofile(None)
    os._exit(0)


if __name__ == "__main__":
    kill_and_resume(Path(sys.argv[1]), *map(int, sys.argv[2:]))
