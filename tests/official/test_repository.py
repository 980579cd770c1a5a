"""Are the official checkpoints found by name and fetched? From a Hub on this machine."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import Answers, Hub, Resets, serving

from moeut.data.download import Patience
from moeut.official.repository import REPOSITORY, fetch_official, find_checkpoint, find_tokenizer_of

# Folders and the first name as the training code's README has them, tokenizers where that code keeps them; the other
# names are made up.
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "checkpoints/C4_44M.ckpt": b"weights of 44M" * 1000,
    "checkpoints/C4_244M.ckpt": b"weights of 244M",
    "checkpoints/PES2O_44M.ckpt": b"weights of papers",
    "checkpoints/TheStack_727M.ckpt": b"weights of programs",
    "cache/C4/C4-en-8000/tokenizer.model.model": b"words of C4",
    "cache/PES2O/PES2O-v2-8000/tokenizer.model.model": b"words of papers",
}
PATIENCE = Patience(tries=3, timeout_seconds=5.0, sleep=lambda seconds: None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(Hub(dict(FILES), dataset=REPOSITORY, kind="models")) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield hub


def test_a_checkpoint_comes_with_its_tokenizer(hub: Hub, capfd: pytest.CaptureFixture[str]):
    files = fetch_official("official:c4-44m", pytest.fail, patience=PATIENCE)
    assert files.checkpoint.read_bytes() == FILES["checkpoints/C4_44M.ckpt"]
    assert files.tokenizer is not None
    assert files.tokenizer.read_bytes() == FILES["cache/C4/C4-en-8000/tokenizer.model.model"]
    assert (files.checkpoint.suffix, files.tokenizer.suffix) == (".ckpt", ".model")
    asked = len([path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path])
    assert asked == 2
    again = fetch_official("C4_44M.ckpt", pytest.fail, with_tokenizer=False, patience=PATIENCE)
    assert again == (files.checkpoint, None)
    assert len([path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]) == asked


def test_a_network_that_fails_for_a_while(hub: Hub):
    hub.faults = {"info": [Answers(503)], "checkpoints/PES2O_44M.ckpt": [Answers(500), Resets(after=5)]}
    notices: list[str] = []
    files = fetch_official("pes2o-44m", notices.append, patience=PATIENCE)
    assert files.checkpoint.read_bytes() == FILES["checkpoints/PES2O_44M.ckpt"]
    assert f"{REPOSITORY}: the Hub answers 503; trying again in 1 s" in notices


def test_a_hub_that_does_not_answer(hub: Hub):
    hub.faults["info"] = [Answers(503)] * 3
    with pytest.raises(ValueError, match=rf"^{REPOSITORY}: gave up after 3 tries \(the Hub answers 503\)"):
        fetch_official("c4-44m", lambda text: None, patience=PATIENCE)
    hub.faults["info"] = [Answers(401)]
    with pytest.raises(ValueError, match=rf"^{REPOSITORY}: the Hub answers 401; log in"):
        fetch_official("c4-44m", pytest.fail, patience=PATIENCE)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("C4_44M", "C4_44M"), ("c4-44m", "C4_44M"), ("c4 44m", "C4_44M"), ("C4-44M.ckpt", "C4_44M"),
        ("c4-244m", "C4_244M"), ("stack", "TheStack_727M"), ("727m", "TheStack_727M"),
    ],
)  # fmt: skip
def test_names_are_meant_leniently_but_one_file(name: str, file: str):
    assert find_checkpoint(name, [*FILES]) == f"checkpoints/{file}.ckpt"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("c4-1b", "official:c4-1b: no checkpoint of that name; there are: C4_44M, C4_244M, PES2O_44M, TheStack_727M"),
        ("c4", "official:c4: several checkpoints of that name; there are: C4_44M, C4_244M"),
        ("44m", "official:44m: several checkpoints of that name; there are: C4_44M, C4_244M, PES2O_44M"),
        ("", "official:: no checkpoint of that name; there are: C4_44M, C4_244M, PES2O_44M, TheStack_727M"),
    ],
)
def test_what_is_not_one_file_is_answered_by_a_list(name: str, line: str):
    with pytest.raises(ValueError, match=f"^{line}$"):
        find_checkpoint(name, [*FILES])


def test_a_checkpoint_without_one_tokenizer():
    assert find_tokenizer_of("checkpoints/PES2O_44M.ckpt", [*FILES]).startswith("cache/PES2O/")
    with pytest.raises(ValueError, match=r"^checkpoints/TheStack_727M\.ckpt: not one tokenizer for it; name one with"):
        find_tokenizer_of("checkpoints/TheStack_727M.ckpt", [*FILES])
    with pytest.raises(ValueError, match=r"there are: cache/C4/a\.model, cache/C4/b\.model$"):
        find_tokenizer_of("checkpoints/C4_44M.ckpt", ["cache/C4/a.model", "cache/C4/b.model", "cache/PES2O/c.model"])
