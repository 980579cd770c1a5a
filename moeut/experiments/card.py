"""What does a model say of itself to those who find it? A model card, README.md: of a run's checkpoints, or converted.

Front matter as the Hugging Face Hub reads it, then what is known of it: parts, size and computation, data, training,
how well held-out text is predicted, how to load it, what it is for, and its limits.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from moeut.config import RunConfig
from moeut.data.tokens import Manifest, read_manifest
from moeut.evaluation.perplexity import Perplexity
from moeut.experiments.describe import description, rows
from moeut.experiments.run_folder import run_of
from moeut.files import replacing
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.training.report import finished

CARD = "README.md"
SHOWN = ("parameters", "active", "multiply-adds", "weights", "cache", "layers", "width", "layer norm", "halting")
DIMENSIONS = (
    "num_attention_heads", "head_dim", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
    "intermediate_size",
)  # fmt: skip

INTRODUCTION = """A causal language model for the Python package `moeut` (Mixture-of-Experts Universal Transformers,
[arXiv 2405.16039](https://arxiv.org/abs/2405.16039))."""

USE = """```python
import moeut.hf  # pip install moeut
from transformers import pipeline

write = pipeline("text-generation", "PATH OR NAME OF THIS FOLDER")
print(write("Once upon a time", max_new_tokens=50)[0]["generated_text"])
```

`moeut generate FOLDER "Once upon a time"` does it in a terminal; `moeut.load_model(FOLDER)` is the bare model."""

INTENDED_USE = """Research on language models. It continues text of the kind that it was trained on. It has not been
taught to follow instructions or to hold a conversation."""

LIMITS = """It knows nothing but its training data, repeats their mistakes and prejudices, states what is false as
fluently as what is true, and may repeat passages that it has seen. Nothing was done to keep it from harmful text. What
it writes is to be checked before anybody relies on it."""

LENGTH = """It was trained on sequences of {:,} tokens; longer ones work, but it has learnt nothing for them."""

NO_LICENCE = """Nobody has stated one. Whoever publishes this model adds `license:` to the lines at the top of this
file, and is bound by the terms of the training data."""

CONVERTED_LICENCE = """That of the weights it was made of, which their file does not say. Whoever publishes this model
adds `license:` to the lines at the top of this file, and is bound by the terms of the training data."""

NO_TOKENIZER = """It has no tokenizer and takes token ids: `moeut.load_model(FOLDER)` is the bare model, and after
`import moeut.hf` it is one of transformers' `AutoModelForCausalLM`."""

TOLD = (
    "task", "stop_after", "batch_size", "lm.unroll", "optimizer", "adam.betas", "lr", "min_lr_multiplier", "lr_warmup",
    "wd", "grad_clip", "seed",
)  # fmt: skip
"""The arguments of the official training code that say how a model was trained."""


def write_cards(run: Path, license: str | None = None) -> None:
    """Write the card of the last and of the best checkpoint of a finished run, where there is no README.md yet.

    license: identifier of a licence, as the Hub spells them (`mit`, `apache-2.0`); None: the card says that nobody has
    stated one.
    """
    for folder in sorted({(run / name).resolve() for name in ("final", "best") if (run / name).exists()}):
        config, card, step = run_of(folder), folder / CARD, int(folder.name.removeprefix("step-"))
        if config is None or card.exists():
            continue
        scores, name = finished(run, step), run.resolve().name
        with replacing(card) as file:
            text = model_card(config, step, _manifest(config), scores, name=name, license=license)
            file.write_text(text, encoding="utf-8")


def model_card(
    config: RunConfig, step: int, manifest: Manifest | None, scores: Perplexity | None, *, name: str,
    license: str | None = None,
) -> str:  # fmt: skip
    """The card of the model that a run had after `step` steps.

    manifest: of the data it was trained on; scores: on the held-out part of them; each where it is known.
    """
    sections = {
        "Model": _model(config.model, config.training.context_length),
        "Training": _training(config, step, manifest),
        "Evaluation": _evaluation(config, scores),
        "How to use it": USE,
        "Intended use": INTENDED_USE,
        "Limits": f"{LIMITS} {LENGTH.format(config.training.context_length)}",
        "Licence": f"`{license}`" if license else NO_LICENCE,
    }
    return _card(config.model, sections, name, license)


def converted_card(
    model: LanguageModel, file: str, arguments: Mapping[str, Any] | None, notes: Sequence[str], *, name: str,
    has_tokenizer: bool,
) -> str:  # fmt: skip
    """The card of a model that was made of an official file.

    file: what it was made of, in words. arguments: what its run was told, as the file holds it; None: it holds weights
    alone. notes: what a user should know of how the file described its model.
    """
    sections = {
        "Model": _model(model.config, dtype=model.embedding.weight.dtype),
        "Training": _told(file, arguments, notes),
        "Evaluation": "Not known.",
        "How to use it": USE if has_tokenizer else NO_TOKENIZER,
        "Intended use": INTENDED_USE,
        "Limits": LIMITS,
        "Licence": CONVERTED_LICENCE,
    }
    return _card(model.config, sections, name)


def _card(model: ModelConfig, sections: Mapping[str, str], name: str, license: str | None = None) -> str:
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{_front_matter(model, license)}\n\n# {name}\n\n{INTRODUCTION}\n\n{body}\n"


def _front_matter(model: ModelConfig, license: str | None) -> str:
    tags = ["moeut"]
    if not isinstance(model.feed_forward, MLPConfig):
        tags.append("mixture-of-experts")
    if model.num_repeats > 1:
        tags.append("universal-transformer")
    stated = {"license": license} if license else {}
    matter = {"library_name": "moeut", "pipeline_tag": "text-generation", **stated, "tags": tags}
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---"


def _model(model: ModelConfig, context_length: int = 1024, dtype: torch.dtype = torch.float32) -> str:
    facts = description(model, context_length, dtype)
    shown = [(row.label.strip(), f"{row.value} {row.note}") for row in rows(facts) if row.label.strip() in SHOWN]
    parts = [("attention", model.attention), ("feed-forward", model.feed_forward)]
    dimensions = [(name, f"{part.kind}: {_dimensions(part)}") for name, part in parts]
    return _table([*shown, *dimensions, ("vocabulary", f"{model.vocab_size:,} tokens")])


def _dimensions(part: object) -> str:
    return ", ".join(f"{name} {getattr(part, name):,}" for name in DIMENSIONS if hasattr(part, name))


def _training(config: RunConfig, step: int, manifest: Manifest | None) -> str:
    training, optimizer = config.training, config.training.optimizer
    tokens = step * training.batch_tokens
    paragraphs = [
        f"{tokens:,} tokens in {step:,} steps of {training.batch_tokens:,}, in sequences of "
        f"{training.context_length:,}. AdamW, learning rate {optimizer.learning_rate:g} ({training.schedule.kind}), "
        f"weight decay {optimizer.weight_decay:g}; computed in {training.precision}; seed {training.seed}."
    ]
    if config.init_from is not None:
        paragraphs.append(f"It began with the weights of `{config.init_from}`.")
    if manifest is None:
        return "\n\n".join([*paragraphs, f"What was in the data, `{config.data}`, is not known here."])
    train = manifest.splits["train"]
    sources = [
        (f"`{source.name}`", f"{source.splits['train'].tokens:,} tokens")
        for source in manifest.sources
        if "train" in source.splits
    ]
    paragraphs += [
        f"The data have {train.tokens:,} tokens for training ({train.bytes:,} bytes of text, {train.documents:,} "
        f"documents), which it saw {tokens / max(1, train.tokens):.2g} times:",
        _table(sources),
    ]
    return "\n\n".join(paragraphs)


def _told(file: str, arguments: Mapping[str, Any] | None, notes: Sequence[str]) -> str:
    made = f"The weights are those of {file}, under the names they have here."
    if arguments is None:
        return f"{made} How they were trained is not known."
    known = [(f"`{name}`", f"`{arguments[name]}`") for name in TOLD if name in arguments]
    paragraphs = [
        f"{made} They were trained by the official code, [RobertCsordas/moeut_training_code]"
        "(https://github.com/RobertCsordas/moeut_training_code), whose arguments say how:",
        _table(known),
        *(f"Note: {note}." for note in notes),
    ]
    return "\n\n".join(paragraphs)


def _evaluation(config: RunConfig, scores: Perplexity | None) -> str:
    if scores is None:
        return "Not known."
    figures = [
        ("bits per byte", f"{scores.bits_per_byte:.4f}"),
        ("cross entropy", f"{scores.cross_entropy:.4f} ± {scores.standard_error:.4f} nats a token"),
        ("perplexity", f"{scores.perplexity:.3f}"),
    ]
    return (
        f"On {scores.tokens:,} tokens ({scores.bytes:,} bytes) of the same data, held out from training, in blocks of "
        f"{config.training.context_length:,}:\n\n{_table(figures)}"
    )


def _table(lines: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {label} | {value.strip()} |" for label, value in lines)])


def _manifest(config: RunConfig) -> Manifest | None:
    try:
        return read_manifest(Path(config.data))
    except ValueError:
        return None
