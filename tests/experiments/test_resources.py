"""Does `auto` mean as much as fits, and is it refused where nothing does?"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import small_run

from moeut.config import RunConfig
from moeut.experiments import resources
from moeut.experiments.resources import USED_SHARE, resolved
from moeut.experts import native
from moeut.model.language_model import ModelConfig
from moeut.training.distributed import Ranks
from moeut.training.memory import peak_bytes
from moeut.variants import dense

AUTO = {"micro_batch_size": "auto", "precision": "auto", "batch_tokens": 16 * 64}


def test_as_many_sequences_as_fit(monkeypatch: pytest.MonkeyPatch):
    config = small_run(Path("nowhere"), **AUTO)
    needed = {rows: peak_bytes(config.model, config.training, rows, "float32") for rows in (64, 32, 16)}
    assert needed[64] > needed[32] > needed[16]

    def found(free: int, ranks: Ranks = Ranks()) -> object:  # noqa: B008 (immutable)
        monkeypatch.setattr(resources, "free_memory_bytes", lambda device: free)
        return resolved(config, ranks, unexpected).training.micro_batch_size

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
    config = replace(config, model=replace(config.model, expert_backend="reference"))
    assert resolved(config, Ranks(), unexpected) == config
    automatic = replace(config, training=replace(config.training, precision="auto"))
    assert resolved(automatic, Ranks(), unexpected).training.precision == "float32"


def test_a_long_run_has_its_experts_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled: list[int] = []
    monkeypatch.setattr(resources.native, "library", lambda: compiled.append(1))
    config = small_run(tmp_path)
    assert resolved(config, Ranks(), unexpected).model.expert_backend == "cpu"
    assert not compiled
    resolved(lasting(config), Ranks(), unexpected)
    assert compiled == [1]
    asked = replace(lasting(config), model=replace(config.model, expert_backend="cpu"))
    no_experts = replace(lasting(config), model=dense_model())
    assert resolved(asked, Ranks(), unexpected) == asked
    assert resolved(no_experts, Ranks(), unexpected) == no_experts
    assert compiled == [1]


def test_what_has_been_compiled_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(resources.native, "built", lambda: True)
    assert resolved(small_run(tmp_path), Ranks(), unexpected).model.expert_backend == "native"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            None,
            r"expert backend cpu, because there is no C\+\+ compiler .*; with one, this run of about [\d,]+ minutes",
        ),
        ("#!/bin/sh\nexit 1\n", "expert backend cpu, because native cannot be had: .* could not compile native.cpp"),
    ],
)
def test_without_a_compiler_one_line_says_what_is_missed(
    script: str | None, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(resources.native, "library", native.library.__wrapped__)  # not one loaded by other tests
    if script is not None:
        (tmp_path / "c++").write_text(script)
        (tmp_path / "c++").chmod(0o755)
    lines: list[str] = []
    assert resolved(lasting(small_run(tmp_path)), Ranks(), lines.append).model.expert_backend == "cpu"
    [line] = lines
    assert re.fullmatch(said + ".*", line)


def dense_model() -> ModelConfig:
    return dense(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8, intermediate_size=32, vocab_size=257
    )


def lasting(config: RunConfig) -> RunConfig:
    """A run of years."""
    return replace(config, training=replace(config.training, num_steps=10**12))


def unexpected(line: str) -> None:
    raise AssertionError(line)
