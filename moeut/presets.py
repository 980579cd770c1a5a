"""Which models have names? The paper's, with all of their rivals, and small ones that learn on two CPU cores.

Paper appendix (hyper-parameters). A name is a variant and a size: `sut-44m`.
"""

from dataclasses import replace
from typing import NamedTuple

from moeut.config import RunConfig
from moeut.model.language_model import ModelConfig
from moeut.settings import suggestion
from moeut.training.optimizer import OptimizerConfig
from moeut.training.schedule import LinearSchedule, PaperSchedule
from moeut.training.training_config import TrainingConfig
from moeut.variants import (
    dense,
    gated,
    grouped,
    moeut,
    sigma_moe,
    sigma_moe_plain,
    sut,
    switchhead,
    universal,
    with_act,
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


NANO = moeut(
    hidden_size=64, num_hidden_layers=4, group_size=2, num_attention_heads=2, head_dim=32,
    attention_experts=2, experts=8, experts_per_tok=2, expert_size=64, vocab_size=4096,
)  # fmt: skip
TINY = moeut(
    hidden_size=160, num_hidden_layers=4, group_size=2, num_attention_heads=2, head_dim=40,
    attention_experts=4, experts=16, experts_per_tok=2, expert_size=128, vocab_size=4096,
)  # fmt: skip
MOEUT = {
    "44m": moeut(
        hidden_size=412, num_hidden_layers=16, group_size=2, num_attention_heads=4, head_dim=82,
        attention_experts=8, experts=155, experts_per_tok=12,
    ),
    "126m": moeut(
        hidden_size=768, num_hidden_layers=18, group_size=2, num_attention_heads=4, head_dim=96,
        attention_experts=10, experts=254, experts_per_tok=12,
    ),
    "244m": moeut(
        hidden_size=1024, num_hidden_layers=18, group_size=2, num_attention_heads=4, head_dim=128,
        attention_experts=10, experts=387, experts_per_tok=16,
    ),
    "318m": moeut(
        hidden_size=1024, num_hidden_layers=24, group_size=3, num_attention_heads=4, head_dim=128,
        attention_experts=10, experts=338, experts_per_tok=16,
    ),
    "727m": moeut(
        hidden_size=1280, num_hidden_layers=36, group_size=4, num_attention_heads=5, head_dim=128,
        attention_experts=13, experts=467, experts_per_tok=20,
    ),
    "1b": moeut(
        hidden_size=1536, num_hidden_layers=36, group_size=4, num_attention_heads=6, head_dim=128,
        attention_experts=12, experts=565, experts_per_tok=24,
    ),
}  # fmt: skip
DENSE = {
    "tiny": dense(
        hidden_size=160, num_hidden_layers=4, num_attention_heads=4, head_dim=40, intermediate_size=930, vocab_size=4096
    ),
    "44m": dense(
        hidden_size=412, num_hidden_layers=16, num_attention_heads=10, head_dim=41, intermediate_size=2053
    ),
    "126m": dense(
        hidden_size=768, num_hidden_layers=16, num_attention_heads=16, head_dim=48, intermediate_size=3072
    ),
    "244m": dense(
        hidden_size=1024, num_hidden_layers=18, num_attention_heads=16, head_dim=64, intermediate_size=4110
    ),
    "318m": dense(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, head_dim=64, intermediate_size=4110
    ),
    "727m": dense(
        hidden_size=1280, num_hidden_layers=36, num_attention_heads=20, head_dim=64, intermediate_size=5120
    ),
    "1b": dense(
        hidden_size=1536, num_hidden_layers=36, num_attention_heads=24, head_dim=64, intermediate_size=6144
    ),
}  # fmt: skip
UNIVERSAL = {
    "tiny": universal(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, head_dim=64, intermediate_size=1030,
        vocab_size=4096,
    ),
    "44m": universal(
        hidden_size=1344, num_hidden_layers=16, num_attention_heads=21, head_dim=64, intermediate_size=5801
    ),
    "244m": universal(
        hidden_size=3840, num_hidden_layers=18, num_attention_heads=60, head_dim=64, intermediate_size=15997
    ),
}  # fmt: skip
UNIVERSAL_ACT = {
    "tiny": with_act(UNIVERSAL["tiny"], intermediate_size=901),
    "44m": with_act(UNIVERSAL["44m"], intermediate_size=5129),
    "244m": with_act(UNIVERSAL["244m"], intermediate_size=14076),
}
SUT = {
    "tiny": sut(
        hidden_size=160, num_hidden_layers=4, num_attention_heads=2, head_dim=40,
        attention_experts=12, experts=28, expert_size=128, vocab_size=4096,
    ),
    "44m": sut(
        hidden_size=412, num_hidden_layers=16, num_attention_heads=4, head_dim=64,
        attention_experts=24, experts=152, expert_size=256,
    ),
    "244m": sut(
        hidden_size=1024, num_hidden_layers=18, num_attention_heads=4, head_dim=128,
        attention_experts=21, experts=192, experts_per_tok=4, expert_size=512,
        sample_topk=1, mutual_information_loss_coef=0.01,
    ),
}  # fmt: skip

STUDIED = {"tiny": TINY, "44m": MOEUT["44m"], "244m": MOEUT["244m"]}
"""The MoEUTs that every variant is built beside."""

SMALLER_EXPERTS = replace(
    TINY, feed_forward=replace(TINY.feed_forward, num_experts_per_tok=4, moe_intermediate_size=64)
)
"""`tiny` with experts small enough for a whole number of them to fit into each of four layers."""

MODELS: dict[str, dict[str, ModelConfig]] = {
    "moeut": MOEUT,
    "moeut-gated": {
        "tiny": gated(TINY, experts=18),
        "44m": gated(MOEUT["44m"], experts=173),
        "244m": gated(MOEUT["244m"], experts=423),
    },
    "moeut-pre": {size: replace(model, norm="pre") for size, model in STUDIED.items()},
    "moeut-post": {size: replace(model, norm="post") for size, model in STUDIED.items()},
    "moeut-aabb": {size: replace(model, layer_order="aabb") for size, model in STUDIED.items()},
    "moeut-g1": {"244m": grouped(MOEUT["244m"], group_size=1, attention_experts=20, experts=779)},
    "moeut-g3": {"244m": grouped(MOEUT["244m"], group_size=3, attention_experts=6, experts=260)},
    "moeut-g6": {"244m": grouped(MOEUT["244m"], group_size=6, attention_experts=3, experts=128)},
    "moeut-g9": {"244m": grouped(MOEUT["244m"], group_size=9, attention_experts=2, experts=84)},
    "sigma-moe": {
        "tiny": sigma_moe(SMALLER_EXPERTS, experts=17),
        "44m": sigma_moe(MOEUT["44m"], experts=17),
        "126m": sigma_moe(MOEUT["126m"], experts=26),
        "244m": sigma_moe(MOEUT["244m"], experts=40),
        "318m": sigma_moe(MOEUT["318m"], experts=40),
        "727m": sigma_moe(MOEUT["727m"], experts=50),
    },
    "sigma-moe-plain": {
        "tiny": sigma_moe_plain(SMALLER_EXPERTS, DENSE["tiny"], experts=14),
        "44m": sigma_moe_plain(MOEUT["44m"], DENSE["44m"], experts=16),
        "244m": sigma_moe_plain(MOEUT["244m"], DENSE["244m"], experts=32),
    },
    "switchhead": {
        "tiny": switchhead(TINY, attention_experts=3, intermediate_size=902),
        "44m": switchhead(MOEUT["44m"], attention_experts=3, intermediate_size=1535),
        "244m": switchhead(MOEUT["244m"], attention_experts=3, intermediate_size=4091),
    },
    "dense": DENSE,
    "ut": UNIVERSAL,
    "ut-post": {size: replace(model, norm="post") for size, model in UNIVERSAL.items()},
    "ut-act": UNIVERSAL_ACT,
    "sut": SUT,
    "sut-without-act": {size: replace(model, halting=None) for size, model in SUT.items()},
}
"""Every variant at its sizes. Where the paper's runs say a number it is theirs; the others were found by `moeut match`
to have as many parameters as the MoEUT of that size. `moeut-g18` would be `sigma-moe`, and `moeut-g2` is `moeut`."""

TRAINING = {"tiny": TINY_TRAINING, "44m": PAPER_TRAINING_44M} | dict.fromkeys(
    ("126m", "244m", "318m", "727m", "1b"), PAPER_TRAINING
)

PRESETS: dict[str, Preset] = {
    "nano": Preset(NANO, NANO_TRAINING),
    "tiny": Preset(TINY, TINY_TRAINING),
    "shakespeare": Preset(
        moeut(
            hidden_size=160,
            num_hidden_layers=2,
            group_size=1,
            num_attention_heads=4,
            head_dim=40,
            attention_experts=2,
            attention_experts_per_tok=1,
            experts=12,
            experts_per_tok=2,
            vocab_size=257,
        ),
        SHAKESPEARE_TRAINING,
    ),
    **{
        f"{variant}-{size}": Preset(model, TRAINING[size])
        for variant, models in MODELS.items()
        for size, model in models.items()
    },
}
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


def no_such_preset(name: str) -> str:
    """What to say to a name that is no preset's: the nearest one, or how names are made."""
    return suggestion(name, PRESETS, f"there are nano, tiny, and with a size, as in dense-44m: {', '.join(MODELS)}")


def _find(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"--preset: {name!r} is unknown; {no_such_preset(name)}")
    return PRESETS[name]
