"""Does `auto` mean as much as fits, and is it refused where nothing does?"""

from dataclasses import replace
from pathlib import Path

import pytest
from small_run import small_run

from moeut.experiments import resources
from moeut.experiments.resources import USED_SHARE, resolved
from moeut.training.distributed import Ranks
from moeut.training.memory import peak_bytes

AUTO = {"micro_batch_size": "auto", "precision": "auto", "batch_tokens": 16 * 64}


def test_as_many_sequences_as_fit(monkeypatch: pytest.MonkeyPatch):
    config = small_run(Path("nowhere"), **AUTO)
    needed = {rows: peak_bytes(config.model, config.training, rows, "float32") for rows in (64, 32, 16)}
    assert needed[64] > needed[32] > needed[16]

    def found(free: int, ranks: Ranks = Ranks()) -> object:  # noqa: B008 (immutable)
        monkeypatch.setattr(resources, "free_memory_bytes", lambda device: free)
        return resolved(config, ranks).training.micro_batch_size

    assert found(10**12) == 64
    assert found(int(needed[64] / USED_SHARE) - 1) == 32
    assert found(int(needed[32] / USED_SHARE) - 1) == 16
    assert found(10**12, Ranks(0, 4)) == 16
    # Two processes on one CPU share its memory.
    assert found(int(2 * needed[32] / USED_SHARE) - 1, Ranks(0, 2)) == 16
    with pytest.raises(ValueError, match=r"training\.micro_batch_size: one sequence at a time needs about"):
        found(10**6)


def test_what_is_given_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resources, "free_memory_bytes", lambda device: 0)
    config = small_run(Path("nowhere"), micro_batch_size=1, precision="bfloat16")
    assert resolved(config, Ranks()) == config
    automatic = replace(config, training=replace(config.training, precision="auto"))
    assert resolved(automatic, Ranks()).training.precision == "float32"
