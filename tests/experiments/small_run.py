"""A configuration and its prepared data, so small that a run takes a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from moeut.config import RunConfig
from moeut.data.prepare import prepare
from moeut.data.recipe import HeldOutDocuments, RecipeConfig
from moeut.data.sources import FilesSource
from moeut.data.tokenizer import BytesTokenizer
from moeut.training.training_config import TrainingConfig
from moeut.variants import moeut


def prepared(folder: Path) -> Path:
    """Prepared data of twelve short texts, tokens of bytes."""
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"{number} " * 60)
    sources = (FilesSource(paths=(str(folder / "*.txt"),)),)
    recipe = RecipeConfig(sources=sources, tokenizer=BytesTokenizer(), held_out=HeldOutDocuments(share=0.3))
    prepare(folder / "data", recipe)
    return folder / "data"


def small_run(data: Path, **training: Any) -> RunConfig:
    """Eight steps of a two-layer model on prepared data."""
    model = moeut(
        hidden_size=16, num_hidden_layers=2, group_size=1, num_attention_heads=2, head_dim=8, attention_experts=2,
        experts=4, experts_per_tok=2, expert_size=8, vocab_size=257,
    )  # fmt: skip
    settings = TrainingConfig(
        num_steps=8, batch_tokens=32, context_length=16, save_every_steps=3, report_every_steps=1,
        micro_batch_size=2, precision="float32",
    )  # fmt: skip
    return RunConfig(data=str(data), model=model, training=replace(settings, **training))
