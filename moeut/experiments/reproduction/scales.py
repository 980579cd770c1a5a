"""How large are the models of a study, and how long do they learn? Minutes, hours on two cores, or the paper.

The paper's models and training are its own; at the other scales all sizes have one depth and learn alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moeut.data.recipe import RecipeConfig
from moeut.experiments.reproduction.corpora import STANDARD_LIBRARY, recipe_of, short_name
from moeut.experiments.reproduction.study import Entrant
from moeut.experiments.reproduction.systems import System
from moeut.model.language_model import ModelConfig
from moeut.presets import MOEUT, PAPER_TRAINING, PRESETS, TRAINING
from moeut.training.schedule import CosineSchedule
from moeut.training.training_config import TrainingConfig
from moeut.variants import moeut


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The MoEUTs that everything is compared with, and the training of all.

    moeuts: by size, smallest first. training: by size. studied: the size at which one thing after the other is changed,
    where the paper's sizes are not there. text: what all runs learn; None: each study its own corpus. vocab_size,
    held_out_share, library_tokens: of a text that is prepared for this scale (`recipe_of`). tasks: those of the main
    table.
    """

    name: str
    moeuts: Mapping[str, ModelConfig]
    training: Mapping[str, TrainingConfig]
    studied: str
    text: str | None = None
    vocab_size: int
    held_out_share: float = 0.02
    library_tokens: int | None = None
    tasks: tuple[str, ...] = ()

    def sizes(self, *paper: str) -> tuple[str, ...]:
        """The sizes that the paper chose for a study where they are there, otherwise the one that is studied."""
        return paper if set(paper) <= set(self.moeuts) else (self.studied,)

    def corpora(self, *paper: str) -> tuple[str, ...]:
        """The corpora that the paper chose, or the one text of this scale."""
        return paper if self.text is None else (self.text,)

    def recipe(self, corpus: str) -> RecipeConfig:
        """How a corpus is prepared for this scale."""
        return recipe_of(
            corpus, vocab_size=self.vocab_size, held_out_share=self.held_out_share, library_tokens=self.library_tokens
        )

    def entrant(
        self, system: System, size: str, corpus: str, place: str | None = None, *, title: str | None = None
    ) -> Entrant:
        """A system beside the MoEUT of a size: the paper's own model where it has one.

        place: by default the size. title: by default the system's.
        """
        preset = PRESETS.get(f"{system.variant}-{size}")
        return Entrant(
            name=f"{system.variant}-{size}-{short_name(corpus)}",
            system=title or system.title,
            place=place or size,
            size=size,
            corpus=corpus,
            model=system.beside(self.moeuts[size]) if preset is None else preset.model,
            training=self.training[size],
        )


def scale(name: str, text: str | None = None) -> Scale:
    """The scale of a name, on a text of one's own if one is named. Raises ValueError where there is none."""
    found = {one.name: one for one in (TINY, SMALL, PAPER)}
    if name not in found:
        raise ValueError(f"--scale: {name!r} is none of {', '.join(found)}")
    return found[name] if text is None else replace(found[name], text=text)


def _short_training(*, num_steps: int, batch_size: int, context_length: int, learning_rate: float) -> TrainingConfig:
    """As in the paper's runs, only shorter and faster; scored twice."""
    return TrainingConfig(
        num_steps=num_steps,
        batch_tokens=batch_size * context_length,
        context_length=context_length,
        optimizer=replace(PAPER_TRAINING.optimizer, learning_rate=learning_rate),
        schedule=CosineSchedule(warmup_steps=num_steps // 25),
        evaluate_every_steps=num_steps // 2,
        save_every_steps=num_steps // 10,
    )


TINY = Scale(
    name="tiny",
    moeuts={
        "200k": moeut(
            hidden_size=64, num_hidden_layers=4, group_size=2, num_attention_heads=2, head_dim=16,
            attention_experts=4, experts=24, experts_per_tok=4, expert_size=16, vocab_size=512,
        ),
        "500k": moeut(
            hidden_size=96, num_hidden_layers=4, group_size=2, num_attention_heads=2, head_dim=24,
            attention_experts=4, experts=44, experts_per_tok=4, expert_size=16, vocab_size=512,
        ),
    },
    training=dict.fromkeys(
        ("200k", "500k"), _short_training(num_steps=300, batch_size=16, context_length=64, learning_rate=4e-3)
    ),
    studied="200k",
    text=STANDARD_LIBRARY,
    vocab_size=512,
    held_out_share=0.05,
    library_tokens=500_000,
)  # fmt: skip
SMALL = Scale(
    name="small",
    moeuts={
        "2m": moeut(
            hidden_size=128, num_hidden_layers=8, group_size=2, num_attention_heads=2, head_dim=32,
            attention_experts=6, experts=44, experts_per_tok=6, expert_size=64, vocab_size=2048,
        ),
        "4m": moeut(
            hidden_size=192, num_hidden_layers=8, group_size=2, num_attention_heads=2, head_dim=48,
            attention_experts=6, experts=61, experts_per_tok=6, expert_size=64, vocab_size=2048,
        ),
        "8m": moeut(
            hidden_size=256, num_hidden_layers=8, group_size=2, num_attention_heads=2, head_dim=64,
            attention_experts=6, experts=92, experts_per_tok=8, expert_size=64, vocab_size=2048,
        ),
    },
    training=dict.fromkeys(
        ("2m", "4m", "8m"), _short_training(num_steps=1250, batch_size=16, context_length=256, learning_rate=1e-3)
    ),
    studied="4m",
    text=STANDARD_LIBRARY,
    vocab_size=2048,
    tasks=("lambada", "blimp"),
)  # fmt: skip
PAPER = Scale(
    name="paper",
    moeuts=MOEUT,
    training=TRAINING,
    studied="244m",
    vocab_size=8000,
    tasks=("lambada", "blimp", "cbt", "hellaswag", "piqa", "arc_easy"),
)
