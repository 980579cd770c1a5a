"""Is every named model one that can be built, of the size its name says, beside a rival of its size?

The exact counts of the paper's sizes are in test_paper.py.
"""

import pytest
import torch

from moeut.model.cost import cost
from moeut.model.language_model import LanguageModel
from moeut.presets import PRESETS, preset, run_preset

PAPER = ["44m", "126m", "244m", "318m", "727m", "1b"]
TINY = [name for name in PRESETS if name.partition("-")[2] not in PAPER]


def size_in_name(name: str) -> float:
    size = name.partition("-")[2]
    return float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds_what_cost_says(name: str):
    with torch.device("meta"):
        model = LanguageModel(preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == cost(preset(name)).parameters


@pytest.mark.parametrize("family", ["moeut", "dense"])
@pytest.mark.parametrize("size", PAPER)
def test_paper_sizes_are_what_their_names_say(family: str, size: str):
    """Defect 2: the release's 727M had 582 million parameters."""
    name = f"{family}-{size}"
    assert cost(preset(name)).parameters == pytest.approx(size_in_name(name), rel=0.05)


@pytest.mark.parametrize("size", [name.removeprefix("moeut-") for name in PRESETS if name.startswith("moeut-")])
def test_dense_rival_has_the_size_of_its_moeut(size: str):
    moeut, dense = (cost(preset(f"{family}-{size}")).parameters for family in ("moeut", "dense"))
    assert dense == pytest.approx(moeut, rel=0.02)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_run(name: str):
    model = LanguageModel(preset(name))
    inputs = torch.randint(model.config.vocab_size, (1, 8))
    output = model(inputs, inputs)
    assert output.loss.isfinite()
    assert sum(parameter.numel() for parameter in model.parameters()) < 10e6


def test_shakespeare_is_no_larger_than_its_rival():
    """nanoGPT for a CPU has 804,096 parameters: 65 characters, 64 positions, 4 layers of 12 · 128², and norms."""
    rival = (65 + 64) * 128 + 4 * (12 * 128**2 + 2 * 128) + 128
    assert rival == 804_096
    assert cost(preset("shakespeare")).parameters <= rival
    assert preset("shakespeare").num_repeats > 1


@pytest.mark.parametrize("size", PAPER)
def test_paper_runs_are_the_papers(size: str):
    """The smallest models train without warm-up and are clipped harder."""
    training = run_preset(f"moeut-{size}", "somewhere").training
    tokens = training.num_steps * training.batch_size * training.context_length
    assert tokens == 6_553_600_000
    assert training.context_length == 1024
    assert training.optimizer.learning_rate == 2.5e-4
    assert training.optimizer.max_grad_norm == (0.1 if size == "44m" else 0.25)
    assert training.schedule.warmup_steps == (0 if size == "44m" else 4000)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean moeut-44m"):
        preset("moeut-44")
    with pytest.raises(ValueError, match=r"there are .*dense-1b"):
        preset("xyz")
