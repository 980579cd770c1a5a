"""Which models have names? The paper's six sizes and their dense rivals, and small ones that learn on two CPU cores.

Paper appendix (hyper-parameters). The vocabulary of the paper's models is 8,000.
"""

import difflib
from typing import NamedTuple

from moeut.config import RunConfig
from moeut.model.attention import DenseAttentionConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.training.optimizer import OptimizerConfig
from moeut.training.schedule import LinearSchedule, PaperSchedule
from moeut.training.training_config import TrainingConfig

PAPER_VOCABULARY = 8000


def moeut(
    *, hidden_size: int, num_hidden_layers: int, group_size: int, num_attention_heads: int, head_dim: int,
    attention_experts: int, experts: int, experts_per_tok: int, expert_size: int = 128,
    attention_experts_per_tok: int = 2, vocab_size: int = PAPER_VOCABULARY,
) -> ModelConfig:  # fmt: skip
    """A MoEUT as in the paper: SwitchHead (there 2 experts selected), σ-MoE, peri-layernorm, a repeated group."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        group_size=group_size,
        attention=SwitchHeadConfig(
            num_attention_heads=num_attention_heads,
            head_dim=head_dim,
            num_experts=attention_experts,
            num_experts_per_tok=attention_experts_per_tok,
        ),
        feed_forward=SigmaMoEConfig(
            num_experts=experts, num_experts_per_tok=experts_per_tok, moe_intermediate_size=expert_size
        ),
    )


def dense(
    *, hidden_size: int, num_hidden_layers: int, num_attention_heads: int, head_dim: int, intermediate_size: int,
    vocab_size: int = PAPER_VOCABULARY,
) -> ModelConfig:  # fmt: skip
    """The paper's dense Transformer: pre-layernorm, rotary positions, nothing shared."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        group_size=num_hidden_layers,
        norm="pre",
        attention=DenseAttentionConfig(num_attention_heads=num_attention_heads, head_dim=head_dim),
        feed_forward=MLPConfig(intermediate_size=intermediate_size),
    )


def paper_training(*, warmup_steps: int, max_grad_norm: float) -> TrainingConfig:
    """The paper's runs: 100,000 steps of 64 × 1,024 tokens, AdamW with weight decay on everything, a shifted cosine."""
    return TrainingConfig(
        num_steps=100_000,
        batch_tokens=64 * 1024,
        context_length=1024,
        optimizer=OptimizerConfig(
            learning_rate=2.5e-4, adam_beta2=0.999, weight_decay=0.01, decay="all", max_grad_norm=max_grad_norm
        ),
        schedule=PaperSchedule(warmup_steps=warmup_steps),
        evaluate_every_steps=2000,
        save_every_steps=2000,
    )


PAPER_TRAINING = paper_training(warmup_steps=4000, max_grad_norm=0.25)

PAPER_TRAINING_44M = paper_training(warmup_steps=0, max_grad_norm=0.1)
"""The paper trains its smallest models without warm-up and clips them harder."""


