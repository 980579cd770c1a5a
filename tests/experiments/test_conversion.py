"""Do official files become model folders that compute and read as they did, and back, and is none ever half there?"""

import io
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import case, checkpoint, weights, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import moeut.experiments.conversion as conversion
from moeut.data.tokenizer import encode, load_tokenizer, train_tokenizer
from moeut.experiments.conversion import convert, export_official, report
from moeut.hf import MoEUTForCausalLM
from moeut.model.folder import load_model, save_model
from moeut.model.language_model import LanguageModel
from moeut.official.names import from_official, to_official
from moeut.official.release import release_config
from moeut.official.repository import REPOSITORY, OfficialFiles

TEXT = [
    "the cat sat on the mat",
    "that cat ate 12 hats",
    "a hat on a mat is at 3 o'clock",
    "he sat",
    "the hats the mats",
]
RELEASE = release_config(
    n_tokens=61, d_model=24, n_layers=4, n_heads=2, ff_n_experts=6, att_n_experts=1, d_head=16, ff_k=2,
    ff_expert_size=10, entropy_reg=0.05,
)  # fmt: skip


@cache
def words(vocab_size: int = 61) -> bytes:
    """A SentencePiece model as the training code makes one."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="SentencePiece is needed to make a model of it")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 5), model_writer=model, vocab_size=vocab_size, model_type="bpe",
        split_digits=True, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "C4_tiny.ckpt", checkpoint())


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(words())
    return str(file)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def worst_error(logits: Tensor, official: Tensor) -> float:
    return ((logits.double() - official).abs().max() / official.abs().max()).item()


def assert_official_logits(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Through our own reader and through transformers', in single and in double precision."""
    exact = tensors.get("f64buf/eval/logits", tensors["ref/eval/logits"])
    ids = tensors["input_ids"]
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(theirs, MoEUTForCausalLM)
    for model in (load_model(folder), theirs):
        assert worst_error(model.eval()(ids).logits, tensors["ref/eval/logits"]) < 1e-5
        assert worst_error(model.double()(ids).logits, exact) < 1e-10


@pytest.mark.parametrize("name", ["train_moeut_periln_aabb", "train_sut_act_postln"])
def test_a_checkpoint_becomes_a_folder_with_the_official_logits(tmp_path: Path, name: str, tokenizer: str):
    file = write_checkpoint(tmp_path / "model.ckpt", checkpoint(name))
    made = convert(file, tmp_path / "deep" / "out", tokenizer=tokenizer)
    assert_official_logits(tmp_path / "deep" / "out", case(name)[1])
    assert (made.parameters, made.dtype, made.tokenizer, made.notes) == (
        case(name)[0]["n_parameters"], "float32", tokenizer, (),
    )  # fmt: skip
    assert names(tmp_path / "deep") == {"out"}
    card = (tmp_path / "deep" / "out" / "README.md").read_text("utf-8")
    assert "# out\n" in card
    assert "The weights are those of `model.ckpt`, under" in card
    assert "| `task` | `c4_transformer` |" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("key", ["released_style", "full"])
def test_the_official_trainers_own_checkpoint(pytestconfig: pytest.Config, tmp_path: Path, key: str):
    folder = Path(str(pytestconfig.getoption("--parity")))
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no official numbers at {folder}: give --parity PATH")
    files = json.loads((folder / "manifest.json").read_text())["checkpoint"]["files"]
    convert(folder / files[key], tmp_path / "out")
    assert_official_logits(tmp_path / "out", load_file(folder / files["expected"]))


def test_the_tokenizer_comes_along_with_its_ids(tmp_path: Path, official: Path, tokenizer: str):
    sentencepiece = pytest.importorskip("sentencepiece", reason="SentencePiece itself is needed to compare with")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=words())
    convert(official, tmp_path / "out", tokenizer=tokenizer)
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert fast.is_fast
    for text in [*TEXT, "  two\n\nlines ", "</s> is text, as is <s>", "naïve 99", ""]:
        assert encode(load_tokenizer(tmp_path / "out"), [text]) == [theirs.encode(text)]
        assert fast(text, add_special_tokens=False)["input_ids"] == theirs.encode(text)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == theirs.eos_id() == fast.eos_token_id == 2


