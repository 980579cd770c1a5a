"""Is damage to a checkpoint found, the one before it used, and nothing removed that is still wanted?"""

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoint import build

from moeut.training.checkpoint import TrainingState
from moeut.training.retention import (
    checkpoint_folder,
    checkpoints,
    damage,
    newest_complete,
    point,
    prune,
    remove_partial_checkpoints,
)

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
    folder = checkpoint_folder(saved_run, 1)
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
        shutil.copytree(checkpoint_folder(saved_run, 1), checkpoint_folder(run, step))
    file = checkpoint_folder(run, 2) / name
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -1 if name != "checksums.json" else -3])
    notices: list[str] = []
    assert newest_complete(run, notices.append) == checkpoint_folder(run, 1)
    (notice,) = notices
    assert "step-00000002: damaged (" in notice
    assert name in notice
    assert (run / "checkpoints/step-00000002.damaged").is_dir()
    assert checkpoints(run) == [checkpoint_folder(run, 1)]


def test_nothing_but_damaged_checkpoints_is_an_error(saved_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(checkpoint_folder(saved_run, 1), checkpoint_folder(run, 1))
    (checkpoint_folder(run, 1) / "config.json").write_text("{}")
    notices: list[str] = []
    with pytest.raises(ValueError, match="every checkpoint is damaged; start again in another run folder"):
        newest_complete(run, notices.append)
    assert len(notices) == 1


@pytest.mark.parametrize("names", ["{}", '{"../../../secret": "0"}', '{"model.safetensors": ["0"]}', "[]"])
def test_a_list_of_checksums_that_no_save_wrote(saved_run, tmp_path, names):
    folder = shutil.copytree(checkpoint_folder(saved_run, 1), tmp_path / "checkpoint")
    (folder / "checksums.json").write_text(names)
    assert damage(folder) is not None


def named(run, *steps):
    for step in steps:
        checkpoint_folder(run, step).mkdir(parents=True)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    named(tmp_path, 100_000_000, 7, 99_999_999)
    (tmp_path / "checkpoints/step-00000008.damaged").mkdir()
    (tmp_path / "checkpoints/.step-00000009.partial").mkdir()
    assert [int(path.name.removeprefix("step-")) for path in checkpoints(tmp_path)] == [7, 99_999_999, 100_000_000]
    assert checkpoints(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(("best", "left"), [(None, [3, 4]), (1, [1, 3, 4]), (4, [3, 4]), (9, [3, 4])])
def test_the_newest_and_the_best_are_kept(tmp_path, best, left):
    named(tmp_path, 1, 2, 3, 4)
    prune(tmp_path, 2, best)
    assert checkpoints(tmp_path) == [checkpoint_folder(tmp_path, step) for step in left]


def test_what_an_interrupted_save_left_is_removed(tmp_path):
    named(tmp_path, 1)
    (tmp_path / "checkpoints/.step-00000002.partial/training").mkdir(parents=True)
    remove_partial_checkpoints(tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]


def test_a_link_survives_moving_the_run(tmp_path):
    named(tmp_path / "run", 1, 2)
    link = tmp_path / "run/final"
    (tmp_path / "run/.final.partial").symlink_to("nowhere")
    for step in (1, 2):
        point(link, checkpoint_folder(tmp_path / "run", step))
        assert link.resolve() == checkpoint_folder(tmp_path / "run", step)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert (tmp_path / "moved/final").resolve() == checkpoint_folder(tmp_path / "moved", 2)
