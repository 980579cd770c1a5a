"""Is what was saved what comes back, is damage found, and does a failed save cost nothing?"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_run import final_state, metrics, run_training, tiny_model, tiny_training

from moeut.model.folder import load_model
from moeut.model.language_model import LanguageModel
from moeut.training import checkpoint
from moeut.training.checkpoint import Checkpointer, TrainingState, checkpoints, damage, newest_complete
from moeut.training.optimizer import OptimizerConfig, build_optimizer


def build(run: Path, keep: int = 2, seed: int = 0) -> tuple[Checkpointer, list[str]]:
    """A checkpointer whose optimizer has a state, and what it told the user."""
    torch.manual_seed(seed)
    model = LanguageModel(tiny_model())
    optimizer = build_optimizer(model, OptimizerConfig())
    tokens = torch.randint(0, 23, (2, 9))
    model(tokens[:, :-1], tokens[:, 1:]).loss.backward()
    optimizer.step()
    notices: list[str] = []
    return Checkpointer(run, model, optimizer, keep=keep, notice=notices.append), notices


def contents(checkpointer: Checkpointer) -> dict[str, torch.Tensor]:
    tensors = dict(checkpointer.model.state_dict())
    for name, parameter in checkpointer.model.named_parameters():
        tensors |= {f"{name}/{key}": value for key, value in checkpointer.optimizer.state[parameter].items()}
    return tensors


def test_restored_equals_saved(tmp_path):
    saved, _ = build(tmp_path)
    folder = saved.save(TrainingState(7, {"seconds": 0.1}))
    drawn = torch.rand(3)
    other, _ = build(tmp_path, seed=1)
    assert other.restore() == TrainingState(7, {"seconds": 0.1})
    assert torch.equal(torch.rand(3), drawn)
    expected = contents(saved)
    assert contents(other).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in contents(other).items())
    assert folder == tmp_path / "checkpoints/step-00000007"
    assert (tmp_path / "final").resolve() == folder
    assert not (tmp_path / "final").readlink().is_absolute()
    assert torch.equal(load_model(tmp_path / "final").lm_head.weight, saved.model.lm_head.weight)


def test_a_run_without_checkpoints_starts_at_nothing(tmp_path):
    checkpointer, notices = build(tmp_path / "run")
    before = checkpointer.model.lm_head.weight.clone()
    assert checkpointer.restore() == TrainingState(0, {})
    assert torch.equal(checkpointer.model.lm_head.weight, before)
    assert notices == []


def test_the_newest_are_kept(tmp_path):
    checkpointer, _ = build(tmp_path, keep=3)
    for step in (1, 2, 10, 9_999_999, 123_456_789):
        checkpointer.save(TrainingState(step))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010", "step-09999999", "step-123456789"]


def test_what_an_interrupted_save_left_is_removed(tmp_path):
    checkpointer, _ = build(tmp_path)
    checkpointer.save(TrainingState(1))
    shutil.copytree(tmp_path / "checkpoints/step-00000001", tmp_path / "checkpoints/.step-00000002.partial")
    assert checkpointer.restore().step == 1
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]


FILES = [
    "config.json", "generation_config.json", "model.safetensors", "modeling_moeut.py", "training/optimizer.safetensors",
    "training/state.json", "checksums.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    build(run)[0].save(TrainingState(1))
    return run


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_is_found(saved_run, name, place, bit):
    folder = saved_run / "checkpoints/step-00000001"
    path = folder / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[int(place * len(content))] ^= 1 << bit
    assert damage(folder) is None
    path.write_bytes(flipped)
    try:
        # White space in the list of checksums carries no meaning; nothing else may change unnoticed.
        assert damage(folder) is not None or (name == "checksums.json" and same_json(content, bytes(flipped)))
    finally:
        path.write_bytes(content)


def same_json(one: bytes, other: bytes) -> bool:
    return json.loads(one) == json.loads(other)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_the_one_before_a_damaged_checkpoint_is_used_loudly(saved_run, tmp_path, name, how):
    run = tmp_path / "run"
    for step in (1, 2):
        shutil.copytree(saved_run / "checkpoints/step-00000001", run / f"checkpoints/step-{step:08d}")
    file = run / "checkpoints/step-00000002" / name
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -1 if name != "checksums.json" else -3])
    notices: list[str] = []
    assert newest_complete(run, notices.append) == run / "checkpoints/step-00000001"
    (notice,) = notices
    assert "step-00000002: damaged (" in notice
    assert name in notice
    assert (run / "checkpoints/step-00000002.damaged").is_dir()
    assert checkpoints(run) == [run / "checkpoints/step-00000001"]


def test_training_goes_on_from_the_one_before_to_the_same_end(tmp_path):
    run_training(tmp_path / "run", tiny_training())
    expected = metrics(tmp_path / "run"), final_state(tmp_path / "run")
    weights = tmp_path / "run/checkpoints/step-00000020/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    steps: list[int] = []
    run_training(tmp_path / "run", tiny_training(), before_step=steps.append)
    assert steps == [18, 19]
    assert (metrics(tmp_path / "run"), final_state(tmp_path / "run")) == expected


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path):
    checkpointer, notices = build(tmp_path)
    (checkpointer.save(TrainingState(1)) / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="every checkpoint is damaged; start again in another run folder"):
        checkpointer.restore()
    assert len(notices) == 1


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    build(tmp_path)[0].save(TrainingState(1))
    model = LanguageModel(tiny_model(hidden_size=8))
    optimizer = build_optimizer(model, OptimizerConfig())
    with pytest.raises(ValueError, match="does not fit the model"):
        Checkpointer(tmp_path, model, optimizer, keep=1, notice=print).restore()


def test_a_save_that_fails_costs_nothing(tmp_path, monkeypatch):
    checkpointer, _ = build(tmp_path, keep=1)
    checkpointer.save(TrainingState(1))

    def full(path: Path, tensors: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        checkpointer.save(TrainingState(2))
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]
    assert checkpointer.restore().step == 1


def test_saving_the_same_step_again_replaces_it(tmp_path):
    checkpointer, _ = build(tmp_path)
    checkpointer.save(TrainingState(1, {"seconds": 1.0}))
    checkpointer.save(TrainingState(1, {"seconds": 2.0}))
    assert checkpointer.restore() == TrainingState(1, {"seconds": 2.0})
