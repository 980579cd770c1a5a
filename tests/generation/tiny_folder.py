"""What do tests of whole programs run? A folder with a tiny model that says nothing but one letter."""

from dataclasses import replace
from pathlib import Path

import torch

from moeut.data.tokenizer import byte_tokenizer, save_tokenizer
from moeut.model.folder import save_model
from moeut.model.language_model import LanguageModel
from moeut.presets import run_preset
from moeut.trees import write_yaml
from moeut.variants import moeut as moeut_config

CONFIG = moeut_config(
    hidden_size=16, num_hidden_layers=2, group_size=1, num_attention_heads=2, head_dim=6, attention_experts=2,
    experts=4, experts_per_tok=2, expert_size=4, vocab_size=257,
)  # fmt: skip


def monotonous_run(run: Path, letter: str = "z", context_length: int = 64) -> Path:
    """A run folder, as if trained in contexts of `context_length` bytes, whose model says `letter` again and again."""
    model = LanguageModel(CONFIG)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[1 + ord(letter)] = 100
    folder = run / "final"
    folder.mkdir(parents=True)
    save_tokenizer(byte_tokenizer(), folder)
    save_model(model, folder)
    config = run_preset("tiny", data="nowhere")
    training = replace(config.training, context_length=context_length, batch_tokens=context_length)
    write_yaml(run / "config.yaml", replace(config, model=CONFIG, training=training))
    return run
