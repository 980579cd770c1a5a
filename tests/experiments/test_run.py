"""Are the parts of a run put together as its configuration says, and is a run folder only its own run's?"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moeut
from moeut.config import RunConfig, read_yaml
from moeut.data.prepare import prepare
from moeut.data.sources import find_files
from moeut.data.tokenizer import byte_tokenizer
from moeut.experiments.run import model_folder, pick_device, run_of, train
from moeut.model.folder import load_model
from moeut.model.language_model import LanguageModel
from moeut.presets import moeut as moeut_config
from moeut.training.loop import TrainingConfig
from moeut.training.random_state import seed_all
from moeut.validation import validate


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f"{number} " * 60)
    data = tmp_path / "data"
    prepare(data, find_files(sorted(tmp_path.glob("*.txt"))), tokenizer=byte_tokenizer(), held_out=0.3)
    model = moeut_config(
        hidden_size=16, num_hidden_layers=2, group_size=1, num_attention_heads=2, head_dim=8, attention_experts=2,
        experts=4, experts_per_tok=2, expert_size=8, vocab_size=257,
    )  # fmt: skip
    training = TrainingConfig(num_steps=8, batch_size=2, context_length=16, save_every_steps=3, report_every_steps=1)
    return RunConfig(data=str(data), model=model, training=training)


def test_a_run_leaves_all_that_is_needed_to_go_on_and_to_repeat_it(config: RunConfig, tmp_path: Path):
    run = tmp_path / "run"
    result = train(config, run, quiet=True)
    assert (result.step, result.interrupted_by) == (8, None)
    assert validate(RunConfig, read_yaml(run / "config.yaml")) == config
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 9))
    assert result.held_out is not None
    assert lines[-1]["bits_per_byte"] == result.held_out.bits_per_byte
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000006", "step-00000008"]
    assert (run / "final").resolve().name == "step-00000008"
    assert lines[-2]["cross_entropy"] < lines[0]["cross_entropy"]
    again = train(config, tmp_path / "again", quiet=True)
    assert again.held_out == result.held_out
    weights = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("run", "again")]
    assert weights[0] == weights[1]


def test_the_seed_decides_the_initial_weights(config: RunConfig):
    seed_all(config.training.seed)
    first = LanguageModel(config.model)
    seed_all(config.training.seed + 1)
    second = LanguageModel(config.model)
    assert not torch.equal(first.embedding.weight, second.embedding.weight)


def test_a_model_is_found_in_its_run_and_the_run_around_its_model(config: RunConfig, tmp_path: Path):
    run = tmp_path / "run"
    train(config, run, quiet=True)
    assert model_folder(run) == run / "final"
    assert model_folder(run / "final") == run / "final"
    assert run_of(run / "final") == config
    assert load_model(model_folder(run)).config == config.model
    (tmp_path / "elsewhere").mkdir()
    assert run_of(tmp_path / "elsewhere") is None
    with pytest.raises(ValueError, match="no model here"):
        model_folder(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="no checkpoint yet"):
        model_folder(tmp_path / "elsewhere")


def test_a_folder_belongs_to_one_configuration(config: RunConfig, tmp_path: Path):
    run = tmp_path / "run"
    train(config, run, quiet=True)
    other = replace(config, training=replace(config.training, seed=1))
    with pytest.raises(ValueError, match=r"another configuration \(training\.seed: 0, now 1\)"):
        train(other, run, quiet=True)
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"checkpoints but no config\.yaml"):
        train(config, run, quiet=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file is in the way"):
        train(config, tmp_path / "file", quiet=True)


def test_a_tokenizer_that_is_too_large_is_refused_before_anything_is_written(config: RunConfig, tmp_path: Path):
    small = replace(config, model=replace(config.model, vocab_size=256))
    with pytest.raises(ValueError, match=r"257 tokens, more than model\.vocab_size 256"):
        train(small, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_refused():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="'abacus' cannot be used here"):
        pick_device("abacus")


def test_training_is_a_public_name(config: RunConfig, tmp_path: Path):
    assert moeut.train is train
