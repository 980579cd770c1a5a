"""Is what cannot be trained refused, a line for each mistake, and are the parts those of the configuration?"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import prepared, small_run

from moeut.config import RunConfig
from moeut.evaluation.perplexity import evaluate
from moeut.experiments.parts import build, check, sample, score, summary
from moeut.training.distributed import Ranks
from moeut.training.progress import Progress


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return small_run(prepared(tmp_path))


def test_batch_and_text_are_divided_among_the_ranks(config: RunConfig):
    check(config, Ranks(0, 2))
    with pytest.raises(ValueError, match=r"training\.batch_tokens: 2 sequences .* evenly among 3 processes"):
        check(config, Ranks(0, 3))
    wide = replace(config, training=replace(config.training, batch_tokens=1000, context_length=500))
    with pytest.raises(ValueError, match="cannot be divided") as caught:
        check(wide, Ranks(0, 5))
    mistakes = str(caught.value).splitlines()
    assert len(mistakes) == 2
    assert "fewer than the 5 processes" in mistakes[1]
    long = replace(config.training, batch_tokens=2 * 10**5, context_length=10**5)
    with pytest.raises(ValueError, match="--parallel: 'tp' is none of"):
        check(config, Ranks(), parallel="tp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="--replicas: 4 processes cannot hold 3 replicas"):
        check(config, Ranks(0, 4), parallel="fsdp", replicas=3)
    with pytest.raises(ValueError, match="needs 100001 tokens and there are"):
        check(replace(config, training=long), Ranks())


def test_parts_are_those_of_the_configuration(config: RunConfig):
    checkpointed = replace(config, training=replace(config.training, gradient_checkpointing=True, seed=3))
    first, second = (build(checkpointed, Ranks()) for _ in range(2))
    assert first.module is first.model
    assert first.model.stack.gradient_checkpointing
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    inputs, targets = first.batches.batch(0)
    assert inputs.shape == (2, 16)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])


def test_a_run_in_a_line(config: RunConfig):
    config = replace(config, model=replace(config.model, expert_backend="cpu"))
    line = summary(config, Ranks(0, 2))
    assert "parameters on cpu, 2 processes, expert backend cpu, float32, 2 of 2 sequences at a time" in line
    assert "processes" not in summary(config, Ranks())


def test_scores_and_samples_leave_the_model_in_training(config: RunConfig):
    parts = build(config, Ranks())
    parts.module.train()
    with Progress(quiet=True) as progress:
        scored = score(config, parts, Ranks(), progress)
    assert scored == evaluate(parts.model, parts.data.held_out, 16, 2)
    prompted = replace(config, training=replace(config.training, sample_prompt="7 7"))
    assert sample(prompted, parts).startswith("7 7")
    assert parts.model.training