def test_a_folder_without_a_tokenizer(tmp_path: Path, official: Path):
    made = convert(official, tmp_path / "out")
    assert made.tokenizer is None
    assert "tokenizer.json" not in names(tmp_path / "out")
    assert report(made).splitlines() == [
        f"17,917 parameters in float32, from {official}",
        "  switchhead, sigma_moe, peri-layernorm; 2 × 2 layers of 24 channels; 61 tokens",
        "  tokenizer: none, so it takes no text; give one with --tokenizer",
    ]


def test_what_should_be_known_is_reported(tmp_path: Path):
    file = write_checkpoint(tmp_path / "model.ckpt", checkpoint(lm__trafo__context_blocks=1))
    made = convert(file, tmp_path / "out")
    assert made.notes[0].startswith("lm.trafo.context_blocks 1 has no full counterpart")
    assert report(made).splitlines()[-1] == f"  note: {made.notes[0]}"


def test_another_models_tokenizer_is_refused(tmp_path: Path, official: Path):
    wrong = tmp_path / "wrong.model"
    wrong.write_bytes(words(60))
    line = rf"^{re.escape(str(wrong))}: not the tokenizer of this model: it has 60 tokens, the model 61$"
    with pytest.raises(ValueError, match=line):
        convert(official, tmp_path / "out", tokenizer=str(wrong))
    with pytest.raises(ValueError, match=r"nothing\.model: no such file or folder"):
        convert(official, tmp_path / "out", tokenizer=str(tmp_path / "nothing.model"))
    wrong.write_bytes(b"no model of words")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(wrong))}: not a SentencePiece model$"):
        convert(official, tmp_path / "out", tokenizer=str(wrong))
    assert names(tmp_path) == {official.name, wrong.name}


def test_a_padded_vocabulary_of_a_state_dict(tmp_path: Path):
    """Others make the embedding larger than their tokenizer, never smaller."""
    torch.save(weights(case("moeut_att1_gate")[1]), tmp_path / "weights.pt")
    for vocab_size, fits in ((60, True), (61, True), (62, False)):
        file = tmp_path / f"{vocab_size}.model"
        file.write_bytes(words(vocab_size))
        if fits:
            convert(tmp_path / "weights.pt", tmp_path / "out", config=RELEASE, tokenizer=str(file), overwrite=True)
            assert load_tokenizer(tmp_path / "out").get_vocab_size() == vocab_size
        else:
            with pytest.raises(ValueError, match="it has 62 tokens, the model 61"):
                convert(tmp_path / "weights.pt", tmp_path / "new", config=RELEASE, tokenizer=str(file))


