"""Is a configuration read back as it was, and is every mistake in one named, at once?"""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moeut.config import RunConfig, run_config
from moeut.model.feedforward import MLPConfig
from moeut.presets import PRESETS, run_preset
from moeut.trees import differences, merge, read_yaml, to_tree, to_yaml
from moeut.validation import validate

BASE = to_tree(run_preset("tiny", data="data/text"))


def problems(*overrides: tuple[str, str]) -> list[str]:
    with pytest.raises(ValueError, match=r".") as caught:
        run_config(BASE, None, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_reads_back_as_it_was(name: str, tmp_path: Path):
    config = run_preset(name, data="somewhere")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert validate(RunConfig, read_yaml(file)) == config
    assert run_config({}, file, []) == config


def test_later_wins(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("training: {num_steps: 7, batch_tokens: 384}\nmodel: {norm: pre}\n")
    config = run_config(BASE, file, [("training.num_steps", "200"), ("training.schedule.warmup_steps", "0")])
    assert (config.training.num_steps, config.training.batch_size, config.model.norm) == (200, 3, "pre")
    assert config.data == "data/text"
    assert BASE["training"]["num_steps"] != 200


def test_a_part_that_changes_its_kind_loses_the_other_parts_fields():
    config = run_config(
        BASE, None, [("model.feed_forward.kind", "mlp"), ("model.feed_forward.intermediate_size", "100")]
    )
    assert config.model.feed_forward == MLPConfig(intermediate_size=100)
    again = run_config(BASE, None, [("model.feed_forward.kind", "sigma_moe"), ("model.feed_forward.num_experts", "9")])
    assert to_tree(again)["model"]["feed_forward"] == BASE["model"]["feed_forward"] | {"num_experts": 9}


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "1E-3", "+1e-3", ".1e-2"])
def test_numbers_are_read_as_everyone_writes_them(text: str):
    config = run_config(BASE, None, [("training.optimizer.learning_rate", text)])
    assert config.training.optimizer.learning_rate == 0.001


def test_all_mistakes_are_named_at_once():
    lines = problems(
        ("model.groop_size", "2"),
        ("model.hidden_size", "wide"),
        ("model.attention.num_expert", "3"),
        ("training.num_steps", "0"),
        ("training.batch_tokens", "true"),
        ("training.optimizer.learning_rate", "-1"),
    )
    assert sorted(lines) == [
        "model.attention.num_expert: unknown; did you mean model.attention.num_experts?",
        "model.groop_size: unknown; did you mean model.group_size?",
        "model.hidden_size: input should be a valid integer, not 'wide'",
        "training.batch_tokens: input should be a valid integer, not True",
        "training.num_steps: input should be greater than 0, not 0",
        "training.optimizer.learning_rate: input should be greater than 0, not -1",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([("model.group_size", "3")], "model.group_size: 4 layers (num_hidden_layers)"),
        ([("model.feed_forward.num_experts_per_tok", "99")], "model.feed_forward.num_experts_per_tok: 99 experts"),
        ([("model.attention.num_experts_per_tok", "5")], "model.attention.num_experts_per_tok: 5 experts"),
        ([("training.schedule.warmup_steps", "9999")], "training.schedule: 9999 warm-up"),
        ([("model.feed_forward.kind", "mlp")], "model.feed_forward.intermediate_size: missing"),
        ([("model.feed_forward.kind", "mpl")], "model.feed_forward"),
        ([("model", "5")], "model: "),
        ([("nothing.at.all", "5")], "nothing: unknown"),
        ([("model.hidden_size.x", "5")], "model.hidden_size"),
        ([("training.schedule.warmup_steps", "[1")], "training.schedule.warmup_steps: '[1' is not a YAML value"),
        ([("model.layer_order", "baba")], "model.layer_order"),
        ([("model.hidden_dropout", "1.0")], "model.hidden_dropout"),
        ([("training.optimizer.learning_rate", ".inf")], "training.optimizer.learning_rate"),
        ([("training.optimizer.learning_rate", ".nan")], "training.optimizer.learning_rate"),
    ],
)
def test_each_mistake_is_one_line_that_names_the_field(overrides: list[tuple[str, str]], expected: str):
    lines = problems(*overrides)
    assert len(lines) == 1, lines
    assert lines[0].startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("a: [1", "not a YAML file"), ("- 1\n- 2\n", "expected a mapping"), ("", "expected a mapping")],
)
def test_files_that_are_no_settings_are_refused(content: str, expected: str, tmp_path: Path):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=expected):
        run_config(BASE, file, [])


def test_yaml_cannot_run_code(tmp_path: Path):
    file = tmp_path / "hostile.yaml"
    file.write_text("data: !!python/object/apply:os.system ['touch owned']\n")
    with pytest.raises(ValueError, match="not a YAML file"):
        read_yaml(file)


def test_differences_are_named_up_to_three():
    theirs = json.loads(json.dumps(BASE))
    assert differences(BASE, theirs) == []
    merge(theirs, {"data": "x", "model": {"group_size": 4}})
    assert differences(BASE, theirs) == ["data: data/text, now x", "model.group_size: 2, now 4"]
    merge(theirs, {"training": {"num_steps": 1, "batch_tokens": 1}})
    assert differences(BASE, theirs)[-1] == "and 1 more"


leaves = st.one_of(st.integers(), st.booleans(), st.text(max_size=3), st.floats(allow_nan=False))
trees = st.recursive(
    leaves, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(trees, trees)
def test_merging_keeps_what_is_not_named_and_takes_what_is(tree, changes):
    merged = json.loads(json.dumps(tree))
    merge(merged, changes)
    for key in tree.keys() - changes.keys():
        assert merged[key] == tree[key]
    for key, change in changes.items():
        if not isinstance(change, dict):
            assert merged[key] == change
    again = json.loads(json.dumps(merged))
    merge(again, changes)
    assert again == merged


def test_the_tree_of_a_configuration_is_plain():
    assert yaml.safe_load(yaml.safe_dump(BASE)) == BASE
    assert BASE["model"] == to_tree(run_preset("tiny", data="").model)
    assert dataclasses.is_dataclass(RunConfig)
