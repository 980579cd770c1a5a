"""Who learns Shakespeare faster, nanoGPT or a MoEUT? Characters, contexts of 64, the same threads, the same time.

nanoGPT is its own `model.py`, trained as its README trains on a CPU: `config/train_shakespeare_char.py` with 4 layers,
4 heads, 128 channels, no dropout, 2,000 iterations of 12 × 64 characters. The MoEUT is a preset, trained by
`moeut.train`. Its number of steps is what fits: steps of both are timed in turn, and it gets `share` of the time of
nanoGPT's iterations. Both try the same learning rates.

Of nanoGPT's time only its iterations count, of ours all that happens in `moeut.train`: reading the data, evaluating,
saving. Scored are, for both, all characters of the last tenth of the text but its first, in the same blocks of 64.
"""

import contextlib
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import moeut
from moeut.config import RunConfig
from moeut.data.prepare import prepare
from moeut.data.recipe import HeldOutSources, RecipeConfig
from moeut.data.sampler import Batches, Blocks
from moeut.data.sources import FilesSource
from moeut.data.tokenizer import BytesTokenizer
from moeut.data.tokens import open_prepared
from moeut.model.folder import load_model
from moeut.presets import run_preset
from moeut.training.distributed import Ranks
from moeut.training.guard import Guard
from moeut.training.optimizer import build_optimizer
from moeut.training.report import read_metrics
from moeut.training.step import training_step

from .machine import seconds

CONTEXT = 64
BATCH = 12
WARMUP = 100
POINTS = 4
"""So often is the validation loss looked at on the way."""

Clock = Callable[[], float]


class Run(NamedTuple):
    """A training: its seconds, the final loss in nats a character, and (seconds, loss) on the way."""

    name: str
    learning_rate: float
    parameters: int
    steps: int
    seconds: float
    loss: float
    curve: list[tuple[float, float]]


@dataclass(frozen=True)
class Text:
    """A text as character numbers, split as nanoGPT splits it: the last tenth is for validation."""

    characters: str

    def __post_init__(self) -> None:
        """Refuse what has bytes that are no characters: the preset reads bytes."""
        if not self.characters.isascii():
            raise ValueError("the text is not ASCII: a byte would be no character")

    @property
    def parts(self) -> tuple[str, str]:
        """For training, for validation."""
        cut = int(0.9 * len(self.characters))
        return self.characters[:cut], self.characters[cut:]

    @property
    def alphabet(self) -> str:
        return "".join(sorted(set(self.characters)))

    def numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Both parts as places in the alphabet: nanoGPT's tokens."""
        place = np.zeros(128, np.int64)
        place[np.frombuffer(self.alphabet.encode(), np.uint8)] = np.arange(len(self.alphabet))
        train, validation = (place[np.frombuffer(part.encode(), np.uint8)] for part in self.parts)
        return train, validation


def score(logits: Callable[[Tensor], Tensor], tokens: NDArray[np.int64]) -> float:
    """Mean −ln p of all tokens but the first, in blocks that follow each other, each predicted on its own."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 128 * CONTEXT):
            piece = torch.from_numpy(tokens[start : start + 128 * CONTEXT + 1])
            whole = (len(piece) - 1) // CONTEXT * CONTEXT
            for inputs, targets in (
                (piece[:whole].view(-1, CONTEXT), piece[1 : whole + 1]),
                (piece[None, whole:-1], piece[whole + 1 :]),
            ):
                if len(targets):
                    total += cross_entropy(logits(inputs).flatten(0, 1), targets, reduction="sum").item()
    return total / (len(tokens) - 1)


class NanoGPT:
    """nanoGPT's model and optimizer, at one learning rate."""

    def __init__(self, module: ModuleType, text: Text, learning_rate: float, iterations: int) -> None:
        torch.manual_seed(1337)
        self.train, self.validation = text.numbers()
        self.learning_rate, self.iterations = learning_rate, iterations
        config = module.GPTConfig(
            block_size=CONTEXT, vocab_size=len(text.alphabet), n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it says how large it is
            self.model: nn.Module = module.GPT(config)
            self.optimizer = self.model.configure_optimizers(0.1, learning_rate, (0.9, 0.99), "cpu")  # pyright: ignore[reportCallIssue]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def rate(self, iteration: int) -> float:
        """Warm-up, then a cosine down to a tenth."""
        if iteration < WARMUP:
            return self.learning_rate * (iteration + 1) / (WARMUP + 1)
        progress = (iteration - WARMUP) / max(self.iterations - WARMUP, 1)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))

    def step(self, iteration: int) -> None:
        """One iteration, with the batch that it draws."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(iteration)
        starts = torch.randint(len(self.train) - CONTEXT, (BATCH,)).tolist()
        rows = torch.from_numpy(np.stack([self.train[start : start + CONTEXT + 1] for start in starts]))
        _, loss = self.model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> float:
        """On the validation part. The model gives all logits only where it is given targets."""
        self.model.eval()
        loss = score(lambda inputs: self.model(inputs, torch.zeros_like(inputs))[0], self.validation)
        self.model.train()
        return loss

    def run(self, clock: Clock) -> Run:
        """All iterations; the clock stands still while the loss is looked at."""
        spent, curve = 0.0, []
        for iteration in range(self.iterations):
            spent += seconds(partial(self.step, iteration), clock)
            if (iteration + 1) % max(self.iterations // POINTS, 1) == 0 or iteration + 1 == self.iterations:
                curve.append((spent, self.loss()))
        return Run("nanoGPT", self.learning_rate, self.parameters, self.iterations, spent, curve[-1][1], curve)


def model_module(checkout: Path) -> ModuleType:
    """nanoGPT's `model.py`. Raises ValueError where the checkout has none."""
    file = checkout / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{checkout}: no model.py here; clone https://github.com/karpathy/nanoGPT")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepared(text: Text, folder: Path) -> Path:
    """The text as our trainer reads it, with the same part held out."""
    sources = []
    for name, part in zip(("train", "validation"), text.parts, strict=True):
        (folder / f"{name}.txt").write_text(part, encoding="ascii", newline="")
        sources.append((FilesSource(paths=(str(folder / f"{name}.txt"),)),))
    train, validation = sources
    prepare(
        folder / "data",
        RecipeConfig(sources=train, held_out=HeldOutSources(sources=validation), tokenizer=BytesTokenizer()),
    )
    return folder / "data"


