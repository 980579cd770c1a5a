"""Is a corpus found by what a user calls it, and prepared for the scale?"""

import json
from pathlib import Path

import pytest

from moeut.data.tokens import read_manifest
from moeut.experiments.reproduction.texts import data_folder, prepare_text, short_name
from moeut.training.progress import Progress

QUIET = Progress(quiet=True)


def write(file: Path, documents: int) -> str:
    file.write_text("".join(json.dumps({"text": f"{number} lazy dogs"}) + "\n" for number in range(documents)))
    return str(file)


def test_names():
    assert short_name("texts/prose.jsonl.xz") == "prose"
    assert short_name("c4") == "c4"
    assert data_folder("texts/prose.jsonl.xz", Path("out")) == Path("out/data/prose")


def test_a_text_is_prepared_for_the_scale_and_a_prepared_one_left_alone(tmp_path: Path):
    corpus = write(tmp_path / "text.jsonl", 400)
    folder = data_folder(corpus, tmp_path / "out")
    for _ in range(2):
        prepare_text(corpus, folder, vocab_size=300, library_tokens=10, progress=QUIET)
    manifest = read_manifest(folder)
    assert manifest.vocab_size == 300
    documents = {split: counts.documents for split, counts in manifest.splits.items()}
    assert sum(documents.values()) == 400
    assert 1 <= documents["held_out"] <= 30
    assert data_folder(str(folder), tmp_path / "elsewhere") == folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    prepare_text(str(folder), folder, vocab_size=512, library_tokens=None, progress=QUIET)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_standard_library_may_be_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from moeut.data import sources

    everything = sources.standard_library()
    monkeypatch.setattr(sources, "standard_library", lambda: everything[:40])
    prepare_text("stdlib", tmp_path / "data", vocab_size=300, library_tokens=5000, progress=QUIET)
    assert read_manifest(tmp_path / "data").splits["train"].tokens >= 5000


def test_what_is_no_text_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere"):
        prepare_text(str(tmp_path / "nowhere"), tmp_path / "data", vocab_size=300, library_tokens=None, progress=QUIET)
