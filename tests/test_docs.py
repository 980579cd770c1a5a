"""Is what the documentation says true? Its commands parse, its examples run, its links lead somewhere.

A fence ```python is run; ```bash and ```console are parsed, and run too where the word `test` follows, as in
```bash test. The word `slow` instead leaves a block to `make test-all`. Of a console block `output` says that its
commands print just what stands below them, `mistake` that they end with code 2 and print just that to stderr. The
blocks of a page run in order, in one temporary folder, and its Python blocks share their names.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import moeut

ROOT = Path(__file__).resolve().parent.parent
MARKDOWN = sorted(
    page for pattern in ("*.md", "docs/**/*.md", "recipes/**/*.md", "benchmarks/**/*.md") for page in ROOT.glob(pattern)
)
PAGES = [page for page in MARKDOWN if page.name == "README.md" or page.parent.name == "docs"]
SHELLS = {"bash", "console"}


class Block(NamedTuple):
    """One fenced block of a page: its language, the word after it, and what it holds."""

    language: str
    mark: str
    text: str

    def commands(self) -> list[str]:
        """The command lines of a shell block; in a console block those after "$ ", the rest is output."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip()]

    def output(self) -> list[str]:
        """The lines of a console block that are no commands."""
        return [line for line in self.text.splitlines() if not line.startswith("$ ")]


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(markdown: str) -> list[Block]:
    """Every fenced block that names its language."""
    fence = re.compile(r"^```(\w+)[ ]*(\w*)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
    return [Block(*found) for found in fence.findall(markdown)]


def words_of(command: str) -> list[list[str]]:
    """The simple commands of a line, as lists of words: `a b && c` is two."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if set(word) <= set("<>"):
            redirected = True
        elif set(word) <= set("&|;"):
            parts.append([])
        elif redirected:
            redirected = False
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def complaint(words: list[str], make_targets: set[str]) -> str | None:
    """What is wrong with a command of ours, or None if nothing is or it is not ours."""
    match words:
        case ["make", *rest]:
            unknown = [word for word in rest if "=" not in word and word not in make_targets]
            return f"make has no target {unknown}" if unknown else None
        case ["moeut", *rest] | ["python", "-m", "moeut", *rest]:
            return parser_complaint(rest)
        case _:
            return None


def parser_complaint(arguments: list[str]) -> str | None:
    """What the real parser says against these arguments; settings by dotted name are the configuration's affair."""
    from moeut.cli import build_parser

    try:
        _, left_over = build_parser().parse_known_args(arguments)
    except SystemExit as stop:
        return None if stop.code == 0 else f"moeut does not understand {arguments}"
    stray: list[str] = []
    rest = iter(left_over)
    for word in rest:
        if not re.match(r"--\w+\.\w", word):
            stray.append(word)
        elif "=" not in word:
            next(rest, None)  # its value
    return f"moeut does not know {stray}" if stray else None


def run_block(block: Block, folder: Path, namespace: dict[str, object], page: str) -> None:
    """Run a block's Python here, in `namespace`, or its commands in a shell that finds our `moeut`; fail if it does."""
    if block.language == "python":
        exec(compile(block.text, page, "exec"), namespace)
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = block.text if block.language == "bash" else "\n".join(block.commands())
    shell = ["bash", "-euo", "pipefail", "-c", script]
    environment = {**os.environ, "PATH": path}
    result = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if block.mark == "mistake":
        assert (result.returncode, result.stderr.splitlines()) == (2, block.output()), f"{page}:\n{script}"
        return
    assert result.returncode == 0, f"{page}:\n{script}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    if block.mark == "output":
        assert result.stdout.splitlines() == block.output(), f"{page}:\n{script}"


def run_page(page: Path, folder: Path, marks: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page's blocks that carry one of the marks, in order, in `folder`."""
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page.read_text("utf-8")):
        mark = block.mark or ("test" if block.language == "python" else "")
        if block.language in {"python", *SHELLS} and mark in marks:
            run_block(block, folder, namespace, relative(page))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_parse(page: Path):
    make_targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = [
        line for block in blocks(page.read_text("utf-8")) if block.language in SHELLS for line in block.commands()
    ]
    wrong = [said for line in commands for words in words_of(line) if (said := complaint(words, make_targets))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_page(page, tmp_path, {"test", "mistake", "output"}, monkeypatch)


SLOW_PAGES = [page for page in PAGES if any(block.mark == "slow" for block in blocks(page.read_text("utf-8")))]


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW_PAGES, ids=relative)
def test_slow_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_page(page, tmp_path, {"test", "mistake", "output", "slow"}, monkeypatch)


def test_a_wrong_command_is_noticed():
    page = "```bash test\nmake nothing\nmoeut prepare a.txt && moeut prepare \\\n  --no-such x  # why\n```\n"
    [block] = blocks(page)
    words = [part for line in block.commands() for part in words_of(line)]
    assert block.mark == "test"
    assert words == [["make", "nothing"], ["moeut", "prepare", "a.txt"], ["moeut", "prepare", "--no-such", "x"]]
    assert [complaint(part, {"test"}) is None for part in words] == [False, True, False]
    assert complaint(["moeut", "train", "--model.group_size", "2", "--data.seed=1"], set()) is None
    assert complaint(["moeut", "train", "--model.group_size", "2", "stray"], set()) is not None


def test_console_output_is_no_command():
    [block] = blocks("```console\n$ make test > log\n12 passed; make nothing of it\n```\n")
    assert [words_of(line) for line in block.commands()] == [[["make", "test"]]]


@pytest.mark.parametrize("page", MARKDOWN, ids=relative)
def test_links_lead_somewhere(page: Path):
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    files = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    dead = [file for file in files if not (page.parent / file).exists()]
    assert not dead, f"{relative(page)} links to what is not there: {dead}"


def test_the_index_links_every_page():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"]({page.name})" not in index] == ["index.md"]


def test_the_version_is_told_everywhere():
    version = moeut.__version__
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) < 80
