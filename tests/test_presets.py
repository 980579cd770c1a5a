"""Is every named model one that can be built, of the size its name says, beside a rival of its size?

The exact counts of the paper's sizes are in test_paper.py.
"""

import re
from pathlib import Path

import pytest
import torch

from moeut.config import run_config
from moeut.model.cost import cost
from moeut.model.language_model import LanguageModel
from moeut.presets import PRESETS, preset, run_preset
from moeut.trees import to_tree

VARIANTS = Path(__file__).resolve().parent.parent / "docs" / "variants.md"


def size_of(name: str) -> str:
    return name.rpartition("-")[2]


PAPER = ["44m", "126m", "244m", "318m", "727m", "1b"]
TINY = [name for name in PRESETS if size_of(name) not in PAPER]
ROWS = [
    "moeut", "moeut-gated", "moeut-pre", "moeut-post", "dense", "sigma-moe", "sigma-moe-plain", "switchhead", "ut",
    "ut-post", "ut-act", "sut", "sut-without-act",
]  # fmt: skip
"""The variants of docs/variants.md."""


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds_what_cost_says(name: str):
    with torch.device("meta"):
        model = LanguageModel(preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == cost(preset(name)).parameters


@pytest.mark.parametrize("name", [name for name in PRESETS if size_of(name) in PAPER])
def test_paper_sizes_are_what_their_names_say(name: str):
    """Defect 2: the release's 727M had 582 million parameters."""
    size = size_of(name)
    number = float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]]
    assert cost(preset(name)).parameters == pytest.approx(number, rel=0.05)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("nano", "shakespeare")])
def test_rival_has_the_size_of_its_moeut(name: str):
    size = size_of(name)
    moeut = preset("tiny" if size == "tiny" else f"moeut-{size}")
    tolerance = 0.0125 if size == "tiny" else 0.0075
    assert cost(preset(name)).parameters == pytest.approx(cost(moeut).parameters, rel=tolerance)


@pytest.mark.parametrize("row", ROWS)
def test_every_variant_is_there_tiny_and_in_the_sizes_of_the_studies(row: str):
    names = ["tiny" if row == "moeut" else f"{row}-tiny", f"{row}-44m", f"{row}-244m"]
    kinds = {
        (config.attention.kind, config.feed_forward.kind, config.norm, type(config.halting))
        for config in map(preset, names)
    }
    assert len(kinds) == 1
    assert len({preset(name).num_repeats > 1 for name in names}) == 1


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_learn(name: str):
    """One step of plain gradient descent on a batch lowers the loss of that batch, also with all auxiliary losses."""
    model = LanguageModel(preset(name))
    inputs, targets = torch.randint(model.config.vocab_size, (2, 1, 16)).unbind()
    before = model(inputs, targets)
    before.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert model(inputs, targets).cross_entropy < before.cross_entropy
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


def test_rivals_train_as_the_moeut_of_their_size():
    for name, found in PRESETS.items():
        if size_of(name) in PAPER:
            assert found.training == PRESETS[f"moeut-{size_of(name)}"].training


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean moeut-44m"):
        preset("moeut-44")
    with pytest.raises(ValueError, match=r"there are .*as in dense-44m: moeut, .*, sut-without-act$"):
        preset("xyz")


FENCE = re.compile(r"^```yaml (\S+)(?: over (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "base", "text"), FENCE.findall(VARIANTS.read_text("utf-8")))
def test_the_page_of_variants_says_what_each_is(name: str, base: str, text: str, tmp_path: Path):
    """Its YAML is a preset's model, laid over the one that is named or over what `moeut train` begins with."""
    file = tmp_path / "variant.yaml"
    file.write_text(text)
    assert run_config(to_tree(run_preset(base or "tiny", "somewhere")), file, []).model == preset(name)


def test_the_page_of_variants_has_every_row():
    assert [name for name, _, _ in FENCE.findall(VARIANTS.read_text("utf-8"))] == [f"{row}-44m" for row in ROWS]
