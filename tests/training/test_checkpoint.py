"""Is what was saved what comes back, on any number of ranks, and does a failed save cost nothing?"""

import io
import json
import os
import pickle
import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ranked_runs
import torch
from tiny_checkpoint import build
from tiny_command import tiny_command
from tiny_run import final_state, metrics, run_training, tiny_model, tiny_training
from torchrun import torchrun

from moeut.cli import main
from moeut.model.folder import load_model
from moeut.model.language_model import LanguageModel
from moeut.training import checkpoint
from moeut.training.checkpoint import Checkpointer, TrainingState
from moeut.training.distributed import Ranks
from moeut.training.optimizer import OptimizerConfig, build_optimizer
from moeut.training.retention import checkpoint_folder, checkpoints, damage, write_checksums

STATE = TrainingState(7, {"seconds": 0.1, "routes": {"0.feed_forward": [[1, 2]]}}, {"scale": 2.0})


def contents(checkpointer: Checkpointer) -> dict[str, torch.Tensor]:
    tensors = dict(checkpointer.model.state_dict())
    for name, parameter in checkpointer.model.named_parameters():
        tensors |= {f"{name}/{key}": value for key, value in checkpointer.optimizer.state[parameter].items()}
    return tensors


def steps_of(run: Path) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in checkpoints(run)]


def test_restored_equals_saved(tmp_path):
    saved, _ = build(tmp_path)
    folder = saved.save(STATE)
    drawn = torch.rand(3)
    other, _ = build(tmp_path, seed=1)
    assert other.restore() == STATE
    assert torch.equal(torch.rand(3), drawn)
    expected = contents(saved)
    assert contents(other).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in contents(other).items())
    assert all(tensor.dtype == expected[name].dtype for name, tensor in contents(other).items())
    assert folder == tmp_path / "checkpoints/step-00000007"
    assert (tmp_path / "final").resolve() == folder
    assert torch.equal(load_model(tmp_path / "final").lm_head.weight, saved.model.lm_head.weight)


