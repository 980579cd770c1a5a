"""Are text, tokenizer and model of different origins refused before anything is computed?"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import prepared, small_run

from moeut.data.tokenizer import byte_tokenizer
from moeut.experiments.matching import longer_than_trained, model_tree, open_matching, refuse_another_model
from moeut.experiments.run import train
from moeut.trees import to_tree


def test_a_tokenizer_must_be_small_enough_and_the_models_own(tmp_path: Path):
    data = prepared(tmp_path)
    config = small_run(data)
    assert open_matching(data, config.model).manifest.vocab_size == 257
    with pytest.raises(ValueError, match=r"257 tokens, more than model\.vocab_size 256; raise that"):
        open_matching(data, replace(config.model, vocab_size=256))
    assert open_matching(data, config.model, data).folder == data
    other = tmp_path / "other"
    other.mkdir()
    tokenizer = json.loads((data / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["!"], tokenizer["model"]["vocab"]['"'] = 35, 34
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"is not the one that .*other was trained with"):
        open_matching(data, config.model, other)


def test_weights_fit_only_a_model_of_their_shape(tmp_path: Path):
    config = small_run(prepared(tmp_path), num_steps=1)
    train(config, tmp_path / "run", quiet=True)
    assert model_tree(tmp_path / "run") == to_tree(config.model)
    refuse_another_model(tmp_path / "run", config.model)
    refuse_another_model(tmp_path / "run", replace(config.model, hidden_dropout=0.2, expert_backend="reference"))
    deeper = replace(config.model, num_hidden_layers=4)
    with pytest.raises(ValueError, match=r"is another model \(num_hidden_layers: 2, now 4\)"):
        refuse_another_model(tmp_path / "run", deeper)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"config\.json is that of a model of type 'gpt2'"):
        model_tree(tmp_path / "foreign")


def test_prompts_longer_than_anything_trained(tmp_path: Path):
    config = small_run(tmp_path)
    trained = config.training.context_length
    assert longer_than_trained("a" * trained, byte_tokenizer(), config) is None
    said = longer_than_trained("a" * (trained + 1), byte_tokenizer(), config)
    assert said == f"the prompt has {trained + 1} tokens, more than the model was trained on at a time ({trained})"