def tiny_training(num_steps: int) -> TrainingConfig:
    """Short runs of small models: few tokens a step, a high learning rate that falls to nothing in a straight line."""
    return TrainingConfig(
        num_steps=num_steps,
        batch_tokens=8 * 128,
        context_length=128,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=LinearSchedule(warmup_steps=num_steps // 10),
        evaluate_every_steps=500,
        save_every_steps=500,
    )


NANO_TRAINING = tiny_training(400)
TINY_TRAINING = tiny_training(850)

SHAKESPEARE_TRAINING = TrainingConfig(
    num_steps=2000,
    batch_tokens=12 * 64,
    context_length=64,
    optimizer=OptimizerConfig(learning_rate=4e-3, adam_beta2=0.99),
    schedule=LinearSchedule(warmup_steps=100),
    evaluate_every_steps=500,
    save_every_steps=500,
)
"""Characters (bytes) in contexts of 64, for benchmarks/training.py, where it has no more time than nanoGPT."""


class Preset(NamedTuple):
    """A model and the training that goes with it."""

    model: ModelConfig
    training: TrainingConfig


PRESETS: dict[str, Preset] = {
    "nano": Preset(moeut(
        hidden_size=64, num_hidden_layers=4, group_size=2, num_attention_heads=2, head_dim=32,
        attention_experts=2, experts=8, experts_per_tok=2, expert_size=64, vocab_size=4096,
    ), NANO_TRAINING),
    "tiny": Preset(moeut(
        hidden_size=160, num_hidden_layers=4, group_size=2, num_attention_heads=2, head_dim=40,
        attention_experts=4, experts=16, experts_per_tok=2, expert_size=128, vocab_size=4096,
    ), TINY_TRAINING),
    "dense-tiny": Preset(dense(
        hidden_size=160, num_hidden_layers=4, num_attention_heads=4, head_dim=40, intermediate_size=930, vocab_size=4096
    ), TINY_TRAINING),
    "shakespeare": Preset(moeut(
        hidden_size=160, num_hidden_layers=2, group_size=1, num_attention_heads=4, head_dim=40,
        attention_experts=2, attention_experts_per_tok=1, experts=12, experts_per_tok=2, vocab_size=257,
    ), SHAKESPEARE_TRAINING),
    "moeut-44m": Preset(moeut(
        hidden_size=412, num_hidden_layers=16, group_size=2, num_attention_heads=4, head_dim=82,
        attention_experts=8, experts=155, experts_per_tok=12,
    ), PAPER_TRAINING_44M),
    "moeut-126m": Preset(moeut(
        hidden_size=768, num_hidden_layers=18, group_size=2, num_attention_heads=4, head_dim=96,
        attention_experts=10, experts=254, experts_per_tok=12,
    ), PAPER_TRAINING),
    "moeut-244m": Preset(moeut(
        hidden_size=1024, num_hidden_layers=18, group_size=2, num_attention_heads=4, head_dim=128,
        attention_experts=10, experts=387, experts_per_tok=16,
    ), PAPER_TRAINING),
    "moeut-318m": Preset(moeut(
        hidden_size=1024, num_hidden_layers=24, group_size=3, num_attention_heads=4, head_dim=128,
        attention_experts=10, experts=338, experts_per_tok=16,
    ), PAPER_TRAINING),
    "moeut-727m": Preset(moeut(
        hidden_size=1280, num_hidden_layers=36, group_size=4, num_attention_heads=5, head_dim=128,
        attention_experts=13, experts=467, experts_per_tok=20,
    ), PAPER_TRAINING),
    "moeut-1b": Preset(moeut(
        hidden_size=1536, num_hidden_layers=36, group_size=4, num_attention_heads=6, head_dim=128,
        attention_experts=12, experts=565, experts_per_tok=24,
    ), PAPER_TRAINING),
    "dense-44m": Preset(dense(
        hidden_size=412, num_hidden_layers=16, num_attention_heads=10, head_dim=41, intermediate_size=2053
    ), PAPER_TRAINING_44M),
    "dense-126m": Preset(dense(
        hidden_size=768, num_hidden_layers=16, num_attention_heads=16, head_dim=48, intermediate_size=3072
    ), PAPER_TRAINING),
    "dense-244m": Preset(dense(
        hidden_size=1024, num_hidden_layers=18, num_attention_heads=16, head_dim=64, intermediate_size=4110
    ), PAPER_TRAINING),
    "dense-318m": Preset(dense(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, head_dim=64, intermediate_size=4110
    ), PAPER_TRAINING),
    "dense-727m": Preset(dense(
        hidden_size=1280, num_hidden_layers=36, num_attention_heads=20, head_dim=64, intermediate_size=5120
    ), PAPER_TRAINING),
    "dense-1b": Preset(dense(
        hidden_size=1536, num_hidden_layers=36, num_attention_heads=24, head_dim=64, intermediate_size=6144
    ), PAPER_TRAINING),
}  # fmt: skip
"""Every preset by its name."""


def preset(name: str) -> ModelConfig:
    """The model of this name. Raises ValueError that names the nearest one, or all."""
    return _find(name).model


def run_preset(name: str, data: str) -> RunConfig:
    """A whole run of the model of this name on a prepared folder: as in the paper for its sizes, otherwise a short one.

    Raises ValueError as `preset` does.
    """
    found = _find(name)
    return RunConfig(data=data, model=found.model, training=found.training)


def _find(name: str) -> Preset:
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"--preset: {name!r} is unknown; {hint}")
    return PRESETS[name]
