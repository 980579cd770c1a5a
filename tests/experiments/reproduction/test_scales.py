"""Do scales have the paper's models and training where the paper has them, and small ones that are like them?"""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from moeut.data.prepare import prepare
from moeut.experiments.reproduction.corpora import STANDARD_LIBRARY, data_folder, recipe_of
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.reproduction.scales import PAPER, SMALL, TINY, scale
from moeut.experiments.reproduction.systems import DENSE, MOEUT
from moeut.experiments.run import train
from moeut.model.cost import cost
from moeut.presets import PRESETS, run_preset
from moeut.training.report import read_metrics


@pytest.mark.parametrize("one", [TINY, SMALL, PAPER], ids=lambda one: one.name)
def test_sizes_are_what_they_are_called(one):
    for size, moeut in one.moeuts.items():
        number = float(size[:-1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[size[-1]]
        assert cost(moeut).parameters == pytest.approx(number, rel=0.12)
    assert one.studied in one.moeuts
    assert set(one.moeuts) <= set(one.training)
    assert scale(one.name) is one


def test_the_paper_has_its_own_models_and_training():
    entrant = PAPER.entrant(DENSE, "126m", "c4")
    assert entrant.name == "dense-126m-c4"
    assert (entrant.model, entrant.training) == PRESETS["dense-126m"]
    assert Run(entrant, 2.5e-4, 0).config(Path("out")) == run_preset("dense-126m", "out/data/c4")
    assert (entrant.place, entrant.size, entrant.corpus) == ("126m", "126m", "c4")


def test_a_small_scale_makes_its_own_and_takes_another_text():
    ours = scale("small", "texts/prose.jsonl.xz")
    assert ours.corpora("c4", "pes2o") == ("texts/prose.jsonl.xz",)
    [corpus] = ours.corpora("c4")
    entrant = ours.entrant(MOEUT, "4m", corpus, "here", title="peri")
    assert (entrant.name, entrant.place, entrant.system) == ("moeut-4m-prose", "here", "peri")
    assert PAPER.corpora("c4", "pes2o") == ("c4", "pes2o")
    assert PAPER.sizes("44m", "244m") == ("44m", "244m")
    assert ours.sizes("44m", "244m") == ("4m",)


def test_small_models_see_five_million_tokens():
    for training in SMALL.training.values():
        assert training.num_steps * training.batch_tokens > 5e6


def test_there_are_three():
    with pytest.raises(ValueError, match="'large' is none of tiny, small, paper"):
        scale("large")


@pytest.mark.slow
def test_the_papers_44m_model_learns_from_real_blocks(tmp_path: Path):
    """Its own model and training, three steps of one block of 1,024 tokens of real text."""
    recipe = recipe_of(STANDARD_LIBRARY, vocab_size=8000, held_out_share=0.1, library_tokens=30_000)
    prepare(data_folder(STANDARD_LIBRARY, tmp_path), recipe)
    entrant = PAPER.entrant(MOEUT, "44m", STANDARD_LIBRARY)
    training = replace(entrant.training, num_steps=3, batch_tokens=1024, report_every_steps=1)
    run = Run(replace(entrant, training=training), 2.5e-4, 0)
    train(run.config(tmp_path), tmp_path / "run", quiet=True)
    first, second, third, held_out = (line["cross_entropy"] for line in read_metrics(tmp_path / "run"))
    assert first == pytest.approx(math.log(8000), abs=0.4)
    assert third < second < first
    assert held_out < first
