"""What one can type after `moeut convert`: a whole path each way, and every mistake is a line and exit code 2."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import Hub, serving
from official_files import case, checkpoint, weights, write_checkpoint
from test_conversion import RELEASE, words
from torch.testing import assert_close

from moeut.data.sentencepiece_model import from_sentencepiece
from moeut.data.tokenizer import encode, load_tokenizer
from moeut.model.folder import load_model, save_model
from moeut.model.language_model import LanguageModel
from moeut.official.release import release_config
from moeut.official.repository import REPOSITORY
from moeut.trees import to_tree

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def moeut(moeut: Run, tmp_path: Path) -> Run:
    """Run the command in a folder with official files: (exit code, stdout, stderr)."""
    write_checkpoint(tmp_path / "model.ckpt", checkpoint())
    torch.save(weights(case("moeut_att1_gate")[1]), tmp_path / "weights.pt")
    return moeut


def test_a_checkpoint_that_then_writes(moeut: Run, tmp_path: Path):
    (tmp_path / "words.model").write_bytes(words())
    code, out, err = moeut("convert", "model.ckpt", "out", "--tokenizer", "words.model")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "out: 17,917 parameters in float32, from model.ckpt",
        "  switchhead, sigma_moe, peri-layernorm; 2 × 2 layers of 24 channels; 61 tokens",
        "  tokenizer: words.model",
    ]
    code, out, _ = moeut("generate", "out", "the cat", "--max-new-tokens", "3", "--temperature", "0")
    assert code == 0
    assert out.startswith("the cat")


def test_facts_for_machines(moeut: Run, tmp_path: Path):
    code, out, _ = moeut("convert", "model.ckpt", "out", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["folder"], facts["file"], facts["parameters"], facts["tokenizer"]) == (
        "out",
        "model.ckpt",
        17917,
        None,
    )
    assert facts["config"] == json.loads((tmp_path / "out" / "config.json").read_text())["core"]


def test_a_state_dict_and_back(moeut: Run, tmp_path: Path):
    """The model is said by a YAML file, or by any other name that a model has, with settings changed."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": to_tree(RELEASE)}))
    code, _, err = moeut("convert", "weights.pt", "first", "--config", "mine.yaml")
    assert code == 0, err
    code, _, err = moeut("convert", "weights.pt", "second", "--config", "first", "--model.hidden_dropout", "0.5")
    assert code == 0, err
    assert load_model(tmp_path / "second").config.hidden_dropout == 0.5
    code, out, err = moeut("convert", "first", "again.pt", "--to", "official")
    assert code == 0, err
    assert out.startswith("again.pt: weights of moeut.MoEUTLM(n_tokens=61, d_model=24, n_layers=4, n_heads=2, ")
    theirs, ours = (torch.load(tmp_path / name, weights_only=True) for name in ("weights.pt", "again.pt"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    code, out, _ = moeut("convert", "first", "facts.pt", "--to", "official", "--json")
    assert release_config(**json.loads(out)["arguments"]) == RELEASE


def test_mistakes(moeut: Run, tmp_path: Path):
    save_model(LanguageModel(RELEASE), tmp_path / "taken")
    (tmp_path / "text.ckpt").write_text("no weights")
    torch.save({"wte.weight": torch.zeros(3, 2)}, tmp_path / "gpt2.pt")
    only = "say which model they are of, with --config"
    for words_typed, line in (
        (["nothing.ckpt", "out"], "nothing.ckpt: no such file"),
        (["text.ckpt", "out"], "text.ckpt: damaged, or no checkpoint"),
        (["gpt2.pt", "out"], "gpt2.pt: not weights of a MoEUT or of one of its rivals: wte.weight"),
        (["model.ckpt", "taken"], "taken: a model is there already; choose another folder, or --overwrite"),
        (["weights.pt", "out"], f"weights.pt: holds weights only; {only}"),
        (["model.ckpt", "out", "--config", "taken"], "model.ckpt: says itself which model it is; leave the"),
        (["weights.pt", "out", "--config", "no"], "no: no such file or folder, and no preset; "),
        (["weights.pt", "out", "--model.norm", "pre"], "--model.norm: changes the model that --config names, and"),
        (["model.ckpt", "out", "--tokenizer", "text.ckpt"], "text.ckpt: not a tokenizer ("),
        (["out", "x.pt", "--to", "official"], "out: no model here (config.json is missing); name a model folder"),
        (["taken", "x.pt", "--to", "official", "--config", "tiny"], "--to official: takes a model as it is, without"),
        (["model.ckpt", "out", "--fast"], "--fast: unknown argument; see --help"),
    ):
        code, out, err = moeut("convert", *words_typed)
        assert (code, out) == (2, "")
        assert err.startswith(f"moeut: {line}")
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "x.pt").exists()


def test_a_published_checkpoint_by_its_name(tmp_path: Path):
    """In a process of its own, which is told of another Hub as all are that use `huggingface_hub`: by HF_ENDPOINT."""
    model = write_checkpoint(tmp_path / "model.ckpt", checkpoint())
    files = {
        "checkpoints/C4_tiny.ckpt": model.read_bytes(),
        "cache/C4/C4-en-61/tokenizer.model.model": words(),
        "README.md": b"checkpoints",
    }
    script = (
        "from moeut.cli import main\n"
        "assert main(['convert', 'official:c4-44m', 'out']) == 2\n"
        "assert main(['convert', 'official:c4-tiny', 'out', '--quiet']) == 0\n"
    )
    with serving(Hub(files, dataset=REPOSITORY, kind="models")) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["moeut: official:c4-44m: no checkpoint of that name; there are: C4_tiny"]
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("out: 17,917 parameters in float32, from ")
    assert last.endswith("tokenizer.model.model")
    folder = tmp_path / "out"
    assert encode(load_tokenizer(folder), ["the cat"]) == encode(from_sentencepiece(words()), ["the cat"])
    logits = load_model(folder).eval()(case("train_moeut_periln_aabb")[1]["input_ids"]).logits
    assert_close(logits, case("train_moeut_periln_aabb")[1]["ref/eval/logits"].float(), rtol=0, atol=1e-5)
