"""Does training still compute what it computed? Fifty steps in float64 on one thread, against recorded curves.

`python tests/test_golden.py` records the curves anew, for a change that is meant to change them.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moeut.data.sampler import Batches, Blocks
from moeut.data.tokens import TokenStream
from moeut.model.attention import DenseAttentionConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.training.distributed import Ranks
from moeut.training.guard import Guard
from moeut.training.optimizer import OptimizerConfig, build_optimizer
from moeut.training.schedule import CosineSchedule
from moeut.training.step import training_step
from moeut.training.training_config import TrainingConfig

ASSETS = Path(__file__).parent / "assets"
STEPS, VOCAB_SIZE = 50, 29
CONFIGS = {
    "moeut": ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=4,
        group_size=2,
        attention=SwitchHeadConfig(num_attention_heads=2, head_dim=8, num_experts=4),
        feed_forward=SigmaMoEConfig(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=8),
    ),
    "dense": ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=2,
        group_size=2,
        norm="pre",
        attention=DenseAttentionConfig(num_attention_heads=2, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=40),
    ),
}


def weights(model: LanguageModel) -> None:
    """Weights that follow from numpy's documented generator instead of torch's, which may change with its version."""
    generator = np.random.Generator(np.random.Philox(0))
    with torch.no_grad():
        for parameter in model.parameters():
            values = generator.random(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy((values - 0.5) * 2 / parameter.shape[-1] ** 0.5))


def stream() -> TokenStream:
    steps = np.random.Generator(np.random.Philox(1)).random(3000)
    ids = np.cumsum((steps * steps * 5).astype(np.int64) + 1) % VOCAB_SIZE
    return TokenStream([ids.astype(np.uint16)], np.array([[1, len(ids)]]))


def curve(name: str) -> list[dict[str, float]]:
    model = LanguageModel(CONFIGS[name]).double()
    weights(model)
    config = TrainingConfig(
        num_steps=STEPS,
        batch_tokens=4 * 16,
        context_length=16,
        optimizer=OptimizerConfig(learning_rate=2e-2, max_grad_norm=0.3),
        schedule=CosineSchedule(warmup_steps=10),
    )
    optimizer = build_optimizer(model, config.optimizer)
    batches = Batches(Blocks(stream(), 16), config.batch_size, seed=0)
    results = [
        training_step(
            model,
            optimizer,
            batches.batch(step),
            config.optimizer.learning_rate * config.schedule.factor(step, STEPS),
            config,
            Ranks(),
            Guard(),
        )
        for step in range(STEPS)
    ]
    return [
        {field: getattr(result, field) for field in ("cross_entropy", "regulariser", "gradient_norm")}
        for result in results
    ]


def file_of(name: str) -> Path:
    return ASSETS / f"golden_{name}.json"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_curve_is_the_recorded_one(name: str):
    recorded = json.loads(file_of(name).read_text())
    assert len(recorded) == STEPS
    for step, (now, then) in enumerate(zip(curve(name), recorded, strict=True)):
        assert now == pytest.approx(then, rel=1e-6), f"step {step}"
    assert recorded[-1]["cross_entropy"] < 0.8 * recorded[0]["cross_entropy"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CONFIGS:
        file_of(name).write_text(json.dumps(curve(name), indent=1) + "\n", encoding="utf-8")
