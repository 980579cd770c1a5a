"""How fast is generation? Tokens beside the time to read their weights, prompts, caches, and what `generate` adds.

    OMP_PROC_BIND=true python benchmarks/generation.py               all of it
    OMP_PROC_BIND=true python benchmarks/generation.py step [--batches 1 8 32] [--contexts 64 256 1024]
    OMP_PROC_BIND=true python benchmarks/generation.py compiled [--batches 1 8 32] [--contexts 64 256 1024]
    OMP_PROC_BIND=true python benchmarks/generation.py prefill [--batches 1 8 32] [--contexts 64 256 1024]
    OMP_PROC_BIND=true python benchmarks/generation.py uncached [--contexts 512]
    OMP_PROC_BIND=true python benchmarks/generation.py around [--contexts 64]

Results are lines of Markdown: a MoEUT with each expert backend, and the dense model of as many parameters. What is
compared takes turns in one process; medians are reported. Weights are random. OMP_PROC_BIND keeps the two threads on
two cores. On a machine that others use as well, `--threads 1 --clock cpu` counts processor time instead.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import decoding
from measure.machine import CLOCKS, conditions, medians, seconds

from moeut.experts import ExpertBackend
from moeut.generation.writing import Writer
from moeut.model.language_model import LanguageModel

BACKENDS: tuple[ExpertBackend, ...] = ("native", "cpu")
AIMS = {"native": 1.5, "cpu": 2.5}
Clock = Callable[[], float]


def models(arguments: argparse.Namespace) -> dict[str, LanguageModel]:
    """The models that are measured, by the names they have in the tables."""
    ours = {f"{arguments.preset}, {backend}": decoding.build(arguments.preset, backend) for backend in BACKENDS}
    return {**ours, arguments.rival: decoding.build(arguments.rival, "cpu")}


def step_report(arguments: argparse.Namespace, clock: Clock) -> Iterator[str]:
    aims = ", ".join(f"{aim:g} with {backend}" for backend, aim in AIMS.items())
    yield "A step of the model: one more token for each sequence. Reading: as many bytes as the step reads of weights,"
    yield "in a row: chosen experts at each executed layer; what all tokens meet once for each layer, or (in brackets)"
    yield f"once for each time that the layer runs. Aims at batch 1: {aims} times reading."
    yield ""
    yield "| model | batch | context | ms a step | ms a token | MB read | GB/s of reading | step / reading |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    subjects = models(arguments)
    for batch in arguments.batches:
        weights = {name: decoding.bytes_read(model, batch) for name, model in subjects.items()}
        for context in arguments.contexts:
            steps = {name: decoding.step(model, batch, context) for name, model in subjects.items()}
            reads = {f"{name} read": decoding.reading(weights[name].once) for name in subjects}
            taken = medians({**steps, **reads}, arguments.repetitions, clock)
            for name in subjects:
                each, read, (once, again) = taken[name], taken[f"{name} read"], weights[name]
                yield (
                    f"| {name} | {batch} | {context:,} | {1e3 * each:.2f} | {1e3 * each / batch:.2f} "
                    f"| {once / 1e6:.0f} ({again / 1e6:.0f}) | {once / read / 1e9:.1f} "
                    f"| {each / read:.2f} ({each / read * once / again:.2f}) |"
                )


def compiled_report(arguments: argparse.Namespace, clock: Clock) -> Iterator[str]:
    yield "A step of the model as one graph of torch.compile, made of PyTorch's own operations, with a StaticCache."
    yield ""
    yield "| model | batch | context | s to compile | ms a step | step / reading |"
    yield "| --- | --- | --- | --- | --- | --- |"
    model = decoding.build(arguments.preset, "cpu")
    for batch in arguments.batches:
        reading = decoding.reading(decoding.bytes_read(model, batch).once)
        for context in arguments.contexts:
            step = decoding.compiled_step(model, batch, context, calls=arguments.repetitions + 2)
            compilation = seconds(step, clock)
            taken = medians({"step": step, "reading": reading}, arguments.repetitions, clock)
            yield (
                f"| {arguments.preset}, cpu | {batch} | {context:,} | {compilation:.0f} | {1e3 * taken['step']:.2f} "
                f"| {taken['step'] / taken['reading']:.2f} |"
            )


def prefill_report(arguments: argparse.Namespace, clock: Clock) -> Iterator[str]:
    yield "A prompt into an empty cache, and the logits after it."
    yield ""
    yield "| model | batch | context | ms | tokens/s |"
    yield "| --- | --- | --- | --- | --- |"
    subjects = models(arguments)
    for batch in arguments.batches:
        for context in arguments.contexts:
            runs = {name: decoding.prefill(model, batch, context) for name, model in subjects.items()}
            repetitions = max(1, min(arguments.repetitions, arguments.most_tokens // (batch * context)))
            for name, each in medians(runs, repetitions, clock).items():
                yield f"| {name} | {batch} | {context:,} | {1e3 * each:,.1f} | {batch * context / each:,.0f} |"


def uncached_report(arguments: argparse.Namespace, clock: Clock) -> Iterator[str]:
    yield "One more token for one sequence, with a cache and by computing everything anew. Aim at 512 tokens: 20 times."
    yield ""
    yield "| model | context | cached, ms | anew, ms | anew / cached |"
    yield "| --- | --- | --- | --- | --- |"
    subjects = models(arguments)
    for context in arguments.contexts:
        runs = {f"{name} cached": decoding.step(model, 1, context) for name, model in subjects.items()}
        runs |= {f"{name} anew": decoding.recomputation(model, context) for name, model in subjects.items()}
        taken = medians(runs, arguments.repetitions, clock)
        for name in subjects:
            cached, anew = taken[f"{name} cached"], taken[f"{name} anew"]
            yield f"| {name} | {context:,} | {1e3 * cached:.2f} | {1e3 * anew:.1f} | {anew / cached:.1f} |"


def around_report(arguments: argparse.Namespace, clock: Clock) -> Iterator[str]:
    yield "What generate adds to the steps of the model: masks, sampling, bookkeeping. Sampled, one sequence."
    yield ""
    yield "| model | context | step, ms | generate, ms a token | generate adds, ms |"
    yield "| --- | --- | --- | --- | --- |"
    for context in arguments.contexts:
        for name, model in models(arguments).items():
            writer, prompt = Writer.wrap(model), decoding.tokens(model, 1, context)
            runs = {str(number): generation(writer, prompt, number) for number in (1, 1 + arguments.new_tokens)}
            taken = medians({"step": decoding.step(model, 1, context), **runs}, arguments.repetitions, clock)
            each = (taken[str(1 + arguments.new_tokens)] - taken["1"]) / arguments.new_tokens
            yield (
                f"| {name} | {context:,} | {1e3 * taken['step']:.2f} | {1e3 * each:.2f} "
                f"| {1e3 * (each - taken['step']):.2f} |"
            )


def generation(writer: Any, prompt: torch.Tensor, number: int) -> Callable[[], object]:
    """So many new tokens after a prompt."""
    return lambda: writer.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=number, min_new_tokens=number, do_sample=True,
        top_k=0,
    )  # fmt: skip


REPORTS: dict[str, Callable[[argparse.Namespace, Clock], Iterator[str]]] = {
    "step": step_report, "compiled": compiled_report, "prefill": prefill_report, "uncached": uncached_report,
    "around": around_report,
}  # fmt: skip
CONTEXTS = {"step": [64, 256, 1024], "compiled": [256], "prefill": [64, 256, 1024], "uncached": [512], "around": [64]}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=REPORTS, help="without it, all")
    parser.add_argument("--preset", default="moeut-44m")
    parser.add_argument("--rival", default="dense-44m")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--contexts", nargs="+", type=int, help="tokens before the next one")
    parser.add_argument("--new-tokens", type=int, default=32, help="around: how many are generated")
    parser.add_argument("--most-tokens", type=int, default=20_000, help="prefill: after so many, no more repetitions")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    print(f"{conditions(arguments.threads, arguments.clock)}; medians of {arguments.repetitions}.")
    print(f"Command: `python benchmarks/generation.py {shlex.join(words)}`.", flush=True)
    contexts = arguments.contexts
    for name in [arguments.what] if arguments.what else REPORTS:
        arguments.contexts = contexts or CONTEXTS[name]
        print(f"\n## {name}\n")
        for line in REPORTS[name](arguments, CLOCKS[arguments.clock]):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
