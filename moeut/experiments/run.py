"""How does a configuration become a run? Its parts are built and handed to the loop.

What lies in a run's folder: `moeut.experiments.run_folder`.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeut.config import RunConfig, run_config
from moeut.evaluation.perplexity import Perplexity
from moeut.experiments.parts import build, check, sample, score, summary
from moeut.experiments.resources import resolved
from moeut.experiments.run_folder import claimed
from moeut.model.cost import cost
from moeut.presets import run_preset
from moeut.training import loop
from moeut.training.checkpoint import Checkpointer
from moeut.training.distributed import Parallel, Ranks, ranks
from moeut.training.health import RouteCounts, router_sizes
from moeut.training.loop import TrainingResult
from moeut.training.machine import peak_flops, peak_memory_bytes
from moeut.training.precision import resolve_precision
from moeut.training.progress import Progress
from moeut.training.report import METRICS, SAMPLES, Reporter, finished
from moeut.training.retention import checkpoint_folder, checkpoints, damage
from moeut.training.trackers import LinesFile, TensorBoard, Tracker, WeightsAndBiases
from moeut.trees import to_tree
from moeut.validation import Tree, validate

HIGH_LEARNING_RATE = 0.1


def train(
    config: RunConfig | str,
    run: Path | str,
    *,
    data: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: str = "auto",
    device: str = "auto",
    parallel: Parallel = "auto",
    replicas: int = 1,
    compile: str | None = None,
    tensorboard: bool = False,
    wandb: str | None = None,
    quiet: bool = False,
) -> TrainingResult:
    """Train in the folder `run`, or go on there after an interruption.

    config: a whole configuration, or the name of a preset, which then needs `data`, a prepared folder, and takes
    `overrides` by dotted name, such as `{"training.num_steps": 100}`. resume: `auto` goes on from the newest complete
    checkpoint of this run if there is one; `never` refuses a folder that has one. device: see
    `moeut.training.distributed.pick_device`; parallel, replicas: see `parallelise` there. compile: backend of
    torch.compile, such as `inductor`; None: not compiled. wandb: the project to report to. A finished run is left as it
    is.

    Raises ValueError, one line a mistake, where the data is missing, damaged or too short, its tokenizer is not the
    model's, batch and ranks do not fit, the folder belongs to another configuration, or another process trains in it.
    """
    asked, run = _asked(config, data, overrides), Path(run)
    with ranks(device) as here, ExitStack() as stack:
        progress = stack.enter_context(Progress(quiet=quiet or not here.is_main))

        def resolve(given: RunConfig) -> RunConfig:
            return resolved(given, here, progress.warn)

        def begin() -> Tree:
            check(asked, here, parallel=parallel, replicas=replicas, compile=compile)
            return to_tree(stack.enter_context(claimed(run, asked, resume, resolve)))

        config = validate(RunConfig, here.on_main(begin))
        training = config.training
        scores = here.on_main(lambda: _scores_if_finished(run, training.num_steps))
        if scores is not None:
            progress.say(f"{run}: finished, all {training.num_steps:,} steps were done before; nothing to do")
            return TrainingResult(training.num_steps, Perplexity(**scores), None)
        fresh = here.on_main(lambda: not checkpoints(run))
        parts = build(config, here, parallel=parallel, replicas=replicas, compile=compile, fresh=fresh)
        reporter = stack.enter_context(_reporter(config, run, here, progress, tensorboard=tensorboard, wandb=wandb))
        progress.say(f"{run}: {summary(config, here)}")
        if here.is_main and training.optimizer.learning_rate > HIGH_LEARNING_RATE:
            progress.warn(
                f"training.optimizer.learning_rate: {training.optimizer.learning_rate:g} is too high to learn anything;"
                " 1e-4 to 1e-2 are usual"
            )
        checkpointer = Checkpointer(
            run, parts.model, parts.optimizer, keep=training.keep_checkpoints, notice=reporter.notice, ranks=here,
            seed=training.seed, tokenizer_folder=parts.data.folder,
            end_of_document_id=parts.data.manifest.end_of_document_id,
        )  # fmt: skip
        return loop.train(
            training,
            parts.module,
            parts.batches,
            parts.optimizer,
            lambda: score(config, parts, here, progress),
            lambda: sample(config, parts),
            reporter,
            checkpointer,
            here,
        )


def _asked(config: RunConfig | str, data: str | None, overrides: Mapping[str, Any] | None) -> RunConfig:
    if isinstance(config, RunConfig):
        return config
    if data is None:
        raise ValueError("data: name the prepared folder to train on")
    values = [(name, json.dumps(value)) for name, value in (overrides or {}).items()]
    return run_config(to_tree(run_preset(config, data=data)), None, values)


def _scores_if_finished(run: Path, num_steps: int) -> dict[str, Any] | None:
    last = checkpoint_folder(run, num_steps)
    if not last.is_dir() or damage(last) is not None:
        return None
    scores = finished(run, num_steps)
    return None if scores is None else asdict(scores)


def _reporter(
    config: RunConfig, run: Path, here: Ranks, progress: Progress, *, tensorboard: bool, wandb: str | None
) -> Reporter:
    training = config.training
    trackers: list[Tracker] = []
    if here.is_main:
        trackers.append(LinesFile(run / METRICS))
        if tensorboard:
            trackers.append(TensorBoard(run / "tensorboard"))
        if wandb is not None:
            trackers.append(WeightsAndBiases(run, wandb, to_tree(config)))
    samples = LinesFile(run / SAMPLES) if here.is_main and training.sample_every_steps is not None else None
    peak = peak_flops(here.device, resolve_precision(training.precision, here.device))
    flops_per_token = 2 * cost(config.model, training.context_length).training_macs_per_token
    return Reporter(
        trackers, progress, samples=samples, num_steps=training.num_steps, every=training.report_every_steps,
        tokens_per_step=training.batch_tokens,
        routes=RouteCounts(config.model, here) if router_sizes(config.model) else None,
        peak_memory_bytes=lambda: peak_memory_bytes(here.device),
        utilisation=None if peak is None else lambda rate: rate * flops_per_token / (peak * here.world_size),
    )  # fmt: skip
