"""Does a model, trained here or converted, say what is known of it, and is nobody's README.md written over?"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from small_run import prepared, small_run

from moeut.config import RunConfig
from moeut.data.tokens import read_manifest
from moeut.evaluation.perplexity import Perplexity
from moeut.experiments.card import converted_card, model_card, write_cards
from moeut.experiments.run import train
from moeut.model.cost import cost
from moeut.model.folder import read_config
from moeut.model.language_model import LanguageModel
from moeut.training.report import human
from moeut.training.retention import damage
from moeut.variants import dense

SCORES = Perplexity(2.5, math.exp(2.5), 1.25, 1234, 5678, 0.01)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return small_run(prepared(tmp_path))


def front_matter(card: str) -> dict:
    before, between, _ = card.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(between)


def test_a_finished_run_has_a_card(config: RunConfig, tmp_path: Path):
    run = tmp_path / "run"
    result = train(config, run, license="mit", quiet=True)
    assert result.held_out is not None
    card = (run / "final" / "README.md").read_text("utf-8")
    costs = cost(config.model, config.training.context_length)
    manifest = read_manifest(Path(config.data))
    known = [
        "# run\n",
        f"| parameters | {costs.parameters:,} ",
        f"| active | {costs.active_parameters:,} ",
        "| attention | switchhead: num_attention_heads 2, head_dim 8, num_experts 2, num_experts_per_tok 2 |",
        "| feed-forward | sigma_moe: num_experts 4, num_experts_per_tok 2, moe_intermediate_size 8 |",
        "| vocabulary | 257 tokens |",
        f"| multiply-adds | {costs.macs_per_token:,} a token, forward, context 16 |",
        "256 tokens in 8 steps of 32, in sequences of 16.",
        f"{manifest.splits['train'].tokens:,} tokens for training",
        str(tmp_path / "*.txt"),
        f"| bits per byte | {result.held_out.bits_per_byte:.4f} |",
        f"| perplexity | {result.held_out.perplexity:.3f} |",
        "trained on sequences of 16 tokens",
        "## Licence\n\n`mit`",
    ]
    assert [text for text in known if text not in card] == []
    assert front_matter(card) == {
        "library_name": "moeut",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "tags": ["moeut", "mixture-of-experts", "universal-transformer"],
    }
    assert damage((run / "final").resolve()) is None
    assert read_config(run / "final")["max_position_embeddings"] == 16


def test_the_last_and_the_best_have_a_card_with_their_own_figures(config: RunConfig, tmp_path: Path):
    """A learning rate that ruins the model after its first steps makes an earlier checkpoint the best."""
    run = tmp_path / "run"
    optimizer = replace(config.training.optimizer, learning_rate=3.0)
    training = replace(config.training, optimizer=optimizer, evaluate_every_steps=1, keep_checkpoints=1)
    train(replace(config, training=training), run, quiet=True)
    best, final = ((run / name).resolve() for name in ("best", "final"))
    assert best != final
    cards = [(folder / "README.md").read_text("utf-8") for folder in (best, final)]
    figures = [next(line for line in card.splitlines() if line.startswith("| bits per byte")) for card in cards]
    assert figures[0] != figures[1]
    assert f"in {int(best.name[-8:]):,} steps" in cards[0]


def test_a_readme_that_is_there_stays(config: RunConfig, tmp_path: Path):
    run = tmp_path / "run"
    train(config, run, quiet=True)
    card = run / "final" / "README.md"
    card.write_text("mine")
    write_cards(run, "mit")
    assert card.read_text() == "mine"
    card.unlink()
    write_cards(run, "mit")
    assert "license: mit\n" in card.read_text("utf-8")


def test_what_is_not_known_is_not_claimed(config: RunConfig):
    card = model_card(config, 8, None, None, name="a model")
    assert "license" not in front_matter(card)
    assert "## Evaluation\n\nNot known.\n" in card
    assert "## Licence\n\nNobody has stated one." in card
    assert f"What was in the data, `{config.data}`, is not known here." in card
    assert "began with" not in card
    assert "It began with the weights of `elsewhere`." in model_card(
        replace(config, init_from="elsewhere"), 8, None, SCORES, name="a model"
    )


def test_tags_are_those_of_the_parts(config: RunConfig):
    model = dense(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, head_dim=4, intermediate_size=8)
    tags = front_matter(model_card(replace(config, model=model), 8, None, SCORES, name="dense"))["tags"]
    assert tags == ["moeut"]
    shared = replace(config, model=replace(model, group_size=1))
    assert front_matter(model_card(shared, 8, None, SCORES, name="ut"))["tags"] == ["moeut", "universal-transformer"]


def test_a_run_without_checkpoints_has_no_card(tmp_path: Path):
    (tmp_path / "run").mkdir()
    write_cards(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_sources_that_are_only_held_out_are_no_training_data(config: RunConfig):
    manifest = read_manifest(Path(config.data))
    [source] = manifest.sources
    held_out = replace(source, name="kept apart", splits={"held_out": source.splits["held_out"]})
    card = model_card(config, 8, replace(manifest, sources=(source, held_out)), SCORES, name="run")
    assert source.name in card
    assert "kept apart" not in card


ARGUMENTS = {"task": "c4_transformer", "stop_after": "100000", "lr": 0.00025, "wandb_id": "secret", "profile": None}


def test_a_converted_model_says_what_its_file_says(config: RunConfig):
    model = LanguageModel(config.model).bfloat16()
    card = converted_card(
        model, "`C4_44M.ckpt`", ARGUMENTS, ["dropout 0.1 has no full counterpart"], name="c4-44m", has_tokenizer=True
    )
    parameters = cost(config.model).parameters
    known = [
        "# c4-44m\n",
        f"| parameters | {parameters:,} ",
        f"| weights | {human(2 * parameters)} bfloat16 |",
        "The weights are those of `C4_44M.ckpt`, under the names they have here.",
        "| | |\n| --- | --- |\n| `task` | `c4_transformer` |\n| `stop_after` | `100000` |\n| `lr` | `0.00025` |\n\n",
        "Note: dropout 0.1 has no full counterpart.",
        "## Evaluation\n\nNot known.\n",
        "pipeline(",
    ]
    assert [text for text in known if text not in card] == []
    assert [word for word in ("secret", "None", "trained on sequences of", "license: ") if word in card] == []
    assert front_matter(card)["tags"] == ["moeut", "mixture-of-experts", "universal-transformer"]


def test_of_weights_alone_no_training_is_told(config: RunConfig):
    card = converted_card(LanguageModel(config.model), "`weights.pt`", None, [], name="mine", has_tokenizer=False)
    assert "`weights.pt`, under the names they have here. How they were trained is not known.\n" in card
    assert "It has no tokenizer and takes token ids" in card
    assert "pipeline(" not in card
