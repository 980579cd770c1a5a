"""How fast is training? The loop beside bare steps, a MoEUT beside nanoGPT, each variant beside the dense model.

    OMP_PROC_BIND=true python benchmarks/training.py [loop] [--presets nano tiny]
    OMP_PROC_BIND=true python benchmarks/training.py variants [--size 44m] [--variants moeut-44m]
    OMP_PROC_BIND=true python benchmarks/training.py nanogpt --checkout ../nanoGPT TEXT [--plot loss.png]

Results are lines of Markdown. What is compared takes turns in one process; medians are reported. OMP_PROC_BIND keeps
the two threads on two cores. On a machine that others use as well, `--threads 1 --clock cpu` counts processor time
instead. What each sub-command measures stands in `measure/`.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import torch
from measure import loop, nanogpt, variants
from measure.machine import CLOCKS, conditions

from moeut.experts import ExpertBackend

LOOP_TARGET = 0.03


def loop_report(arguments: argparse.Namespace, clock: Callable[[], float]) -> Iterator[str]:
    yield f"Bare: forward, backward, AdamW. Loop: all that passes between bare steps. Aim: at most {LOOP_TARGET:.0%}."
    yield ""
    yield "| preset | tokens a step | bare, ms | loop, ms | loop adds (median of pairs) |"
    yield "| --- | --- | --- | --- | --- |"
    for preset in arguments.presets:
        found = loop.overhead(preset, arguments.batch_size, arguments.context, arguments.repetitions, clock)
        yield (
            f"| {preset} | {found.tokens:,} | {1e3 * found.bare:.2f} | {1e3 * found.loop:.2f} | {found.ratio - 1:.1%} |"
        )


def variants_report(arguments: argparse.Namespace, clock: Callable[[], float]) -> Iterator[str]:
    known = variants.variants(arguments.size)
    names = [known[0], *(name for name in arguments.variants or known if name != known[0])]
    yield (
        f"{arguments.batch_size} × {arguments.context} tokens a step, float32, experts by {arguments.expert_backend}. "
        "MACs: multiply-accumulates of a token, forward and backward. Dense: times measured in turn with this variant."
    )
    yield ""
    yield "| preset | parameters | MACs a token | ms a step | tokens/s | time / dense | MACs/s / dense | memory |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for step in variants.measure(
        names, arguments.batch_size, arguments.context, arguments.expert_backend, arguments.repetitions, clock
    ):
        yield (
            f"| {step.name} | {step.parameters:,} | {step.macs_per_token / 1e6:.1f}M | {1e3 * step.seconds:,.0f} "
            f"| {step.tokens_per_second:,.0f} | {step.seconds / step.dense_seconds:.2f} "
            f"| {step.relative_macs_per_second:.2f} | {step.peak_bytes / 1e6:,.0f} MB |"
        )


def nanogpt_report(arguments: argparse.Namespace, clock: Callable[[], float]) -> Iterator[str]:
    text = nanogpt.Text(arguments.text.read_text(encoding="utf-8"))
    yield f"{len(text.characters):,} characters, the last tenth for validation; contexts of {nanogpt.CONTEXT}."
    yield ""
    yield "| model | learning rate | parameters | steps | seconds | validation loss (loss after seconds, on the way) |"
    yield "| --- | --- | --- | --- | --- | --- |"
    runs: list[nanogpt.Run] = []
    with tempfile.TemporaryDirectory() as place:
        for run in nanogpt.race(
            arguments.checkout, text, Path(place), preset=arguments.preset, learning_rates=arguments.learning_rates,
            iterations=arguments.iterations, share=arguments.share, pairs=arguments.repetitions, clock=clock,
        ):  # fmt: skip
            runs.append(run)
            curve = ", ".join(f"{loss:.3f} after {spent:.0f}" for spent, loss in run.curve)
            yield (
                f"| {run.name} | {run.learning_rate:g} | {run.parameters:,} | {run.steps:,} | {run.seconds:.1f} "
                f"| **{run.loss:.4f}** ({curve}) |"
            )
    yield ""
    yield verdict(runs)
    if arguments.plot is not None:
        nanogpt.plot(runs, arguments.plot)
        yield ""
        yield f"![Validation loss over seconds]({arguments.plot.name})"


def verdict(runs: list[nanogpt.Run]) -> str:
    """Who was better at its best, and whether that was fair."""
    theirs, ours = ([run for run in runs if run.name == name] for name in ("nanoGPT", "MoEUT"))
    best, rival = (min(some, key=lambda run: run.loss) for some in (ours, theirs))
    allowed = min(run.seconds for run in theirs)
    fair = best.seconds <= allowed and best.parameters <= rival.parameters
    return (
        f"Best of each: MoEUT {best.loss:.4f} with {best.parameters:,} parameters after {best.seconds:.1f} s, nanoGPT "
        f"{rival.loss:.4f} with {rival.parameters:,} after {rival.seconds:.1f} s (its fastest run: {allowed:.1f} s): "
        + (f"{rival.loss - best.loss:+.4f} for MoEUT." if fair else "NOT FAIR, the MoEUT had more time or parameters.")
    )


def parse(words: list[str]) -> argparse.Namespace:
    """The command line; without a sub-command it is `loop`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name: str, report: Callable[..., Iterator[str]], *, repetitions: int) -> argparse.ArgumentParser:
        added = commands.add_parser(name)
        added.set_defaults(name=name, report=report)
        added.add_argument("--repetitions", type=int, default=repetitions)
        added.add_argument("--threads", type=int, default=2)
        added.add_argument("--clock", choices=CLOCKS, default="wall")
        return added

    added = command("loop", loop_report, repetitions=40)
    added.add_argument("--presets", nargs="+", default=["nano", "tiny"])
    added.add_argument("--batch-size", type=int, default=8)
    added.add_argument("--context", type=int, default=128)
    added = command("variants", variants_report, repetitions=3)
    added.add_argument("--size", default="44m")
    added.add_argument("--variants", nargs="+", help="presets of that size; without it, all there are")
    added.add_argument("--expert-backend", choices=get_args(ExpertBackend), default="native")
    added.add_argument("--batch-size", type=int, default=2)
    added.add_argument("--context", type=int, default=256)
    added = command("nanogpt", nanogpt_report, repetitions=40)
    added.add_argument("--checkout", type=Path, required=True)
    added.add_argument("text", type=Path, metavar="TEXT")
    added.add_argument("--preset", default="shakespeare")
    added.add_argument("--learning-rates", nargs="+", type=float, default=[2e-3, 4e-3, 8e-3])
    added.add_argument("--iterations", type=int, default=2000)
    added.add_argument("--share", type=float, default=0.85)
    added.add_argument("--plot", type=Path)
    return parser.parse_args(words or ["loop"])


def main(words: list[str]) -> None:
    arguments = parse(words)
    torch.set_num_threads(arguments.threads)
    print(f"## {arguments.name}\n")
    print(f"{conditions(arguments.threads, arguments.clock)}; {arguments.repetitions} repetitions.")
    print(f"Command: `python benchmarks/training.py {shlex.join(words)}`.\n", flush=True)
    try:
        for line in arguments.report(arguments, CLOCKS[arguments.clock]):
            print(line, flush=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"skipped: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
