"""What does the whole path look like? Prepare, train, evaluate, compare with baselines, draw a curve, write a sample.

Everything happens in one folder, on the source code of the running Python's standard library; an interrupted demo goes
on where it stopped.
"""

import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple

from moeut.data.prepare import prepare
from moeut.data.recipe import RecipeConfig
from moeut.data.sources import StandardLibrarySource
from moeut.data.tokenizer import BpeTokenizer, decode
from moeut.data.tokens import PreparedData, open_prepared
from moeut.experiments.baselines import ByteTrigram, xz_bits_per_byte
from moeut.experiments.run import train
from moeut.generation.generate import GenerationConfig, generate
from moeut.model.cost import cost
from moeut.presets import run_preset
from moeut.training.curve import plot_curve
from moeut.training.progress import Progress

PROMPT = "class Stack:"
SAMPLE = GenerationConfig(max_new_tokens=150, temperature=0.6, top_p=0.9)


class Demonstration(NamedTuple):
    """What a demonstration found, or the signal that ended it early."""

    facts: dict[str, Any] | None
    interrupted_by: Signals | None


def demo(out: Path, *, quiet: bool = False, num_steps: int | None = None) -> Demonstration:
    """Run the demonstration in the folder `out`.

    num_steps: train so many steps instead of the preset's (for tests). Raises ValueError where `out` holds another
    demonstration.
    """
    started = time.monotonic()
    config = run_preset("tiny", data=str(out / "data"))
    if num_steps is not None:
        schedule = replace(config.training.schedule, warmup_steps=0)
        config = replace(config, training=replace(config.training, num_steps=num_steps, schedule=schedule))
    training = config.training
    with Progress(quiet=quiet) as progress:
        recipe = RecipeConfig(
            sources=(StandardLibrarySource(),), tokenizer=BpeTokenizer(vocab_size=config.model.vocab_size)
        )
        prepare(out / "data", recipe, progress=progress)
    result = train(config, out / "run", quiet=quiet)
    if result.interrupted_by is not None:
        return Demonstration(None, result.interrupted_by)
    assert result.held_out is not None
    with Progress(quiet=quiet) as progress:
        progress.say("comparing with xz and a byte 3-gram on the same documents")
        rivals = baselines(open_prepared(out / "data"))
    drawable = find_spec("matplotlib") is not None
    if drawable:
        plot_curve(out / "run", out / "curve.png")
    facts = {
        "bits_per_byte": {"moeut": result.held_out.bits_per_byte, **rivals},
        "parameters": cost(config.model).parameters,
        "active_parameters": cost(config.model).active_parameters,
        "tokens": training.num_steps * training.batch_size * training.context_length,
        "held_out_bytes": result.held_out.bytes,
        "sample": PROMPT + generate(out / "run" / "final", PROMPT, SAMPLE),
        "model": str(out / "run" / "final"),
        "curve": str(out / "curve.png") if drawable else None,
        "seconds": time.monotonic() - started,
    }
    return Demonstration(facts, None)


def baselines(data: PreparedData) -> dict[str, float]:
    """Bits per byte of `xz -9` and of an interpolated byte 3-gram on the held-out documents."""
    tokenizer = data.tokenizer()

    def documents(split: str) -> list[bytes]:
        stream = data.train if split == "train" else data.held_out
        return [
            decode(tokenizer, stream.document_tokens(number).tolist()).encode()
            for number in range(len(stream.documents))
        ]

    held_out = documents("held_out")
    return {
        "xz -9": xz_bits_per_byte(held_out),
        "byte 3-gram": ByteTrigram.fit(documents("train")).bits_per_byte(held_out),
    }


def report(facts: dict[str, Any]) -> list[str]:
    """What the demonstration prints."""
    ours = facts["bits_per_byte"]["moeut"]
    lines = [
        "",
        f"A MoEUT of {facts['parameters']:,} parameters ({facts['active_parameters']:,} active) after "
        f"{facts['tokens']:,} tokens of Python's standard library,",
        f"on {facts['held_out_bytes']:,} bytes of files it has never seen, in bits per byte (less is better):",
        "",
    ]
    for name, bits in facts["bits_per_byte"].items():
        bar = "█" * round(bits * 12)
        note = "" if name == "moeut" else f"  MoEUT needs {1 - ours / bits:.0%} less" if ours < bits else "  better"
        lines.append(f"  {name:<12} {bits:.3f}  {bar}{note}")
    lines += ["", "What it writes:", ""]
    lines += [f"  │ {line}" for line in facts["sample"].splitlines()]
    minutes, seconds = divmod(round(facts["seconds"]), 60)
    curve = facts["curve"] or "not drawn (pip install 'moeut[plot]')"
    lines += ["", f"{minutes} min {seconds} s; model {facts['model']}, loss curve {curve}"]
    return lines