def test_a_run_without_checkpoints_starts_at_nothing(tmp_path):
    checkpointer, notices = build(tmp_path / "run")
    before = checkpointer.model.lm_head.weight.clone()
    drawn = torch.get_rng_state()
    assert checkpointer.restore() == TrainingState(0, {}, {})
    assert torch.equal(checkpointer.model.lm_head.weight, before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert notices == []


def test_other_ranks_begin_with_other_random_numbers(tmp_path):
    """Only then: their weights were made from the same ones. (Ranks that nobody else needs to answer.)"""
    drawn = set()
    for rank in range(3):
        checkpointer, _ = build(tmp_path)
        checkpointer.ranks = Ranks(rank, 1)
        checkpointer.restore()
        drawn.add(torch.rand(()).item())
    assert len(drawn) == 3


def test_what_was_saved_by_more_ranks_begins_anew_with_random_numbers(tmp_path):
    checkpointer, _ = build(tmp_path)
    folder = checkpointer.save(STATE)
    edit_state(folder, random=2 * json.loads((folder / "training/state.json").read_text())["random"])
    drawn = []
    for seed in (0, 0, 1):
        checkpointer.seed = seed
        assert checkpointer.restore() == STATE
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_newest_are_kept(tmp_path):
    checkpointer, _ = build(tmp_path, keep=3)
    for step in (1, 2, 10, 9_999_999, 123_456_789):
        checkpointer.save(TrainingState(step))
    assert steps_of(tmp_path) == [10, 9_999_999, 123_456_789]


def test_the_best_is_kept(tmp_path):
    checkpointer, _ = build(tmp_path, keep=1)
    for step, cross_entropy, best in (
        (1, 3.0, 1),
        (2, 2.0, 2),
        (3, float("nan"), 2),
        (4, 2.0, 2),
        (5, 2.5, 2),
        (6, 1.0, 6),
    ):
        checkpointer.save(TrainingState(step))
        checkpointer.held_out(step, cross_entropy)
        assert (tmp_path / "best").resolve() == checkpoint_folder(tmp_path, best)
        assert steps_of(tmp_path) == sorted({best, step})
    checkpointer.save(TrainingState(7))
    assert steps_of(tmp_path) == [6, 7]


def test_a_run_that_dies_between_save_and_evaluation_keeps_the_best(tmp_path):
    checkpointer, _ = build(tmp_path, keep=1)
    checkpointer.save(TrainingState(1))
    checkpointer.held_out(1, 2.0)
    checkpointer.save(TrainingState(2))
    for cross_entropy, best in ((2.5, 1), (1.5, 2)):
        again, _ = build(tmp_path, keep=1)
        assert again.restore().step == 2
        assert (tmp_path / "best").resolve() == checkpoint_folder(tmp_path, 1)
        again.held_out(2, cross_entropy)
        assert (tmp_path / "best").resolve() == checkpoint_folder(tmp_path, best)


def test_a_run_that_dies_after_a_new_best_decides_again(tmp_path):
    """The old best is gone by then, and the new one's evaluation is repeated."""
    checkpointer, _ = build(tmp_path, keep=1)
    checkpointer.save(TrainingState(1))
    checkpointer.held_out(1, 2.0)
    checkpointer.save(TrainingState(2))
    checkpointer.held_out(2, 1.5)
    assert steps_of(tmp_path) == [2]
    again, _ = build(tmp_path, keep=1)
    again.restore()
    assert not (tmp_path / "best").is_symlink()
    again.held_out(2, 1.5)
    assert (tmp_path / "best").resolve() == checkpoint_folder(tmp_path, 2)


def test_the_best_of_a_run_is_where_its_held_out_text_was_predicted_best(tmp_path):
    run_training(tmp_path / "run", tiny_training(keep_checkpoints=1, evaluate_every_steps=3))
    scores = {line["cross_entropy"]: line["step"] for line in metrics(tmp_path / "run") if line["split"] == "held_out"}
    assert (tmp_path / "run/best").resolve() == checkpoint_folder(tmp_path / "run", scores[min(scores)])
    assert set(steps_of(tmp_path / "run")) == {scores[min(scores)], 20}


def test_training_goes_on_from_the_one_before_a_damaged_to_the_same_end(tmp_path):
    run_training(tmp_path / "run", tiny_training())
    expected = metrics(tmp_path / "run"), final_state(tmp_path / "run")
    weights = tmp_path / "run/checkpoints/step-00000020/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    steps: list[int] = []
    run_training(tmp_path / "run", tiny_training(), before_step=steps.append)
    assert steps == [18, 19]
    assert (metrics(tmp_path / "run"), final_state(tmp_path / "run")) == expected


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    build(tmp_path)[0].save(TrainingState(1))
    model = LanguageModel(tiny_model(hidden_size=8))
    optimizer = build_optimizer(model, OptimizerConfig())
    with pytest.raises(ValueError, match="the weights do not fit the model"):
        Checkpointer(tmp_path, model, optimizer, keep=1, notice=print, ranks=Ranks()).restore()


def test_saving_the_same_step_again_replaces_it(tmp_path):
    checkpointer, _ = build(tmp_path)
    checkpointer.save(TrainingState(1, {"seconds": 1.0}))
    checkpointer.save(TrainingState(1, {"seconds": 2.0}))
    assert checkpointer.restore() == TrainingState(1, {"seconds": 2.0})


# A save that fails


@contextmanager
def largest_file(size: int):
    """No file may become larger than `size` bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_nothing_was_lost(checkpointer: Checkpointer, error: BaseException) -> None:
    message = str(error)
    assert "step-00000002: could not be saved, older checkpoints are as they were" in message
    assert "\n" not in message
    assert os.listdir(checkpointer.run / "checkpoints") == ["step-00000001"]
    assert (checkpointer.run / "final").resolve() == checkpoint_folder(checkpointer.run, 1)
    assert checkpointer.restore().step == 1
    checkpointer.save(TrainingState(2))
    assert (checkpointer.run / "final").resolve() == checkpoint_folder(checkpointer.run, 2)


@pytest.mark.parametrize("size", [0, 100, 1000, 20_000, 60_000])
def test_a_file_that_cannot_grow(tmp_path, size):
    checkpointer, _ = build(tmp_path, keep=1)
    folder = checkpointer.save(TrainingState(1))
    assert size < max(path.stat().st_size for path in folder.rglob("*"))
    with largest_file(size), pytest.raises(OSError, match="File too large") as caught:
        checkpointer.save(TrainingState(2))
    assert_nothing_was_lost(checkpointer, caught.value)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of half a megabyte, which a second checkpoint does not fit on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    checkpointer, _ = build(small_disk, keep=1)
    checkpointer.save(TrainingState(1))
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(max(0, free - 30_000)))
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpointer.save(TrainingState(2))
    filler.unlink()
    assert_nothing_was_lost(checkpointer, caught.value)


def test_a_run_on_a_full_disk_ends_with_one_line(tmp_path, capsys):
    command = [*tiny_command(tmp_path, save_every_steps=1), "--run", str(tmp_path / "run")]
    capsys.readouterr()
    with largest_file(100_000):
        assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("moeut: ")
    assert "step-00000001: could not be saved" in line
    assert os.listdir(tmp_path / "run/checkpoints") == []
    assert main(command) == 0


def test_whatever_goes_wrong_leaves_no_partial_checkpoint(tmp_path, monkeypatch):
    checkpointer, _ = build(tmp_path, keep=1)
    checkpointer.save(TrainingState(1))
    monkeypatch.setattr(checkpoint, "write_checksums", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save(TrainingState(2))
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]


def interrupted(folder: Path) -> None:
    raise KeyboardInterrupt


# A folder that somebody else has written in


def edit_state(folder: Path, **changes: object) -> None:
    """Change `state.json` by hand, checksum included."""
    state = json.loads((folder / "training/state.json").read_text())
    (folder / "training/state.json").write_text(json.dumps(state | changes))
    (folder / "checksums.json").unlink()
    write_checksums(folder)
    assert damage(folder) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "7"}, "training/state.json is not what a save wrote: step: input should be a valid integer, not '7'"),
        ({"extra": 1}, "training/state.json is not what a save wrote: extra: unknown"),
        ({"best": {"step": 1}}, "training/state.json is not what a save wrote: best.cross_entropy: missing"),
        ({"random": [{}]}, "the checkpoint of step 7 holds no random state"),
        ({"random": [{"python": [3, [1, 2], None]}]}, "the checkpoint of step 7 holds no random state"),
        ({"random": "none"}, "training/state.json is not what a save wrote: random: input should be a valid array"),
    ],
)
def test_a_state_edited_by_hand_is_one_line(tmp_path, changes, message):
    checkpointer, _ = build(tmp_path)
    edit_state(checkpointer.save(STATE), **changes)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        checkpointer.restore()
    assert message in str(caught.value)


def test_an_edited_state_without_its_checksum_is_damage(tmp_path):
    checkpointer, notices = build(tmp_path)
    checkpointer.save(TrainingState(1))
    file = checkpointer.save(TrainingState(2)) / "training/state.json"
    file.write_text(file.read_text().replace('"step": 2', '"step": 3'))
    assert checkpointer.restore().step == 1
    assert "training/state.json has changed since it was written" in notices[0]


class Bomb:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


def torch_bytes(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


HOSTILE = [
    "training/.metadata", ".metadata", "training/state.json", "training/optimizer.safetensors", "model.safetensors",
    "config.json", "checksums.json", "training/rng.pt", "pytorch_model.bin",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", [pickle.dumps, torch_bytes])
def test_nothing_in_a_folder_can_run_code(tmp_path, name, form):
    """A hostile file in another's place, its checksum right, is refused in a line; beside them it is ignored."""
    run, mark = tmp_path / "run", tmp_path / "mark"
    checkpointer, _ = build(run)
    folder = checkpointer.save(STATE)
    existed = (folder / name).exists()
    (folder / name).write_bytes(form(Bomb(mark)))
    if name != "checksums.json":
        (folder / "checksums.json").unlink()
        write_checksums(folder)
    # config.json says what a model is to those who do not know it; the run knows it.
    if existed and name != "config.json":
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            checkpointer.restore()
    else:
        assert checkpointer.restore() == STATE
    if name == "config.json":
        with pytest.raises(ValueError, match=r"config.json: not a JSON file$"):
            load_model(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()


# Several ranks

PROGRAM = Path(__file__).with_name("ranked_runs.py")
GONE_ON = ["gone-on-ddp", "gone-on-fsdp", "changed-ddp", "changed-fsdp"]


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder in which one rank has begun runs, and two have gone on with them and begun others."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.set_default_dtype(torch.float64)
    for begin in (ranked_runs.whole, ranked_runs.stopped):
        begin(Ranks(), folder)
    torch.set_default_dtype(torch.float32)
    process = torchrun(PROGRAM, folder, *ON_TWO_RANKS)
    assert (folder / "results").exists(), process.stderr[-6000:]
    return folder, process.stderr[-6000:]


ON_TWO_RANKS = ["exact", "stopped_on_several", "gone_on", "damaged", "unsaved"]


@pytest.mark.parametrize("name", ON_TWO_RANKS)
def test_on_two_ranks(together, name):
    folder, said = together
    assert name in (folder / "results").read_text().splitlines(), said


@pytest.mark.parametrize("name", GONE_ON)
def test_another_number_of_ranks_goes_on_with_the_same_curve(together, name):
    """One rank's run in two, and two ranks' by one way of sharing a model in another way."""
    folder, _ = together
    assert_same_curve(folder / "whole", folder / name)


@pytest.mark.parametrize("name", ["stopped-ddp", "stopped-fsdp", "stopped-hsdp"])
def test_one_rank_goes_on_where_two_stopped(together, tmp_path, double_precision, name):
    folder, _ = together
    shutil.copytree(folder / name, tmp_path / "run", symlinks=True)
    steps: list[int] = []
    run_training(tmp_path / "run", ranked_runs.TRAINING, ranked_runs.TIED, before_step=steps.append)
    assert steps == list(range(ranked_runs.STOP_AT, ranked_runs.NUM_STEPS))
    assert_same_curve(folder / "whole", tmp_path / "run")


def assert_same_curve(expected: Path, found: Path) -> None:
    """Every number of every line, and the weights at the end, up to rounding in float64."""
    assert [flat(line) for line in metrics(found)] == [
        pytest.approx(flat(line), rel=1e-6, abs=1e-9) for line in metrics(expected)
    ]
    weights = load_model(expected / "final").state_dict()
    torch.testing.assert_close(load_model(found / "final").state_dict(), weights, rtol=1e-6, atol=1e-8)


def flat(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line and of the mappings in it."""
    fields = {f"{key}.{name}": x for key, value in line.items() if isinstance(value, dict) for name, x in value.items()}
    return {key: value for key, value in (line | fields).items() if isinstance(value, int | float)}


@pytest.mark.slow
def test_killing_one_of_two_ranks_costs_nothing(tmp_path):
    whole, attempts = tmp_path / "whole", 6
    whole.mkdir()
    (whole / "live").touch()
    assert torchrun(PROGRAM, whole, "killed").returncode == 0
    kills = sum(torchrun(PROGRAM, tmp_path, "killed").returncode != 0 for _ in range(attempts))
    assert kills > attempts / 2
    (tmp_path / "live").touch()
    process = torchrun(PROGRAM, tmp_path, "killed")
    assert process.returncode == 0, process.stderr
    assert metrics(tmp_path / "killed") == metrics(whole / "killed")
    assert final_state(tmp_path / "killed") == final_state(whole / "killed")
    assert not list(tmp_path.rglob("*.partial"))
