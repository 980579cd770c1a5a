"""Is a corpus found by what a user calls it, and prepared for the scale?"""

import json
import time
from pathlib import Path
from threading import Thread

import pytest

from moeut.data.recipe import read_recipe, recipe_config
from moeut.data.sources import FilesSource, StandardLibrarySource
from moeut.data.tokenizer import BpeTokenizer
from moeut.data.tokens import read_manifest
from moeut.experiments.reproduction.claims import claimed
from moeut.experiments.reproduction.corpora import data_folder, prepare_texts, short_name
from moeut.experiments.reproduction.scales import PAPER, SMALL, TINY
from moeut.training.progress import Progress

QUIET = Progress(quiet=True)


def write(file: Path, documents: int) -> str:
    file.write_text("".join(json.dumps({"text": f"{number} lazy dogs"}) + "\n" for number in range(documents)))
    return str(file)


def test_names():
    assert short_name("texts/prose.jsonl.xz") == "prose"
    assert short_name("c4") == "c4"
    assert data_folder("texts/prose.jsonl.xz", Path("out")) == Path("out/data/prose")


def test_a_text_is_prepared_once_and_a_prepared_one_left_alone(tmp_path: Path):
    corpus = write(tmp_path / "text.jsonl", 400)
    folder, recipe = data_folder(corpus, tmp_path / "out"), SMALL.recipe(corpus)
    prepare_texts({corpus: recipe}, tmp_path / "out", QUIET)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for name in (corpus, str(folder)):
        prepare_texts({name: recipe}, tmp_path / "out", QUIET)
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    manifest = read_manifest(folder)
    assert sum(counts.documents for counts in manifest.splits.values()) == 400
    assert data_folder(str(folder), tmp_path / "elsewhere") == folder
    assert list((tmp_path / "out" / "claims").iterdir()) == []


def test_who_comes_second_waits(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    corpus, out = write(tmp_path / "text.jsonl", 400), tmp_path / "out"
    with claimed(out / "claims" / "data-text"), Progress() as progress:
        second = Thread(target=prepare_texts, args=({corpus: SMALL.recipe(corpus)}, out, progress))
        second.start()
        while "waiting" not in capfd.readouterr().err:
            time.sleep(0.01)
        assert not data_folder(corpus, out).exists()
    second.join()
    assert read_manifest(data_folder(corpus, out)).splits["train"].documents > 300


def test_recipes():
    own = SMALL.recipe("texts/prose.jsonl.xz")
    assert own.sources == (FilesSource(paths=("texts/prose.jsonl.xz",)),)
    assert (own.tokenizer, own.max_tokens) == (BpeTokenizer(vocab_size=2048), None)
    library = TINY.recipe("stdlib")
    assert (library.sources, library.max_tokens) == ((StandardLibrarySource(),), 500_000)
    assert PAPER.recipe("c4") == recipe_config(read_recipe("c4"))


def test_what_is_no_text_is_refused(tmp_path: Path):
    corpus = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        prepare_texts({corpus: TINY.recipe(corpus)}, tmp_path, QUIET)
