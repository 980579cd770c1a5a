"""A program that trains a preset for three steps and prints by how many bytes its resident set grew to its peak.

`python memory_program.py PRESET ROWS BATCH LENGTH CHECKPOINTED`. What is imported beforehand is not counted.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # which the optimizer's first step loads

from moeut.model.language_model import LanguageModel
from moeut.presets import run_preset
from moeut.training.distributed import Ranks
from moeut.training.guard import Guard
from moeut.training.health import RouteCounts
from moeut.training.optimizer import build_optimizer
from moeut.training.step import training_step


def memory(name: str) -> int:
    """Bytes of VmRSS, the resident set now, or VmHWM, the most there was."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main(preset: str, rows: int, batch: int, length: int, checkpointed: bool) -> None:
    torch.set_num_threads(1)
    config = run_preset(preset, "nowhere")
    training = replace(config.training, batch_tokens=batch * length, context_length=length, micro_batch_size=rows)
    before = memory("VmRSS")
    model = LanguageModel(config.model)
    model.stack.gradient_checkpointing = checkpointed
    optimizer, routes = build_optimizer(model, training.optimizer), RouteCounts(config.model, Ranks())
    generator = np.random.default_rng(0)
    for _ in range(3):
        tokens = generator.integers(0, config.model.vocab_size, (batch, length + 1))
        training_step(model, optimizer, (tokens[:, :-1], tokens[:, 1:]), 1e-3, training, Ranks(), Guard(), routes)
    print(memory("VmHWM") - before)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1")
