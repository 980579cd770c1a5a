"""What does it cost to look inside? A pass that records everything, beside a plain evaluation of the same model.

    OMP_PROC_BIND=true python benchmarks/analysis.py [--presets tiny moeut-44m] [--tokens 16384]
    python benchmarks/analysis.py --threads 1 --clock cpu

Both read the same random tokens, in turn, in one process, in blocks of the preset's context; medians are reported. The
weights are random: what is counted costs the same whatever it says.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from measure.decoding import build
from measure.machine import CLOCKS, conditions, medians

from moeut.analysis import record
from moeut.data.sampler import evaluation_batches
from moeut.data.tokens import TokenStream
from moeut.evaluation.perplexity import evaluate
from moeut.experts import ExpertBackend
from moeut.presets import run_preset

AIM = 1.5
BATCH_SIZE = 8


def measure(
    preset: str, tokens: int, context_length: int, backend: ExpertBackend, repetitions: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of an `evaluation` and of a `recording`."""
    model = build(preset, backend)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, tokens + 1)
    stream = TokenStream([ids], np.array([[1, tokens]]))
    runs = {
        "evaluation": lambda: evaluate(model, stream, context_length, BATCH_SIZE),
        "recording": lambda: record(model, {"text": evaluation_batches(stream, context_length, BATCH_SIZE)}),
    }
    return medians(runs, repetitions, clock)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["nano", "tiny", "sut-tiny", "moeut-44m"])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--expert-backend", choices=get_args(ExpertBackend), default="native")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    print(f"{conditions(arguments.threads, arguments.clock)}; {arguments.repetitions} repetitions.")
    print(f"Command: `python benchmarks/analysis.py {shlex.join(words)}`. Aim: at most {AIM} times.\n", flush=True)
    print("| preset | tokens | context | evaluation, s | recording, s | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for preset in arguments.presets:
        context = run_preset(preset, data="").training.context_length
        found = measure(
            preset, arguments.tokens, context, arguments.expert_backend, arguments.repetitions, CLOCKS[arguments.clock]
        )
        print(
            f"| {preset} | {arguments.tokens:,} | {context:,} | {found['evaluation']:.2f} | {found['recording']:.2f} "
            f"| {found['recording'] / found['evaluation']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
