"""Does a thing belong to one process of all at a time, and is it known when its process has died?"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moeut.experiments.reproduction.claims import OWNER, TakenError, claimed

PROGRAM = Path(__file__).with_name("claiming.py")


@contextmanager
def claiming(folder: Path, how: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process, and the first line that it says."""
    command = [sys.executable, str(PROGRAM), str(folder), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def owner_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / OWNER).read_text())


def test_a_claim_is_given_back(tmp_path: Path):
    folder = tmp_path / "claims" / "run"
    for _ in range(2):
        with claimed(folder):
            assert owner_of(folder)["process"] == os.getpid()
        assert list(folder.parent.iterdir()) == []
    with pytest.raises(ZeroDivisionError), claimed(folder):
        raise ZeroDivisionError
    assert list(folder.parent.iterdir()) == []


def test_what_a_living_process_has_claimed_is_left_to_it(tmp_path: Path):
    folder = tmp_path / "run"
    with claiming(folder, "hold") as (process, said):
        assert said == "claimed"
        for takeover in (False, True):
            with (
                pytest.raises(TakenError, match=f"process {process.pid} on .*, is at it"),
                claimed(folder, takeover=takeover),
            ):
                pass
        assert owner_of(folder)["process"] == process.pid
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_claim_of_a_killed_process_is_taken_over_where_that_is_asked_for(tmp_path: Path):
    folder = tmp_path / "run"
    with claiming(folder, "hold") as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(TakenError, match=f"process {process.pid} .*has ended; --takeover"), claimed(folder):
        pass
    with claimed(folder, takeover=True):
        assert owner_of(folder)["process"] == os.getpid()
        with pytest.raises(TakenError, match="is at it"), claimed(folder, takeover=True):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_claim_lives_as_long_as_the_child_that_has_inherited_it(tmp_path: Path):
    folder = tmp_path / "run"
    with claiming(folder, "inherit") as (process, child):
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(TakenError, match="is at it"), claimed(folder, takeover=True):
            pass
        os.kill(int(child), signal.SIGKILL)
    while Path(f"/proc/{child}").exists():
        time.sleep(0.01)
    with claimed(folder, takeover=True):
        assert owner_of(folder)["process"] == os.getpid()


def test_nobody_judges_processes_of_another_machine(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / OWNER).write_text('{"host": "elsewhere", "process": 7, "since": "yesterday"}')
    for takeover in (False, True):
        with (
            pytest.raises(TakenError, match=f"process 7 on elsewhere.*remove {folder}"),
            claimed(folder, takeover=takeover),
        ):
            pass
    assert owner_of(folder)["host"] == "elsewhere"


def test_many_processes_do_each_thing_once(tmp_path: Path):
    workers = [subprocess.Popen([sys.executable, str(PROGRAM), str(tmp_path), "work"]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0] * 3
    assert len(list(tmp_path.glob("begun-*"))) == len(list(tmp_path.glob("done-*"))) == 20
