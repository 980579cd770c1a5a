"""A preparation that is killed goes on when it is asked for again, and ends with the same bytes as if nothing had been.

Real processes are killed by signals, at random moments and at chosen ones.
"""

import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from corpora import contents, recipe_of, some_texts, write_lines
from hub_server import COMMIT, Answers, Hub, Resets, serving

from moeut.data.prepare import prepare
from moeut.data.recipe import HeldOutSources, RecipeConfig
from moeut.data.sources import FilesSource, HubSource
from moeut.data.tokens import open_prepared
from moeut.trees import to_yaml

# Small shards and a frequent journal, so that there is something to be interrupted.
# Whoever starts the tests in the background has them ignore SIGINT.
PREPARE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import moeut.data.encoding, moeut.data.passes
moeut.data.passes.SHARD_TOKENS, moeut.data.passes.JOURNAL_TOKENS = 700, 300
moeut.data.encoding.BATCH_BYTES = 500
{patch}
from moeut.cli import main
sys.exit(main(["prepare", "--recipe", "recipe.yaml", "--out", "data", *sys.argv[1:]]))
"""
CORPUS = [some_texts(120, seed) for seed in range(3)]
KINDS = ["in_order", "tokens", "held_out", "limited"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders with a corpus, its recipe, and what becomes of it without an interruption, one of each kind."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            a, b, c = (
                write_lines(made[kind] / f"{name}.jsonl", texts) for name, texts in zip("abc", CORPUS, strict=True)
            )
            match kind:
                case "tokens":
                    recipe = recipe_of(a, b, c, tokenizer=300, mixing="tokens")
                case "held_out":
                    separate = HeldOutSources(sources=(FilesSource(paths=(str(c),)),), max_tokens=5000)
                    recipe = recipe_of(a, b, held_out=separate)
                case "limited":
                    recipe = recipe_of(a, b, c, tokenizer=300, max_tokens=20_000)
                case _:
                    recipe = recipe_of(a, b, c, tokenizer=300)
            write_recipe(made[kind], recipe)
            assert run(made[kind], "--out", "whole").returncode == 0
        return made[kind]

    return of


@pytest.fixture
def folder(tmp_path: Path, uninterrupted: Callable[[str], Path], request: pytest.FixtureRequest) -> Path:
    """A copy of one of them, by default the one in order; the corpus stays where it is."""
    shutil.copytree(uninterrupted(getattr(request, "param", "in_order")), tmp_path / "copy")
    return tmp_path / "copy"


def write_recipe(folder: Path, recipe: RecipeConfig) -> None:
    (folder / "recipe.yaml").write_text(to_yaml(recipe))


def start(folder: Path, *arguments: str, patch: str = "", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE.format(patch=patch), *arguments]
    environment = {**os.environ, **environment}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder: Path, *arguments: str, patch: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    with start(folder, *arguments, patch=patch, **environment) as process:
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def finish(folder: Path, *arguments: str, **environment: str) -> None:
    """The same command once more makes the same folder, and leaves nothing else."""
    finished = run(folder, *arguments, **environment)
    assert finished.returncode == 0, finished.stderr
    assert contents(folder / "data") == contents(folder / "whole")
    assert not list(folder.glob(".*"))


# Kills the process when a function is called for the Nth time.
KILL = """
import os
import {module} as module
original, left = module.{name}, [{count}]
def counted(*arguments, **options):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.{signal})
    return original(*arguments, **options)
