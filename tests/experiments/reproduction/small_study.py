"""A study of two models, so small that a run takes a second."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeut.data.prepare import prepare
from moeut.data.recipe import HeldOutDocuments, RecipeConfig
from moeut.data.sources import FilesSource
from moeut.data.tokenizer import BytesTokenizer
from moeut.experiments.reproduction.findings import Findings
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.reproduction.study import Entrant, Quantity, Study, below, by_place
from moeut.experiments.reproduction.systems import DENSE, MOEUT, System
from moeut.training.training_config import TrainingConfig
from moeut.variants import moeut

MODEL = moeut(
    hidden_size=16, num_hidden_layers=2, group_size=1, num_attention_heads=2, head_dim=8, attention_experts=2,
    experts=8, experts_per_tok=2, expert_size=8, vocab_size=257,
)  # fmt: skip
TRAINING = TrainingConfig(
    num_steps=4, batch_tokens=32, context_length=16, save_every_steps=2, report_every_steps=1, micro_batch_size=2,
    precision="float32",
)  # fmt: skip


def prepared(folder: Path) -> Path:
    """Prepared data of twelve short texts, tokens of bytes."""
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"{number} " * 60)
    sources = (FilesSource(paths=(str(folder / "*.txt"),)),)
    recipe = RecipeConfig(sources=sources, tokenizer=BytesTokenizer(), held_out=HeldOutDocuments(share=0.3))
    prepare(folder / "small", recipe)
    return folder / "small"


def entrant(system: System, data: Path, **training: Any) -> Entrant:
    """A system beside the small MoEUT."""
    return Entrant(
        name=f"{system.variant}-small", system=system.title, place="small", size="small", corpus=str(data),
        model=system.beside(MODEL), training=replace(TRAINING, **training),
    )  # fmt: skip


def long_study(data: Path, steps: int) -> Study:
    """The same for so many steps, saved after every fourth of them."""
    return small_study(data, num_steps=steps, save_every_steps=steps // 4)


def small_study(data: Path, **training: Any) -> Study:
    """A MoEUT and a dense Transformer, four steps each."""
    ours, dense = entrant(MOEUT, data, **training), entrant(DENSE, data, **training)
    return Study(
        name="small", source="a test", question="Which is better?", found="Nothing.", entrants=[ours, dense],
        charts=[by_place("by-size", "size")], directions=below([ours], dense),
    )  # fmt: skip


def inequalities(study: Study) -> list[tuple[Quantity, Quantity]]:
    """The directions of a study that set one number beside another, as (less, more)."""
    return [
        (less, more) for less, more in study.directions if isinstance(less, Quantity) and isinstance(more, Quantity)
    ]


def write_metrics(findings: Findings, out: Path) -> None:
    """What the finished runs of some findings said while they trained: 100 − step in step after step."""
    for run in findings.runs:
        if run.name in findings.numbers:
            run.folder(out).mkdir(parents=True, exist_ok=True)
            lines = [
                {"split": "train", "step": step, "tokens": 32 * step, "cross_entropy": 100.0 - step}
                for step in range(1, 101)
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (run.folder(out) / "metrics.jsonl").write_text(text + '{"split": "held_out", "step": 100}\n')


def found(ours: list[float], dense: list[float]) -> Findings:
    """The small study, with the losses of so many seeds of each entrant."""
    study = small_study(Path("nowhere"))
    judged = {
        entrant.name: [Run(entrant, 0.001, seed) for seed in range(len(losses))]
        for entrant, losses in zip(study.entrants, (ours, dense), strict=True)
    }
    numbers = {
        run.name: {"cross_entropy": loss, "hours": 0.5, "seconds_per_step": 1.5, "memory_bytes": 2e6}
        for runs, losses in zip(judged.values(), (ours, dense), strict=True)
        for run, loss in zip(runs, losses, strict=True)
    }
    return Findings(study, [run for runs in judged.values() for run in runs], judged, numbers, {}, {})
