"""Is the memory that training takes known beforehand, to within 15 percent?"""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_model, tiny_training

from moeut.model.cost import cost
from moeut.presets import run_preset
from moeut.training.memory import LiveBytes, live_bytes, peak_bytes


def test_live_bytes_by_hand():
    """A product of 10 × 10 and 10 × 10 float32 numbers beside its factors; views are no memory of their own."""
    with LiveBytes() as live:
        a = torch.ones(10, 10)
        b = torch.ones(10, 10)
        c = a @ b
        assert live.now == 1200
        del a, b
        d = c[:5].t()
        assert live.now == 400
        e = d.double()
        assert live.now == 800
        del c, d, e
    assert (live.now, live.peak) == (0, 1200)
    assert live.heap.peak == 3 * 448  # 400 bytes in whole lines of 64; e is where a was


@pytest.mark.parametrize("tied", [True, False])
def test_a_long_micro_batch_is_all_activations_a_short_one_all_weights(tied: bool):
    model = replace(tiny_model(), hidden_size=64, vocab_size=5000, tie_word_embeddings=tied)
    parameters = cost(model).parameters
    training = tiny_training(batch_tokens=64 * 16, context_length=16)
    bytes_of = {rows: live_bytes(model, training, rows, "float32").peak for rows in (1, 8, 16, 32, 64)}
    # Weight, gradient and two moments of each, and a gradient that is being added to another.
    assert 16 * parameters < bytes_of[1] < 28 * parameters
    assert bytes_of[32] - bytes_of[16] == pytest.approx(2 * (bytes_of[16] - bytes_of[8]), rel=0.05)
    # The last is a whole batch at once: no gradients of other micro-batches beside its activations.
    assert bytes_of[64] < 2 * bytes_of[32]


def test_recomputing_saves_memory():
    model = replace(tiny_model(), num_hidden_layers=12)
    training = tiny_training(batch_tokens=64 * 16, context_length=16)
    whole = live_bytes(model, training, 64, "float32").peak
    assert live_bytes(model, replace(training, gradient_checkpointing=True), 64, "float32").peak < 0.5 * whole
    assert live_bytes(model, training, 64, "bfloat16").peak < whole


PROGRAM = Path(__file__).with_name("memory_program.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    ("preset", "rows", "batch", "length"),
    [
        ("nano", 8, 8, 128),
        ("nano", 4, 8, 128),
        ("tiny", 8, 8, 128),
        ("dense-tiny", 8, 8, 128),
        ("moeut-44m", 1, 1, 1024),
        ("moeut-44m", 1, 2, 1024),
        ("dense-44m", 1, 2, 1024),
    ],
)
def test_estimates_are_what_is_measured(preset: str, rows: int, batch: int, length: int, checkpointed: bool):
    config = run_preset(preset, "nowhere")
    training = replace(
        config.training, batch_tokens=batch * length, context_length=length, gradient_checkpointing=checkpointed
    )
    command = [sys.executable, PROGRAM, preset, rows, batch, length, int(checkpointed)]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    measured = int(re.search(r"\d+", result.stdout)[0])  # pyright: ignore[reportOptionalSubscript]
    # Runs of that one case differ by a fifth among themselves, and were up to 18 % above (docs/training.md).
    allowed = 0.2 if preset == "dense-44m" and checkpointed else 0.15
    assert peak_bytes(config.model, training, rows, "float32") == pytest.approx(measured, rel=allowed)