module.{name} = counted
"""


def kill_at(place: str, count: int, by: str = "SIGKILL") -> str:
    module, _, name = place.rpartition(".")
    return KILL.format(module=module, name=name, count=count, signal=by)


STAGES = [
    ("moeut.data.prepare.save_tokenizer", 1),
    ("moeut.data.passes.write_journal", 1),
    ("moeut.data.passes.write_journal", 7),
    ("moeut.data.passes.encode_all", 1),
    ("moeut.data.prepare.write_manifest", 1),
    ("moeut.data.prepare.publish", 1),
]


@pytest.mark.parametrize("folder", ["tokens"], indirect=True)
@pytest.mark.parametrize(("place", "count"), STAGES)
def test_a_kill_at_any_stage(folder: Path, place: str, count: int) -> None:
    assert run(folder, patch=kill_at(place, count)).returncode == -signal.SIGKILL
    assert not (folder / "data").exists()
    finish(folder)


@pytest.mark.slow
@pytest.mark.parametrize("folder", KINDS, indirect=True)
@pytest.mark.parametrize("count", range(1, 12))
def test_a_kill_at_any_entry_of_the_journal(folder: Path, count: int) -> None:
    run(folder, patch=kill_at("moeut.data.passes.write_journal", count))
    finish(folder)


def test_what_was_done_is_not_done_again(folder: Path) -> None:
    run(folder, patch=kill_at("moeut.data.passes.write_journal", 9))
    partial = folder / ".data.partial"
    shards = sorted(partial.glob("train-0*.npy"))[:-2]
    assert len(shards) >= 3
    times = {file.name: file.stat().st_mtime_ns for file in [*shards, partial / "tokenizer.json"]}
    finish(folder)
    assert times == {name: (folder / "data" / name).stat().st_mtime_ns for name in times}


@pytest.mark.parametrize("change", ["recipe", "text"])
def test_another_preparation_begins_anew(tmp_path: Path, change: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", CORPUS[0])
    write_recipe(tmp_path, recipe_of(path, tokenizer=300))
    run(tmp_path, patch=kill_at("moeut.data.passes.write_journal", 9))
    if change == "recipe":
        write_recipe(tmp_path, recipe_of(path, tokenizer=310))
    else:
        write_lines(path, [*CORPUS[0], "one more"])
    assert run(tmp_path, "--out", "whole").returncode == 0
    finish(tmp_path)


@pytest.mark.parametrize(
    ("place", "by"),
    [
        ("moeut.data.passes.write_journal", signal.SIGINT),
        ("moeut.data.passes.write_journal", signal.SIGTERM),
        ("moeut.data.prepare.build_tokenizer", signal.SIGTERM),
        ("moeut.data.encoding.encode", signal.SIGINT),  # in a thread, while the main one waits for it
    ],
)
def test_an_interruption_says_how_to_go_on(folder: Path, place: str, by: signal.Signals) -> None:
    count = 5 if place.startswith("moeut.data.p") and "journal" in place else 1
    stopped = run(folder, "--quiet", patch=kill_at(place, count, by.name))
    assert stopped.returncode == 128 + by
    assert stopped.stderr.splitlines() == ["moeut: interrupted and saved; the same command goes on from here"]
    assert stopped.stdout == ""
    finish(folder)


def kill_at_random(folder: Path, seed: int, times: int, seconds: float) -> None:
    """Kills so many processes within so many seconds of the first sign of work, then finishes."""
    choice = random.Random(seed)
    for _ in range(times):
        with start(folder) as process:
            while process.poll() is None and not (folder / ".data.partial").exists():
                time.sleep(0.002)
            time.sleep(choice.uniform(0, seconds))
            process.kill()
        if (folder / "data").exists():
            break
    finish(folder)


@pytest.mark.parametrize("folder", ["in_order", "held_out"], indirect=True)
def test_a_few_kills_at_random(folder: Path) -> None:
    kill_at_random(folder, seed=0, times=3, seconds=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("folder", KINDS, indirect=True)
@pytest.mark.parametrize("seed", range(4))
def test_many_kills_at_random(folder: Path, seed: int) -> None:
    kill_at_random(folder, seed, times=4, seconds=0.25)


# Between the two renames of a replacement.
KILL_WHEN_RENAMED = """
import os
import moeut.data.workplace as module
rename = os.rename
def rename_once(source, target):
    rename(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
module.os.rename = rename_once
"""


def test_a_kill_while_replacing(folder: Path, tmp_path: Path) -> None:
    former = prepare(folder / "data", recipe_of(write_lines(tmp_path / "other.jsonl", CORPUS[0]))).manifest
    for place in ("moeut.data.passes.write_journal", "moeut.data.prepare.publish"):
        assert run(folder, "--overwrite", patch=kill_at(place, 2 - ("publish" in place))).returncode == -signal.SIGKILL
        assert open_prepared(folder / "data").manifest == former
    assert run(folder, "--overwrite", patch=KILL_WHEN_RENAMED).returncode == -signal.SIGKILL
    assert not (folder / "data").exists()
    finish(folder, "--overwrite")


def test_a_full_disk_keeps_what_is_done(folder: Path) -> None:
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1500, {resource.RLIM_INFINITY}))\n"
    # The tokenizer is larger than a shard, so it comes first.
    run(folder, patch=kill_at("moeut.data.passes.write_journal", 3))
    stopped = run(folder, "--quiet", patch=limit)
    assert stopped.returncode == 2
    [line] = stopped.stderr.splitlines()
    assert line.endswith("data: cannot be written (File too large); what is done is kept, and the same command goes on")
    assert (folder / ".data.partial" / "journal.json").exists()
    assert not (folder / "data").exists()
    finish(folder)


def test_two_at_once(folder: Path) -> None:
    with start(folder, patch=kill_at("moeut.data.passes.write_journal", 3, "SIGSTOP")) as first:
        os.waitid(os.P_PID, first.pid, os.WSTOPPED)
        second = run(folder, "--quiet")
        assert second.returncode == 2
        [line] = second.stderr.splitlines()
        assert line.endswith("data: another process is writing it; wait until it is done")
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
        assert first.returncode == 0
    assert contents(folder / "data") == contents(folder / "whole")
    finish(folder)


@pytest.mark.slow
def test_many_at_once_make_one_folder(folder: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        codes = {finished.returncode for finished in pool.map(run, [folder] * 6)}
    assert 0 in codes
    assert codes <= {0, 2}
    finish(folder)


# Waits between tries are for real servers.
IMPATIENT = "import time\ntime.sleep = lambda seconds: None\n"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub with a data set in six files, and a recipe for as many tokens as the first four and a half of them have."""
    texts = some_texts(240)
    files = {
        f"train-{i}.jsonl.gz": gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in some).encode())
        for i, some in enumerate(texts[start : start + 40] for start in range(0, 240, 40))
    }
    source = HubSource(dataset="someone/texts", files=("train-*.jsonl.gz",))
    write_recipe(tmp_path, recipe_of(sources=(source,), max_tokens=30_000))
    with serving(Hub(files)) as hub:
        assert run(tmp_path, "--out", "whole", HF_ENDPOINT=hub.endpoint).returncode == 0
        hub.requests.clear()
        yield hub