def test_a_folder_in_the_way(tmp_path: Path, official: Path):
    out = tmp_path / "out"
    out.mkdir()
    convert(official, out)  # nothing is lost
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(out))}: a model is there already; choose another folder, or"
    ):
        convert(official, out)
    other = checkpoint()
    other["model"] = {**other["model"], "output.bias": torch.ones(61)}
    convert(write_checkpoint(tmp_path / "other.ckpt", other), out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    for precious in (tmp_path / "notes", official):
        if precious != official:
            precious.mkdir()
            (precious / "thoughts.txt").write_text("mine")
        with pytest.raises(ValueError, match="something else than a model is in the way; choose another folder"):
            convert(official, precious, overwrite=True)
    assert names(tmp_path) == {"out", "notes", "other.ckpt", official.name}
    assert (tmp_path / "notes" / "thoughts.txt").read_text() == "mine"


def test_what_fails_leaves_nothing_behind(tmp_path: Path, official: Path):
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(official.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged\.ckpt: damaged, or no checkpoint"):
        convert(damaged, tmp_path / "out")
    assert names(tmp_path) == {"damaged.ckpt", official.name}


def test_an_interrupted_conversion_is_taken_up(
    tmp_path: Path, official: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
):
    """A full disk, or a kill: the folder's name is not there, and the next conversion makes it."""

    def full(*arguments: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "save_tokenizer", full)
        with pytest.raises(OSError, match="No space left"):
            convert(official, tmp_path / "out", tokenizer=tokenizer)
    assert names(tmp_path) == {".out.partial", "tokenizer.model", official.name}
    convert(official, tmp_path / "out", tokenizer=tokenizer)
    assert names(tmp_path) == {"out", "tokenizer.model", official.name}
    assert_official_logits(tmp_path / "out", case("train_moeut_periln_aabb")[1])


def test_a_checkpoint_by_its_name(tmp_path: Path, official: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, bool]] = []

    def fetch(name: str, notice: object, *, with_tokenizer: bool) -> OfficialFiles:
        asked.append((name, with_tokenizer))
        return OfficialFiles(official, Path(tokenizer) if with_tokenizer else None)

    monkeypatch.setattr(conversion, "fetch_official", fetch)
    made = convert("official:c4-tiny", tmp_path / "out")
    assert (made.file, made.tokenizer) == (str(official), tokenizer)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"`{official.name}` in the Hub's repository `{REPOSITORY}`, under" in card
    other = tmp_path / "mine.model"
    other.write_bytes(words())
    made = convert("official:c4-tiny", tmp_path / "other", tokenizer=str(other))
    assert made.tokenizer == str(other)
    assert asked == [("official:c4-tiny", True), ("official:c4-tiny", False)]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_to_the_clean_release_and_back(tmp_path: Path, suffix: str):
    """The release's own weights through a folder of ours, unchanged, with the call that takes them."""
    original = weights(case("moeut_att1_gate")[1])
    torch.save(original, tmp_path / "theirs.pt")
    convert(tmp_path / "theirs.pt", tmp_path / "ours", config=RELEASE)
    assert_official_logits(tmp_path / "ours", case("moeut_att1_gate")[1])
    file = tmp_path / "deep" / f"again.{suffix}"
    call = export_official(tmp_path / "ours", file)
    assert release_config(**call) == RELEASE  # pyright: ignore[reportArgumentType]
    again = load_file(file) if suffix == "safetensors" else torch.load(file, weights_only=True)
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in original.items())


def test_weights_of_the_training_code_fit_the_clean_release():
    """As both official code bases have it: equal names but for their spelling."""
    ours = from_official(weights(case("train_moeut_periln_aabb")[1]))
    assert from_official(to_official(ours)).keys() == ours.keys()


def test_a_model_that_the_release_cannot_be(tmp_path: Path):
    pre = replace(RELEASE, norm="pre", layer_norm_eps=1e-6)
    save_model(LanguageModel(pre), tmp_path / "model")
    name = re.escape(str(tmp_path / "model"))
    with pytest.raises(ValueError, match=rf"^{name}: norm: 'pre' is not .*\n{name}: layer_norm_eps: .*$"):
        export_official(tmp_path / "model", tmp_path / "out.pt")
    assert names(tmp_path) == {"model"}


def test_a_file_in_the_way_of_an_export(tmp_path: Path):
    save_model(LanguageModel(RELEASE), tmp_path / "model")
    out = tmp_path / "out.pt"
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"out\.pt: is there already; choose another name, or --overwrite$"):
        export_official(tmp_path / "model", out)
    assert out.read_text() == "mine"
    export_official(tmp_path / "model", out, overwrite=True)
    assert torch.load(out, weights_only=True)["embedding.weight"].shape == (61, 24)
    with pytest.raises(ValueError, match=r"model: a folder is in the way"):
        export_official(tmp_path / "model", tmp_path / "model", overwrite=True)


def test_a_tokenizer_of_any_kind(tmp_path: Path):
    """A folder with a tokenizer.json, as models of the clean release may have been trained with."""
    config = replace(RELEASE, vocab_size=300)
    theirs = to_official(LanguageModel(config).state_dict())
    torch.save(theirs, tmp_path / "weights.pt")
    words = train_tokenizer(TEXT * 9, 300)
    (tmp_path / "words").mkdir()
    words.save(str(tmp_path / "words" / "tokenizer.json"))
    convert(tmp_path / "weights.pt", tmp_path / "out", config=config, tokenizer=str(tmp_path / "words"))
    assert encode(load_tokenizer(tmp_path / "out"), TEXT) == encode(words, TEXT)
