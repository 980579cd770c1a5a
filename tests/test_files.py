"""Is what is written whole or absent, and is there one writer at a time?"""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from moeut.files import held_by_one_process, replacing, sha256


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path):
    file = tmp_path / "a.txt"
    with replacing(file) as partial:
        partial.write_text("old")
    with pytest.raises(KeyError), replacing(file) as partial:
        partial.write_text({"half": ""}["other half"])
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with replacing(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"


def test_the_checksum_is_of_the_content(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_second_process_is_turned_away_until_the_first_is_gone(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; from moeut.files import held_by_one_process\n"
        "with held_by_one_process(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is writing it"), held_by_one_process(tmp_path):
            pass
        other.kill()
    with held_by_one_process(tmp_path):
        pass