def fetched(hub: Hub) -> list[str]:
    """The files that were asked for, in order."""
    return [path.rpartition("/")[2] for _, path, _ in hub.requests if path.endswith(".gz")]


def test_only_as_much_is_fetched_as_asked_for(hub: Hub, tmp_path: Path) -> None:
    finish(tmp_path, HF_ENDPOINT=hub.endpoint)
    assert fetched(hub)[:4] == [f"train-{i}.jsonl.gz" for i in range(4)]
    assert "train-5.jsonl.gz" not in fetched(hub)
    again = run(tmp_path, HF_ENDPOINT=hub.endpoint)
    assert "nothing to do" in again.stdout
    pinned = HubSource(dataset="someone/texts", files=("train-*.jsonl.gz",), revision=COMMIT)
    write_recipe(tmp_path, recipe_of(sources=(pinned,), max_tokens=30_000))
    assert run(tmp_path, "--out", "pinned", HF_ENDPOINT=hub.endpoint).returncode == 0
    offline = run(tmp_path, "--out", "pinned", HF_HUB_OFFLINE="1")
    assert "nothing to do" in offline.stdout


def test_failures_of_the_network_show_nowhere(hub: Hub, tmp_path: Path) -> None:
    hub.faults = {"train-1.jsonl.gz": [Resets(100), Answers(429, retry_after=7)], "train-3.jsonl.gz": [Answers(500)]}
    finished = run(tmp_path, patch=IMPATIENT, HF_ENDPOINT=hub.endpoint)
    assert finished.returncode == 0
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert sum("train-1.jsonl.gz" in line for line in finished.stderr.splitlines()) == 2


def test_a_permanent_failure_keeps_everything_so_far(hub: Hub, tmp_path: Path) -> None:
    hub.faults = {"train-3.jsonl.gz": [Answers(403)]}
    stopped = run(tmp_path, "--quiet", HF_ENDPOINT=hub.endpoint)
    assert stopped.returncode == 2
    [line] = stopped.stderr.splitlines()
    assert line.startswith("moeut: someone/texts/train-3.jsonl.gz: ")
    assert "403" in line
    hub.requests.clear()
    finish(tmp_path, HF_ENDPOINT=hub.endpoint)
    assert not {"train-0.jsonl.gz", "train-1.jsonl.gz"} & set(fetched(hub))


def test_a_kill_while_streaming(hub: Hub, tmp_path: Path) -> None:
    killed = run(tmp_path, patch=kill_at("moeut.data.passes.write_journal", 30), HF_ENDPOINT=hub.endpoint)
    assert killed.returncode == -signal.SIGKILL
    hub.requests.clear()
    finish(tmp_path, HF_ENDPOINT=hub.endpoint)
    assert "train-0.jsonl.gz" not in fetched(hub)
