"""A checkpointer small enough for tests to make many."""

from pathlib import Path

import torch
from tiny_run import tiny_model

from moeut.model.language_model import LanguageModel
from moeut.training.checkpoint import Checkpointer
from moeut.training.distributed import Ranks
from moeut.training.optimizer import OptimizerConfig, build_optimizer


def build(run: Path, keep: int = 2, seed: int = 0) -> tuple[Checkpointer, list[str]]:
    """A checkpointer whose optimizer has a state, and what it told the user."""
    torch.manual_seed(seed)
    model = LanguageModel(tiny_model())
    optimizer = build_optimizer(model, OptimizerConfig())
    tokens = torch.randint(0, 23, (2, 9))
    model(tokens[:, :-1], tokens[:, 1:]).loss.backward()
    optimizer.step()
    notices: list[str] = []
    return Checkpointer(run, model, optimizer, keep=keep, notice=notices.append, ranks=Ranks()), notices
