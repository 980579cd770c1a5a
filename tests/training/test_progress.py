"""Does progress stay on stderr, and out of the way?"""

import io

from rich.console import Console
from rich.progress import Progress as RichProgress

from moeut.training.progress import Progress


def test_lines_outside_a_terminal(capsys):
    with Progress() as progress:
        progress("read", 1, None)
        progress("tokenise", 1, 3)
        progress("tokenise", 3, 3, "12 tokens/s")
        progress.say("a note")
        progress.warn("a warning")
    assert capsys.readouterr() == ("", "tokenise  3/3  12 tokens/s\na note\na warning\n")


def test_a_stage_that_begins_anew_is_timed_anew(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("moeut.training.progress.time.monotonic", lambda: now)
    with Progress() as progress:
        for start in (0.0, 1000.0):
            for second in range(21):
                now = start + second
                progress("evaluate", second, 40)
    assert capsys.readouterr().err == 2 * "evaluate  10/40  30 s left\nevaluate  20/40  20 s left\n"


def test_what_was_done_before_does_not_shorten_the_time_left(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("moeut.training.progress.time.monotonic", lambda: now)
    with Progress() as progress:
        for second in range(21):
            now = float(second)
            progress("train", 900 + second, 1000)
    assert capsys.readouterr().err == "train  910/1,000  90 s left\ntrain  920/1,000  80 s left\n"


def test_quiet_keeps_warnings(capsys):
    with Progress(quiet=True) as progress:
        progress("tokenise", 3, 3)
        progress.say("a note")
        progress.warn("a warning [not a style] of " + 20 * "many words ")
    assert capsys.readouterr() == ("", "a warning [not a style] of " + 20 * "many words " + "\n")


def test_bars_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        "moeut.training.progress.Console",
        lambda **settings: Console(**{**settings, "file": screen, "force_terminal": True, "width": 120}),
    )
    with Progress() as progress:
        assert isinstance(progress.bars, RichProgress)
        progress("train", 5, 10, "cross entropy 3.2")
        progress("evaluate", 7, 7)
        progress.say("a note")
        progress("evaluate", 2, 7)
        tasks = {task.description: (task.completed, task.total) for task in progress.bars.tasks}
    assert tasks == {"train": (5, 10), "evaluate": (2, 7)}
    assert "5/10" in screen.getvalue()
    assert "cross entropy 3.2" in screen.getvalue()
    assert "a note" in screen.getvalue()
