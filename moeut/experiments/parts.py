"""What is a run made of? Data, model, optimizer and batches, built from its configuration once it is found possible."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from moeut.config import RunConfig
from moeut.data.sampler import Batches, Blocks
from moeut.data.tokens import PreparedData, open_prepared
from moeut.evaluation.perplexity import Perplexity, Share, evaluate
from moeut.experiments.matching import open_matching, refuse_another_model
from moeut.experiments.run_folder import model_folder
from moeut.experts import resolve_backend
from moeut.model.cost import cost
from moeut.model.folder import load_weights
from moeut.model.language_model import LanguageModel
from moeut.settings import refuse
from moeut.training.compilation import compile_layers, refuse_without_compiler
from moeut.training.distributed import Parallel, Ranks, parallelise, refuse_division
from moeut.training.health import router_sizes
from moeut.training.optimizer import build_optimizer
from moeut.training.progress import Progress
from moeut.training.random_state import seed_all


def check(
    config: RunConfig, here: Ranks, *, parallel: Parallel = "auto", replicas: int = 1, compile: str | None = None
) -> None:
    """Refuse what cannot be trained: data, tokenizer, model, batch and ranks that do not fit each other.

    Raises ValueError, a line for each mistake.
    """
    refuse_division(here, parallel, replicas)
    if compile == "inductor":
        refuse_without_compiler(here.device)
    source = None if config.init_from is None else model_folder(Path(config.init_from))
    if source is not None:
        refuse_another_model(source, config.model)
    data = open_matching(config.data, config.model, source)
    blocks = len(Blocks(data.train, config.training.context_length))
    rows = config.training.batch_size
    resolve_backend(config.model.expert_backend, here.device)
    refuse(
        [
            (
                rows % here.world_size != 0,
                f"training.batch_tokens: {rows:,} sequences a step cannot be divided evenly among {here.world_size:,} "
                "processes",
            ),
            (
                blocks < here.world_size,
                f"training.context_length: {config.data} has {blocks:,} sequences of "
                f"{config.training.context_length:,} tokens, fewer than the {here.world_size:,} processes",
            ),
            (
                len(data.held_out) < 2,
                f"data: {config.data} has no held-out text to evaluate on; prepare it with a larger --held-out",
            ),
        ]
    )


class Parts(NamedTuple):
    """What a run is made of. module: the model as it is called, in parallel with other ranks."""

    data: PreparedData
    model: LanguageModel
    module: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches


def build(
    config: RunConfig, here: Ranks, *, parallel: Parallel = "auto", replicas: int = 1, compile: str | None = None,
    fresh: bool = True,
) -> Parts:  # fmt: skip
    """The parts of a run that `check` has found possible. fresh: it begins, so `init_from` is where its weights are."""
    training = config.training
    data = open_prepared(config.data, verify=False)
    seed_all(training.seed)
    model = LanguageModel(config.model).to(here.device)
    if config.init_from is not None and fresh:
        load_weights(model, model_folder(Path(config.init_from)))
    model.stack.gradient_checkpointing = training.gradient_checkpointing
    if compile is not None:
        compile_layers(model, compile)
    module = parallelise(model, here, parallel, replicas)
    optimizer = build_optimizer(model, training.optimizer)
    return Parts(
        data, model, module, optimizer,
        Batches(Blocks(data.train, training.context_length), training.batch_size, training.seed),
    )  # fmt: skip


def score(config: RunConfig, parts: Parts, here: Ranks, progress: Progress) -> Perplexity:
    """How well held-out text is predicted, in float32; every rank scores its part of each batch."""
    micro = config.training.micro_batch_size
    assert micro != "auto"
    return evaluate(
        parts.model, parts.data.held_out, config.training.context_length, micro * here.world_size, progress,
        Share(here.rank, here.world_size, here.sum),
    )  # fmt: skip


def summary(config: RunConfig, here: Ranks) -> str:
    """A run in a line: the model's size, where and how it is computed."""
    training = config.training
    words = [
        f"{cost(config.model).parameters:,} parameters on {here.device}",
        f"{here.world_size} processes" if here.world_size > 1 else "",
        f"expert backend {config.model.expert_backend}" if router_sizes(config.model) else "",
        str(training.precision),
        f"{training.micro_batch_size} of {training.batch_size} sequences at a time",
    ]
    return ", ".join(filter(None, words))


def sample(config: RunConfig, parts: Parts) -> str:
    """The prompt and what the model writes after it; every rank asks.

    Layers run uncompiled: every token has a new shape.
    """
    from moeut.generation.generate import GenerationConfig, LoadedModel, generate
    from moeut.hf.modeling import MoEUTForCausalLM

    prompt = config.training.sample_prompt
    parts.model.eval()
    try:
        wrapped = MoEUTForCausalLM.wrap(parts.model, parts.data.manifest.end_of_document_id)
        with torch.compiler.set_stance("force_eager"):
            return prompt + generate(
                LoadedModel(wrapped, parts.data.tokenizer()), prompt,
                GenerationConfig(seed=config.training.seed, max_new_tokens=100),
            )  # fmt: skip
    finally:
        parts.model.train()
