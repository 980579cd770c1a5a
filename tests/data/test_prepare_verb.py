"""What one can type after `moeut prepare`: each option does what it says, and a mistake is one line."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from corpora import some_texts, write_lines

from moeut.data.tokens import open_prepared

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prepare(moeut: Run, tmp_path: Path) -> Run:
    """Run the command in a folder with two small corpora: (exit code, stdout, stderr)."""
    for seed, name in enumerate(("a.jsonl", "b.jsonl")):
        write_lines(tmp_path / name, some_texts(60, seed))
    return partial(moeut, "prepare")


def recipe_printed(prepare: Run, *arguments: str) -> dict[str, object]:
    code, out, err = prepare(*arguments, "--print-recipe")
    assert (code, err) == (0, "")
    return yaml.safe_load(out)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {"sources": [{"kind": "standard_library", "weight": 1.0}], "mixing": "in_order"}),
        (("a.jsonl", "--vocab-size", "300"), {"tokenizer": {"kind": "bpe", "vocab_size": 300}}),
        (("a.jsonl", "--tokenizer", "bytes"), {"tokenizer": {"kind": "bytes"}}),
        (("a.jsonl", "--tokenizer", "unigram", "--vocab-size", "300"), {
            "tokenizer": {"kind": "unigram", "vocab_size": 300}
        }),
        (("a.jsonl", "--tokenizer", "x/y"), {"tokenizer": {"kind": "existing", "path": "x/y", "revision": None}}),
        (("a.jsonl", "--held-out", "0.1"), {"held_out": {"kind": "documents", "share": 0.1}}),
        (("a.jsonl", "--max-tokens", "1e9"), {"max_tokens": 10**9}),
        (("a.jsonl", "--max-tokens", "2.5e3"), {"max_tokens": 2500}),
        (("a.jsonl", "--errors", "replace"), {"errors": "replace"}),
        (("a.jsonl", "b.jsonl", "--mixing", "tokens", "--sources.1.weight", "3", "--text-column", "body"), {
            "sources": [
                {"kind": "files", "paths": ["a.jsonl"], "text_column": "body", "weight": 1.0},
                {"kind": "files", "paths": ["b.jsonl"], "text_column": "body", "weight": 3},
            ],
            "mixing": "tokens",
        }),
        (("--document_end.kind=none", "a.jsonl"), {"document_end": {"kind": "none"}}),
        (("--recipe", "c4", "--max-tokens", "5"), {"max_tokens": 5, "tokenizer": {"kind": "bpe", "vocab_size": 8000}}),
    ],
)  # fmt: skip
def test_options_make_a_recipe(prepare: Run, arguments: tuple[str, ...], expected: dict[str, object]) -> None:
    printed = recipe_printed(prepare, *arguments)
    assert {name: printed[name] for name in expected} == expected


def test_a_printed_recipe_makes_the_same_folder(prepare: Run, tmp_path: Path) -> None:
    arguments = ("a.jsonl", "b.jsonl", "--mixing", "tokens", "--vocab-size", "300", "--held-out", "0.2")
    _, printed, _ = prepare(*arguments, "--print-recipe")
    (tmp_path / "mine.yaml").write_text(printed)
    assert not (tmp_path / "data").exists()
    assert prepare(*arguments, "--out", "one", "--quiet")[0] == 0
    code, out, _ = prepare("--recipe", "mine.yaml", "--quiet")
    assert (code, out.splitlines()[0]) == (0, "data/mine: written")
    assert open_prepared("one").manifest == open_prepared("data/mine").manifest


def test_what_is_printed(prepare: Run) -> None:
    arguments = ("a.jsonl", "b.jsonl", "--tokenizer", "bytes", "--held-out", "0.2")
    code, out, err = prepare(*arguments)
    manifest = open_prepared("data/a").manifest
    assert code == 0
    assert out.splitlines()[0] == "data/a: written"
    assert "of the tokens for training: b.jsonl" in out
    assert err.splitlines()[-1].startswith("tokens ")
    code, out, err = prepare(*arguments, "--json", "--quiet")
    facts = json.loads(out)
    assert (code, err, facts["written"], facts["folder"]) == (0, "", False, "data/a")
    assert facts["train"]["tokens"] == manifest.splits["train"].tokens
    assert {name: counts["documents"] for name, counts in facts["sources"].items()} == {
        record.name: record.splits["train"].documents for record in manifest.sources
    }


def test_a_folder_and_a_run_are_inspected(prepare: Run, tmp_path: Path) -> None:
    assert prepare("a.jsonl", "--tokenizer", "bytes", "--held-out", "0.2", "--quiet")[0] == 0
    code, out, _ = prepare("--inspect", "data/a", "--quiet")
    assert code == 0
    assert out.splitlines()[0] == "data/a"
    assert "Tokens a document, train" in out
    code, out, _ = prepare("--inspect", "data/a", "--json", "--quiet")
    assert json.loads(out)["splits"]["train"]["documents"] == len(open_prepared("data/a").train.documents)
    code, _, err = prepare("--inspect", ".", "--quiet")
    assert (code, err) == (2, "moeut: .: no prepared data here; make it with `moeut prepare`\n")
    with open("data/a/train-00000.npy", "r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    code, _, err = prepare("--inspect", "data/a", "--quiet")
    assert code == 2
    assert "train-00000.npy is damaged" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("a.jsonl", "--recipe", "c4"), "a.jsonl: name paths or a recipe, not both; a recipe has sources of its own"),
        (("--recipe", "c5-paper"), "--recipe: 'c5-paper' is unknown; did you mean c4-paper?"),
        (("--recipe", "none.yaml"), "[Errno 2] No such file or directory: 'none.yaml'"),
        (("a.jsonl", "--mixing", "byts"), "mixing: input should be 'in_order', 'tokens' or 'files', not 'byts'"),
        (("a.jsonl", "--errors", "ignore"), "errors: input should be 'strict' or 'replace', not 'ignore'"),
        (("a.jsonl", "--held-out", "1"), "held_out.share: input should be less than 1, not 1.0"),
        (("a.jsonl", "--sources.0.wieght", "2"), "sources.0.wieght: unknown; did you mean sources.0.weight?"),
        (("a.jsonl", "--tokenizer", "bytes", "--vocab-size", "9"), "tokenizer.vocab_size: unknown; there are: kind"),
        (("a.jsonl", "--vocab-size", "9"), "tokenizer.vocab_size: input should be greater than or equal to 257, not 9"),
        (("a.jsonl", "--text-column", "body"), "a.jsonl:1: no column 'body'; the columns there are: 'text'"),
        (("a.jsonl", "--max-tokens", "1e9", "--tokenizer", "bytes"), "max_tokens: the sources have only"),
        (("a.jsonl", "--held_out.share"), "--held_out.share: a value is missing"),
    ],
)
def test_a_mistake_is_one_line(prepare: Run, arguments: tuple[str, ...], complaint: str) -> None:
    code, out, err = prepare(*arguments, "--quiet")
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert line.startswith(f"moeut: {complaint}")


def test_a_number_that_is_none(prepare: Run, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        prepare("a.jsonl", "--max-tokens", "1.5")
    assert "'1.5' is not a whole number, such as 1000000000 or 1e9" in capfd.readouterr().err
