"""Is what is said of the machine true: its memory, what was used of it, its peak?"""

import subprocess
import sys

import pytest
import torch

from moeut.training.machine import free_memory_bytes, peak_flops, peak_memory_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Abacus 3000", None),
    ],
)
def test_peaks_by_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA, "bfloat16") == peak
    assert peak_flops(CUDA, "float32") is None


def test_no_peak_is_known_of_a_processor():
    assert peak_flops(CPU, "bfloat16") is None


def test_memory_that_was_used_is_noticed():
    """In a process of its own: a peak never falls again."""
    program = (
        "import torch; from moeut.training.machine import *; cpu = torch.device('cpu')\n"
        "before, free = peak_memory_bytes(cpu), free_memory_bytes(cpu); x = torch.ones(75_000_000)\n"
        "print(peak_memory_bytes(cpu) - before, free); del x; print(peak_memory_bytes(cpu) - before)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    grown, free, after = map(int, result.stdout.split())
    assert grown == pytest.approx(300e6, rel=0.1)
    assert after == pytest.approx(grown, rel=0.1)
    assert free > grown


def test_there_is_memory_left():
    assert free_memory_bytes(CPU) > 0
    assert peak_memory_bytes(CPU) > 10e6
