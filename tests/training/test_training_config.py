"""Is a training that cannot be refused before it begins, in a line that names the field?"""

from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError

from moeut.training.schedule import ConstantSchedule
from moeut.training.training_config import TrainingConfig

CONFIG = TrainingConfig(num_steps=10, batch_tokens=48, context_length=8)


def test_it_is_read_from_json():
    read = TypeAdapter(TrainingConfig).validate_json(
        '{"num_steps": 10, "batch_tokens": 48, "context_length": 8, "micro_batch_size": "auto", '
        '"schedule": {"kind": "constant", "cooldown_steps": 4}}'
    )
    assert read == replace(CONFIG, schedule=ConstantSchedule(cooldown_steps=4))
    assert read.batch_size == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "greater than 0"),
        ({"batch_tokens": 50}, r"batch_tokens: 50 tokens are no whole number of sequences of 8 .*; 56 are"),
        ({"micro_batch_size": 7}, r"micro_batch_size: 7 sequences are more than the 6 of a step \(batch_tokens\)"),
        ({"micro_batch_size": "some"}, "micro_batch_size"),
        ({"schedule": ConstantSchedule(cooldown_steps=11)}, "schedule: 0 warm-up and 11 cool-down steps do not fit"),
        ({"schedule": ConstantSchedule(warmup_steps=11)}, "schedule: 11 warm-up and 0 cool-down steps do not fit"),
        ({"precision": "float8"}, "precision"),
        ({"max_skipped_steps": 0}, "max_skipped_steps"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        replace(CONFIG, **changes)


def test_when_things_happen():
    config = replace(CONFIG, evaluate_every_steps=4, save_every_steps=3, sample_every_steps=5)
    steps = range(11)
    assert [step for step in steps if config.is_evaluated(step)] == [4, 8, 10]
    assert [step for step in steps[1:] if config.is_saved(step)] == [3, 4, 6, 8, 9, 10]
    assert [step for step in steps if config.is_sampled(step)] == [5, 10]
    assert not any(replace(config, sample_every_steps=None).is_sampled(step) for step in steps)
