"""What would a run be? Its configuration, sizes, memory and time, from its first three steps; nothing is written."""

import statistics
import time
from typing import Any

from moeut.config import RunConfig
from moeut.data.tokens import TokenStream
from moeut.evaluation.perplexity import evaluate
from moeut.experiments.parts import Parts, build, check, summary
from moeut.experiments.resources import resolved
from moeut.model.cost import cost
from moeut.training.distributed import Parallel, Ranks, ranks
from moeut.training.guard import Guard
from moeut.training.machine import peak_memory_bytes
from moeut.training.memory import peak_bytes
from moeut.training.progress import Progress
from moeut.training.report import human
from moeut.training.step import rows_of_rank, training_step
from moeut.trees import to_tree, to_yaml
from moeut.validation import validate

MEASURED_STEPS = 3


def dry_run(
    config: RunConfig,
    *,
    device: str = "auto",
    parallel: Parallel = "auto",
    replicas: int = 1,
    compile: str | None = None,
    quiet: bool = False,
) -> dict[str, Any] | None:
    """What a run of this configuration would be; None on ranks other than the main one.

    The arguments are those of `moeut.experiments.run.train`, and so are the errors. Expected seconds are the median of
    three steps, after one to warm up, for all steps, and the time of one batch of held-out text for all of it at every
    evaluation; saving is not counted.
    """
    with ranks(device) as here, Progress(quiet=quiet or not here.is_main) as progress:
        here.on_main(lambda: check(config, here, parallel=parallel, replicas=replicas, compile=compile))
        tree = here.on_main(lambda: to_tree(resolved(config, here, progress.warn)))
        config = validate(RunConfig, tree)
        training, rows = config.training, config.training.micro_batch_size
        assert rows != "auto"
        assert training.precision != "auto"
        costs = cost(config.model, training.context_length)
        progress.say(summary(config, here))
        parts = build(config, here, parallel=parallel, replicas=replicas, compile=compile)
        step_seconds = _step_seconds(config, parts, here, progress)
        tokens = len(parts.data.held_out) - 1
        evaluations = -(-training.num_steps // training.evaluate_every_steps)
        evaluation_seconds = _seconds_per_token(config, parts) * tokens / here.world_size
        facts = {
            "config": tree,
            "parameters": costs.parameters,
            "active_parameters": costs.active_parameters,
            "macs_per_token": costs.macs_per_token,
            "steps": training.num_steps,
            "tokens": training.num_steps * training.batch_tokens,
            "tokens_in_data": len(parts.data.train) - 1,
            "estimated_memory_bytes": peak_bytes(config.model, training, rows, training.precision),
            "process_memory_bytes": peak_memory_bytes(here.device),
            "step_seconds": step_seconds,
            "evaluations": evaluations,
            "evaluation_seconds": evaluation_seconds,
            "expected_seconds": training.num_steps * step_seconds + evaluations * evaluation_seconds,
        }
        return facts if here.is_main else None


def report(facts: dict[str, Any]) -> list[str]:
    """What a dry run prints."""
    config = validate(RunConfig, facts["config"])
    training = config.training
    epochs = facts["tokens"] / facts["tokens_in_data"]
    return [
        *to_yaml(config).splitlines(),
        "",
        f"parameters       {facts['parameters']:>15,}   active {facts['active_parameters']:,}",
        f"multiply-adds    {facts['macs_per_token']:>15,}   a token, forward, context {training.context_length:,}",
        f"memory           {human(facts['estimated_memory_bytes']):>15}   estimated, beside what is loaded anyway; "
        f"{human(facts['process_memory_bytes'])} was the peak of these steps in all",
        f"steps            {facts['steps']:>15,}   of {training.batch_tokens:,} tokens, "
        f"{training.micro_batch_size} of {training.batch_size} sequences at a time",
        f"tokens           {facts['tokens']:>15,}   {epochs:.2f} times the training text",
        f"time             {duration(facts['expected_seconds']):>15}   {facts['step_seconds']:.3f} s a step, "
        f"{facts['evaluations']:,} evaluations of {duration(facts['evaluation_seconds'])}",
        "nothing was written",
    ]


def duration(seconds: float) -> str:
    """A time in words: 12 s, 3 min 20 s, 5 h 2 min, 3 d 4 h."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days:.0f} d {hours % 24:.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{minutes:.0f} min {seconds % 60:.0f} s" if minutes else f"{seconds:.3g} s"


def _step_seconds(config: RunConfig, parts: Parts, here: Ranks, progress: Progress) -> float:
    guard = Guard.of(config.training.precision)
    parts.module.train()
    seconds: list[float] = []
    for step in range(1 + MEASURED_STEPS):
        rows = rows_of_rank(parts.batches, step, here)
        result = training_step(
            parts.module, parts.optimizer, rows, config.training.optimizer.learning_rate, config.training, here, guard
        )
        seconds.append(result.seconds)
        progress("measure", step + 1, 1 + MEASURED_STEPS)
    return statistics.median(seconds[1:])


def _seconds_per_token(config: RunConfig, parts: Parts) -> float:
    """Of one micro-batch of held-out text."""
    rows, length = config.training.micro_batch_size, config.training.context_length
    assert rows != "auto"
    tokens = parts.data.held_out.read(0, min(rows * length + 1, len(parts.data.held_out)))
    stream = TokenStream([tokens], parts.data.held_out.documents)
    started = time.perf_counter()
    evaluate(parts.model, stream, length, rows)
    return (time.perf_counter() - started) / (len(tokens) - 1)
