"""Which dimensions give a variant the size and the computation of another model? Searched for; nothing is built.

The paper compares models of equal parameters: it sets the number of experts, or the width of a dense MLP, and leaves
the rest alone. So does this. Where multiply-accumulates are to be met too, it sets what costs computation and no
parameters: how many experts a token selects, or how often a shared dense layer runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from moeut.model.cost import cost
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.trees import differences, to_tree

Measure = Literal["parameters", "macs_per_token"]
NEAR = 0.1
"""The share that a match may miss: small models have few experts, and each is a large part of them."""


class Match(NamedTuple):
    """A configuration found; of each measure what it has and what was wanted; what it changes in the one given."""

    config: ModelConfig
    found: dict[Measure, int]
    wanted: dict[Measure, int]
    changes: list[str]

    def miss(self, measure: Measure) -> float:
        """By which share the configuration has more (or less, below 0) than was wanted."""
        return self.found[measure] / self.wanted[measure] - 1


class Dimension(NamedTuple):
    """A whole number in a configuration: how it is set, and the least it may be."""

    set: Callable[[ModelConfig, int], ModelConfig]
    least: Callable[[ModelConfig], int] = lambda config: 1


def match(config: ModelConfig, wanted: Mapping[Measure, int], context_length: int = 1024) -> Match:
    """The configuration nearest to what is wanted among those that differ from `config` in the dimensions for it.

    wanted: parameters in all, multiply-accumulates of one token's forward pass in a context of `context_length`, or
    both. Raises ValueError where nothing is wanted, where nothing comes within a tenth of it, and where both are wanted
    of a model in which neither can be set without the other.
    """
    if not wanted:
        raise ValueError("nothing to match: name a model, a number of parameters, or multiply-accumulates a token")

    def measured(config: ModelConfig, measure: Measure) -> int:
        return getattr(cost(config, context_length), measure)

    def meet(config: ModelConfig, measures: list[tuple[Measure, Dimension]]) -> ModelConfig:
        """Set the first dimension; whatever it is set to, the others are set anew."""
        if not measures:
            return config
        (measure, dimension), *others = measures

        def at(number: int) -> ModelConfig:
            return meet(dimension.set(config, number), others)

        return at(nearest(lambda number: measured(at(number), measure), wanted[measure], dimension.least(config)))

    result = meet(config, list(dimensions(config, set(wanted)).items()))
    found = Match(
        result,
        {measure: measured(result, measure) for measure in wanted},
        dict(wanted),
        differences(to_tree(config), to_tree(result)),
    )
    for measure, number in found.found.items():
        if abs(found.miss(measure)) > NEAR:
            raise ValueError(
                f"{measure}: nothing is near {wanted[measure]:,}; the nearest has {number:,} "
                f"({'; '.join(found.changes) or 'the model as it is'})"
            )
    return found


def goals(
    target: ModelConfig | None, by: Literal["parameters", "macs", "both"], parameters: int | None, macs: int | None,
    context_length: int = 1024,
) -> dict[Measure, int]:  # fmt: skip
    """What is wanted: what `target` has of the measures `by`, and numbers in place of that or beside it."""
    wanted: dict[Measure, int] = {}
    if target is not None:
        costs = cost(target, context_length)
        if by != "macs":
            wanted["parameters"] = costs.parameters
        if by != "parameters":
            wanted["macs_per_token"] = costs.macs_per_token
    if parameters is not None:
        wanted["parameters"] = parameters
    if macs is not None:
        wanted["macs_per_token"] = macs
    return wanted


def facts(match: Match) -> dict[str, Any]:
    """A match as plain values."""
    misses = {measure: match.miss(measure) for measure in match.wanted}
    return match._asdict() | {"config": to_tree(match.config), "misses": misses}


def report(name: str, match: Match, context_length: int) -> list[str]:
    """A match in words."""
    costs = cost(match.config, context_length)

    def how_near(measure: Measure) -> str:
        if measure not in match.wanted:
            return ""
        miss = match.miss(measure)
        return f"   wanted {match.wanted[measure]:,}, {abs(miss):.2%} {'less' if miss < 0 else 'more'}"

    return [
        f"{name}: {', '.join(match.changes) or 'as it is'}",
        f"parameters     {costs.parameters:>15,}{how_near('parameters')}",
        f"multiply-adds  {costs.macs_per_token:>15,}{how_near('macs_per_token')}",
    ]


def dimensions(config: ModelConfig, measures: set[Measure]) -> dict[Measure, Dimension]:
    """Which dimension meets which measure; where there are two, the second is to be set anew whenever the first is.

    Raises ValueError for both measures of a dense model that shares no layer.
    """
    if isinstance(config.feed_forward, MLPConfig):
        size, computation = Dimension(_with_width), Dimension(ModelConfig.with_repeats)
        if len(measures) == 1:
            return dict.fromkeys(measures, size)
        if config.num_repeats == 1:
            raise ValueError(
                "a dense model that repeats no layer has as much to compute as it has parameters: match one of them"
            )
    else:
        size, computation = Dimension(_with_experts, _selected), Dimension(_with_selected)
    by_measure: dict[Measure, Dimension] = {"macs_per_token": computation, "parameters": size}
    return {measure: dimension for measure, dimension in by_measure.items() if measure in measures}


def nearest(value_of: Callable[[int], int], wanted: int, least: int) -> int:
    """The whole number from `least` on whose value is nearest to `wanted`, for values that grow with the number."""
    low, high = least, least + 1
    while value_of(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value_of(middle) < wanted else (low, middle)
    return min((low, high), key=lambda number: abs(value_of(number) - wanted))


def _with_width(config: ModelConfig, size: int) -> ModelConfig:
    return _with(config, intermediate_size=size)


def _with_experts(config: ModelConfig, experts: int) -> ModelConfig:
    return _with(config, num_experts=experts)


def _with_selected(config: ModelConfig, selected: int) -> ModelConfig:
    """As many experts as are selected are there, at least."""
    return _with(config, num_experts_per_tok=selected, num_experts=max(_moe(config).num_experts, selected))


def _selected(config: ModelConfig) -> int:
    return _moe(config).num_experts_per_tok


def _moe(config: ModelConfig) -> SigmaMoEConfig | SoftmaxMoEConfig:
    assert not isinstance(config.feed_forward, MLPConfig)
    return config.feed_forward


def _with(config: ModelConfig, **changes: Any) -> ModelConfig:
    return replace(config, feed_forward=replace(config.feed_forward, **changes))
