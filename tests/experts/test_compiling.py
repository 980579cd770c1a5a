"""Is a library compiled once, kept for what it was made for, and what goes wrong said in one line?"""

import ctypes
import stat
import threading
from pathlib import Path

import pytest

from moeut.experts import compiling

ADD = 'extern "C" int add(int a, int b) { return a + b; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny source, and an empty cache."""
    if compiling.compiler() is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "add.cpp"
    file.write_text(ADD)
    return file


def test_compiled_once_and_said(source: Path) -> None:
    said: list[str] = []
    assert compiling.load_library(source, said.append).add(2, 3) == 5
    path = compiling.library_path(source)
    assert path.parent == source.parent / "cache" / "moeut"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    written = path.stat().st_mtime_ns
    assert compiling.compile_library(source, said.append) == path
    assert path.stat().st_mtime_ns == written
    assert said == ["compiling add.cpp for this processor: once, less than a minute"]
    assert list(path.parent.iterdir()) == [path]


def test_another_source_header_or_processor_is_another_library(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {compiling.library_path(source)}
    other = tmp_path / "other" / "add.cpp"
    other.parent.mkdir()
    other.write_text(ADD.replace("+", "-"))
    paths.add(compiling.library_path(other))
    with monkeypatch.context() as patch:
        patch.setattr("moeut.experts.compiling._processor", lambda: "another")
        compiling._fingerprint.cache_clear()
        paths.add(compiling.library_path(source))
    source.with_name("add.h").write_text("")
    compiling._fingerprint.cache_clear()
    paths.add(compiling.library_path(source))
    compiling._fingerprint.cache_clear()
    assert len(paths) == 4


def test_two_at_once(source: Path) -> None:
    paths: list[Path] = []
    workers = [
        threading.Thread(target=lambda: paths.append(compiling.compile_library(source, print))) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert paths == [compiling.library_path(source)] * 2
    assert ctypes.CDLL(str(paths[0])).add(1, 1) == 2


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"^no C\+\+ compiler was found \(c\+\+, g\+\+ or clang\+\+\): install one$"):
        compiling.compile_library(source, print)


def test_what_the_compiler_refuses(source: Path) -> None:
    source.write_text("int add(int a) { return b; }\n")
    with pytest.raises(ValueError, match=r"could not compile add.cpp: .*error.*was not declared") as raised:
        compiling.compile_library(source, print)
    assert "\n" not in str(raised.value)
    assert not list(compiling.library_path(source).parent.iterdir())


def test_a_damaged_library_is_one_line(source: Path) -> None:
    path = compiling.compile_library(source, print)
    path.unlink()  # its memory is this process's, since it was loaded to be tried
    path.write_bytes(b"damage")
    with pytest.raises(ValueError, match=r"cannot be loaded .*: delete it to have it compiled again$"):
        compiling.load_library(source, print)
