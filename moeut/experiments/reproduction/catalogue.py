"""Which studies are there? Every figure and table of the paper, and what was asked to understand them."""

from moeut.experiments.reproduction.expert_use import experts
from moeut.experiments.reproduction.growth import residual_growth
from moeut.experiments.reproduction.layers import embedding_length, groups, norms
from moeut.experiments.reproduction.main_table import main_table
from moeut.experiments.reproduction.scales import Scale
from moeut.experiments.reproduction.scaling import code, scaling
from moeut.experiments.reproduction.selection import (
    active_experts,
    attention_heads,
    balance_scope,
    expert_size,
    without_switchhead,
)
from moeut.experiments.reproduction.study import Study
from moeut.experiments.reproduction.universal import sparse_universal, time_and_memory
from moeut.settings import suggestion


def studies(scale: Scale) -> list[Study]:
    """All of them at a scale, in the order of the paper; ours last."""
    makers = (
        scaling, code, groups, sparse_universal, norms, experts, main_table, active_experts, expert_size,
        time_and_memory, residual_growth, balance_scope, without_switchhead, embedding_length,
        attention_heads,
    )  # fmt: skip
    return [make(scale) for make in makers]


def study_named(name: str, scale: Scale) -> Study:
    """The study of this name. Raises ValueError that says the nearest one, or all."""
    by_name = {study.name: study for study in studies(scale)}
    if name in by_name:
        return by_name[name]
    hint = suggestion(name, by_name, f"there are {', '.join(by_name)}")
    raise ValueError(f"{name!r} is no study; {hint}")
