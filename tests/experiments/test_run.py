"""Does a configuration become the run it says: everything kept, seeds obeyed, a finished run left alone?"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import prepared, small_run

import moeut
from moeut.config import RunConfig
from moeut.experiments.run import train
from moeut.model.language_model import LanguageModel
from moeut.training.random_state import seed_all
from moeut.trees import read_yaml
from moeut.validation import validate


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return small_run(prepared(tmp_path))


def test_a_run_leaves_all_that_is_needed_to_go_on_and_to_repeat_it(config: RunConfig, tmp_path: Path):
    run = tmp_path / "run"
    result = train(config, run, quiet=True)
    assert (result.step, result.interrupted_by) == (8, None)
    settled = replace(config, model=replace(config.model, expert_backend="cpu"))
    assert validate(RunConfig, read_yaml(run / "config.yaml")) == settled
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


def test_a_tokenizer_that_is_too_large_is_refused_before_anything_is_written(config: RunConfig, tmp_path: Path):
    small = replace(config, model=replace(config.model, vocab_size=256))
    with pytest.raises(ValueError, match=r"257 tokens, more than model\.vocab_size 256"):
        train(small, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_says_so_and_is_left_alone(config: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    first = train(config, run, quiet=True)
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = train(config, run)
    assert "finished, all 8 steps were done before; nothing to do" in capfd.readouterr().err
    assert (again.step, again.held_out) == (8, first.held_out)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == files


def test_a_finished_run_whose_end_was_damaged_ends_again(
    config: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    first = train(config, run, quiet=True)
    weights = run / "final" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"!")
    assert train(config, run, quiet=True) == first
    assert "step-00000008: damaged (model.safetensors has changed since it was written)" in capfd.readouterr().err
    assert (run / "final" / "model.safetensors").read_bytes() == whole


def test_a_run_begins_with_the_weights_of_another(config: RunConfig, tmp_path: Path):
    """A step of almost nothing leaves them as they were; going on does not begin with them again."""
    train(config, tmp_path / "first", quiet=True)
    still = replace(config.training.optimizer, learning_rate=1e-30, weight_decay=0.0)
    begun = replace(
        config, init_from=str(tmp_path / "first"), training=replace(config.training, optimizer=still, num_steps=1)
    )
    train(begun, tmp_path / "second", quiet=True)
    weights = [(tmp_path / run / "final" / "model.safetensors").read_bytes() for run in ("first", "second")]
    assert weights[0] == weights[1]
    other = replace(begun, model=replace(config.model, hidden_size=32))
    with pytest.raises(ValueError, match=r"init_from: .*first.* is another model \(hidden_size: 16, now 32\)"):
        train(other, tmp_path / "third", quiet=True)
    assert not (tmp_path / "third").exists()


def test_samples_are_written_on_the_way(config: RunConfig, tmp_path: Path):
    asked = replace(config, training=replace(config.training, sample_every_steps=4, sample_prompt="1 1"))
    train(asked, tmp_path / "run", quiet=True)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [4, 8]
    assert all(sample["text"].startswith("1 1") for sample in samples)
    train(config, tmp_path / "without", quiet=True)
    weights = [(tmp_path / run / "final" / "model.safetensors").read_bytes() for run in ("run", "without")]
    assert weights[0] == weights[1]


def test_training_from_a_notebook(tmp_path: Path):
    data = prepared(tmp_path)
    result = moeut.train(
        "nano", tmp_path / "run", data=str(data), quiet=True,
        overrides={
            "training.num_steps": 2, "training.context_length": 16, "training.batch_tokens": 32,
            "training.schedule.warmup_steps": 0,
        },
    )  # fmt: skip
    assert result.step == 2
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="data: name the prepared folder"):
        moeut.train("nano", tmp_path / "other")
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00000002"]


def test_a_learning_rate_that_is_far_too_high_is_said(
    config: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    high = replace(config.training.optimizer, learning_rate=1e9)
    wild = replace(config, training=replace(config.training, optimizer=high, num_steps=1))
    train(wild, tmp_path / "run", quiet=True)
    assert "training.optimizer.learning_rate: 1e+09 is too high" in capfd.readouterr().err