def with_training(config: RunConfig, learning_rate: float, num_steps: int) -> RunConfig:
    """The preset's run at another learning rate and length; its warm-up keeps its share."""
    training = config.training
    warmup = training.schedule.warmup_steps * num_steps // training.num_steps
    values: dict[str, Any] = {
        "num_steps": num_steps,
        "schedule": replace(training.schedule, warmup_steps=warmup),
        "optimizer": replace(training.optimizer, learning_rate=learning_rate),
        "evaluate_every_steps": -(-num_steps // POINTS),
        "save_every_steps": num_steps,
    }
    return replace(config, training=replace(training, **values))


def relative_step_time(config: RunConfig, rival: NanoGPT, pairs: int, clock: Clock) -> float:
    """A step of ours in iterations of nanoGPT: medians of steps that take turns."""
    training = config.training
    model = moeut.LanguageModel(config.model)
    optimizer = build_optimizer(model, training.optimizer)
    batches = Batches(Blocks(open_prepared(config.data).train, training.context_length), training.batch_size)

    def step(number: int) -> None:
        training_step(model, optimizer, batches.batch(number), 1e-4, training, Ranks(), Guard())

    ours, theirs = [], []
    for number in range(pairs + 3):
        ours.append(seconds(partial(step, number), clock))
        theirs.append(seconds(partial(rival.step, number), clock))
    return median(ours[3:]) / median(theirs[3:])


def ours(config: RunConfig, text: Text, folder: Path, clock: Clock) -> Run:
    """A run of `moeut.train`."""
    training = config.training
    spent = seconds(lambda: moeut.train(config, folder, device="cpu", quiet=True), clock)
    model = load_model(folder / "final")
    model.eval()
    # Byte b is token b + 1.
    validation = np.frombuffer(text.parts[1].encode(), np.uint8).astype(np.int64) + 1
    loss = score(lambda inputs: model(inputs).logits, validation)
    lines = read_metrics(folder)
    steps = {line["step"]: line["cross_entropy"] for line in lines if line["split"] == "held_out"}
    curve = [(spent * step / training.num_steps, value) for step, value in steps.items()]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Run("MoEUT", training.optimizer.learning_rate, parameters, training.num_steps, spent, loss, curve)


def race(
    checkout: Path, text: Text, place: Path, *, preset: str, learning_rates: list[float], iterations: int, share: float,
    pairs: int, clock: Clock,
) -> Iterator[Run]:  # fmt: skip
    """Each learning rate, nanoGPT and ours in turn, as they are done.

    Raises ValueError where the preset has more parameters than nanoGPT.
    """
    module = model_module(checkout)
    config = run_preset(preset, str(prepared(text, place)))
    relative = relative_step_time(config, NanoGPT(module, text, 1e-4, iterations), pairs, clock)
    num_steps = max(int(share * iterations / relative), 1)
    for learning_rate in learning_rates:
        yield NanoGPT(module, text, learning_rate, iterations).run(clock)
        yield ours(with_training(config, learning_rate, num_steps), text, place / f"{learning_rate:g}", clock)


def plot(runs: list[Run], png: Path) -> None:
    """Validation loss over time, a line a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    styles = dict(zip(sorted({run.learning_rate for run in runs}), ("-", "--", ":", "-."), strict=False))
    for run in runs:
        axes.plot(
            *zip(*run.curve, strict=True), styles.get(run.learning_rate, "-"), marker="o", markersize=4,
            color="tab:orange" if run.name == "MoEUT" else "tab:blue", label=f"{run.name}, {run.learning_rate:g}",
        )  # fmt: skip
    axes.set_xlabel("seconds")
    axes.set_ylabel("validation loss (nats per character)")
    axes.grid(alpha=0.3)
    axes.legend(title="learning rate")
    figure.savefig(png, format="png", dpi=120)
