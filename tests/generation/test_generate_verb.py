"""Does `moeut generate` take prompts from everywhere, warn of long ones, and talk at a terminal until it is left?"""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_folder import monotonous_run

from moeut.cli import main

AT_TERMINAL = """
import fcntl, runpy, signal, termios
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # what is typed there, Ctrl-C too, is for this program
runpy.run_module("moeut", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monotonous_run(tmp_path / "run")
    return "run"


def typed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False))


def test_from_the_command_line(run: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", run, "abc", "--max-new-tokens", "3"]) == 0
    assert capfd.readouterr() == ("abczzz\n", "")
    assert main(["generate", run, "", "--max-new-tokens", "3"]) == 0
    assert capfd.readouterr() == ("zzz\n", "")


def test_without_a_prompt_away_from_a_terminal_a_document_begins(
    run: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, b"not asked for")
    assert main(["generate", run, "--max-new-tokens", "3"]) == 0
    assert capfd.readouterr() == ("zzz\n", "")


@pytest.mark.parametrize(
    ("given", "prompt"), [(b"one\ntwo\n", "one\ntwo"), (b"one\n\n", "one\n"), ("ü".encode(), "ü"), (b"", "")]
)
def test_from_stdin(
    given: bytes, prompt: str, run: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, given)
    assert main(["generate", run, "-", "--max-new-tokens", "3", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"prompt": prompt, "text": "zzz"}


def test_what_is_no_text_is_refused(
    run: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, b"caf\xe9")
    assert main(["generate", run, "-"]) == 2
    assert capfd.readouterr() == ("", "moeut: -: what comes from stdin is not UTF-8 text\n")
    assert main(["generate", run, "a", "--interactive"]) == 2
    assert capfd.readouterr() == ("", "moeut: --interactive asks for prompts: leave out PROMPT\n")


def test_several_texts(run: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", run, "a", "--max-new-tokens", "2", "--num-return-sequences", "2"]) == 0
    assert capfd.readouterr() == ("azz\n\nazz\n", "")
    assert main(["generate", run, "a", "--max-new-tokens", "2", "--num-return-sequences", "3", "--json"]) == 0
    assert [json.loads(line)["text"] for line in capfd.readouterr().out.splitlines()] == ["zz"] * 3


def test_a_prompt_longer_than_anything_trained_is_warned_of_once(run: str, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ["--max-new-tokens", "2", "--num-return-sequences", "2"]
    assert main(["generate", run, "y" * 64, *settings]) == 0
    assert capfd.readouterr().err == ""
    assert main(["generate", run, "y" * 1065, *settings]) == 0
    out, err = capfd.readouterr()
    assert out == f"{'y' * 1065}zz\n\n{'y' * 1065}zz\n"
    assert err == ("moeut: warning: the prompt has 1,065 tokens, more than the model was trained on at a time (64)\n")


def test_prompts_line_by_line(run: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moeut", "generate", run, "--interactive", "--json", "--max-new-tokens", "2"]
    done = subprocess.run(command, cwd=tmp_path, input="a\nb\n", capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines() if line]
    assert [(line["prompt"], line["text"]) for line in said] == [("a", "zz"), ("b", "zz")]


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", AT_TERMINAL, *words], stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """Read until what is shown matches; returns it, and forgets it."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.shown):
            assert time.monotonic() < end, f"no {pattern!r} in {self.shown[-2000:]!r}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the program has ended
                    break
        assert re.search(pattern, self.shown), self.shown[-2000:]
        shown, self.shown = self.shown, ""
        return shown

    def shows(self, pattern: str) -> bool:
        """Whether it comes within some seconds, by itself; then forgets it."""
        with suppress(AssertionError):
            return bool(self.wait_for(pattern, seconds=5))
        return False

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())


def test_at_a_terminal(run: str) -> None:
    terminal = Terminal("generate", run, "--max-new-tokens", "100000")
    try:
        terminal.wait_for("> ")
        terminal.type("abc\n")
        terminal.wait_for("abcz{20}")  # the prompt once more, and the text as it comes
        terminal.type("\x03")
        terminal.wait_for(r"\n(\x1b\[\?2004h)?> ")
        # While nothing is said: a new prompt. Python overlooks a Ctrl-C that comes just before it waits for a line.
        terminal.type("\x03")
        while not terminal.shows(r"\n(\x1b\[\?2004h)?> "):
            terminal.type("\x03")
        terminal.type("de\n")
        terminal.wait_for("dez{20}")
        terminal.type("\x03")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=60) == 0
        assert "Traceback" not in terminal.shown
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
