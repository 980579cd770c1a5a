"""Are our models and those of transformers opened alike, and is what cannot be opened named in a line?"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from examined import save_rival, save_tiny, tokenizer_of_items
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from moeut.data.tokenizer import encode
from moeut.evaluation.subject import is_ours, open_ours, open_theirs
from moeut.files import sha256
from moeut.model.elastic_depth import with_repeats
from moeut.model.folder import load_model

TEXTS = ["She said it was the naïveté.", " and", ""]


def test_a_model_of_ours(tmp_path: Path):
    folder = save_tiny(tmp_path / "ours")
    it = open_ours(folder, context_length=48)
    assert is_ours(folder)
    assert it.encode(TEXTS) == encode(tokenizer_of_items(), TEXTS)
    assert it.decode(it.encode(TEXTS)[0]) == TEXTS[0]
    assert (it.name, it.prefix_ids, it.begin_id, it.end_id) == (str(folder), (), 0, 0)
    assert (it.context_length, it.max_length, it.device.type) == (48, 48, "cpu")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(it.model(ids).logits, load_model(folder).eval()(ids).logits)
    assert not it.model.training
    assert it.facts["class"] == "LanguageModel"
    assert it.facts["files"]["model.safetensors"] == sha256(folder / "model.safetensors")
    assert it.facts["num_repeats"] == 2
    assert open_ours(folder, change=lambda model: with_repeats(model, 5)).facts["num_repeats"] == 5


@pytest.mark.parametrize(
    ("saved", "asked", "got"),
    [
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, None, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_at_least_single_precision_unless_asked(tmp_path: Path, saved: torch.dtype, asked: Any, got: torch.dtype):
    ours, theirs = save_tiny(tmp_path / "ours", saved), save_rival(tmp_path / "theirs", dtype=saved)
    for it in (open_ours(ours, dtype=asked), open_theirs(str(theirs), dtype=asked)):
        assert next(it.model.parameters()).dtype == got
        assert it.facts["dtype"] == str(got).removeprefix("torch.")


def test_a_model_of_transformers(tmp_path: Path):
    folder = save_rival(tmp_path / "theirs")
    it = open_theirs(str(folder))
    assert not is_ours(folder)
    assert it.encode(TEXTS) == encode(tokenizer_of_items(), TEXTS)
    assert it.decode(it.encode(TEXTS)[0]) == TEXTS[0]
    assert (it.prefix_ids, it.begin_id, it.end_id) == ((), 0, 0)
    assert (it.context_length, it.max_length) == (64, 64)
    assert replace(open_theirs(str(folder), context_length=32)).max_length == 32
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(it.model(ids).logits, LlamaForCausalLM.from_pretrained(folder)(ids).logits)
    assert it.facts["class"] == "LlamaForCausalLM"
    assert it.facts["files"]["model.safetensors"] == sha256(folder / "model.safetensors")
    long = open_theirs(str(save_rival(tmp_path / "long", max_position_embeddings=4096)))
    assert (long.context_length, long.max_length) == (1024, 4096)


def test_a_tokenizer_that_begins_every_text(tmp_path: Path):
    it = open_theirs(str(save_rival(tmp_path, marks=True)))
    assert it.prefix_ids == (0,)
    assert it.encode(TEXTS) == encode(tokenizer_of_items(), TEXTS)


def test_what_cannot_be_opened(tmp_path: Path):
    folder = save_tiny(tmp_path / "ours")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    with pytest.raises(ValueError, match=r"nowhere.*config.json is missing"):
        open_ours(tmp_path / "nowhere")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.json: no such file"):
        open_ours(folder)
    other = tmp_path / "other"
    other.mkdir()
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 400, "content": "<extra>"})
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"other: its tokenizer has 401 tokens, more than the model in .*ours \(400\)"):
        open_ours(folder, tokenizer_folder=other)
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(ValueError, match=r": no causal model that transformers can read \("):
        open_theirs(str(tmp_path))
    rival = save_rival(tmp_path / "theirs")
    weights = load_file(rival / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, rival / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"theirs: its weights lack model\.norm\.weight"):
        open_theirs(str(rival))
    rival = save_rival(tmp_path / "theirs")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer_of_items()).save_pretrained(rival)
    with pytest.raises(ValueError, match="its tokenizer has no token that begins or ends a text"):
        open_theirs(str(rival))
