"""Are the two compression baselines what they say: the size `xz -9` writes, and a 3-gram that is a distribution?"""

import json
import math
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moeut.experiments.baselines import END, SYMBOLS, ByteTrigram, xz_bits_per_byte

REAL_FILES = [path.read_bytes() for path in sorted(Path(json.__file__).parent.glob("*.py"))]

documents = st.lists(st.text(alphabet="abc", max_size=12).map(str.encode), max_size=24)
symbols = st.integers(min_value=0, max_value=END)


class SlowTrigram:
    """The 3-gram once more, from its definition, symbol by symbol and with dictionaries."""

    def __init__(self, training: list[bytes]):
        aside = [document for index, document in enumerate(training) if index % 10 == 0]
        self.count([document for index, document in enumerate(training) if index % 10])
        self.weights = [[0.25] * 4 for _ in range(32)]
        for _ in range(50):
            expected = [[0.0] * 4 for _ in range(32)]
            for context, symbol in self.steps(aside):
                weights, estimates = self.weights[self.bucket(context)], self.estimates(context, symbol)
                joint = [weight * estimate for weight, estimate in zip(weights, estimates, strict=True)]
                for order in range(4):
                    expected[self.bucket(context)][order] += joint[order] / sum(joint)
            for bucket, shares in enumerate(expected):
                if sum(shares) > 0 or bucket == 0:
                    self.weights[bucket] = [(share + 0.25) / (sum(shares) + 1) for share in shares]
                else:
                    self.weights[bucket] = self.weights[bucket - 1]
        self.count(training)

    @staticmethod
    def steps(documents: list[bytes]) -> list[tuple[tuple[int, int], int]]:
        padded = [[END, END, *document, END] for document in documents]
        return [((line[i], line[i + 1]), line[i + 2]) for line in padded for i in range(len(line) - 2)]

    def count(self, documents: list[bytes]) -> None:
        steps = self.steps(documents)
        self.seen = [Counter((*context, symbol)[2 - n :] for context, symbol in steps) for n in range(3)]
        self.contexts = [Counter(context[2 - n :] for context, _ in steps) for n in range(3)]

    def bucket(self, context: tuple[int, int]) -> int:
        return self.contexts[2][context].bit_length()

    def estimates(self, context: tuple[int, int], symbol: int) -> list[float]:
        estimates = [1 / SYMBOLS]
        for n in range(3):
            total = self.contexts[n][context[2 - n :]]
            estimates.append(self.seen[n][(*context, symbol)[2 - n :]] / total if total else estimates[-1])
        return estimates

    def bits(self, document: bytes) -> float:
        return -sum(
            math.log2(sum(w * e for w, e in zip(self.weights[self.bucket(c)], self.estimates(c, s), strict=True)))
            for c, s in self.steps([document])
        )


@given(
    training=documents, document=st.one_of(st.text(alphabet="abcd", max_size=12).map(str.encode), st.binary(max_size=6))
)
@example(training=[b"abc"[i % 3 :] * (i % 7) for i in range(31)], document=b"abccabz")  # several held aside
@settings(max_examples=60, deadline=None)
def test_bits_equal_the_slow_reference(training: list[bytes], document: bytes):
    expected = SlowTrigram(training).bits(document)
    assert ByteTrigram.fit(training).bits(document) == pytest.approx(expected, rel=1e-9)


@given(training=documents, first=symbols, second=symbols)
@settings(max_examples=30, deadline=None)
def test_every_context_has_a_distribution_over_257_symbols(training: list[bytes], first: int, second: int):
    model = ByteTrigram.fit(training)
    for a, b in [(first, second), (END, END), (END, ord("a")), (ord("a"), ord("b")), (0, ord("a"))]:
        probabilities = model.probabilities((a * SYMBOLS + b) * SYMBOLS + np.arange(SYMBOLS, dtype=np.int32))
        assert probabilities.min() > 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_bits_by_hand():
    # One document leaves nothing to count beside it while λ is fitted: every λ stays at a quarter.
    model = ByteTrigram.fit([b"ab"])
    always = (1 + 1 + 1 / 3 + 1 / 257) / 4
    assert model.bits(b"ab") == pytest.approx(-3 * math.log2(always))
    # "b" never began a document; after it, the unseen context (end, b) knows what (b) knows: the end follows.
    begins = (0 + 0 + 1 / 3 + 1 / 257) / 4
    assert model.bits(b"b") == pytest.approx(-math.log2(begins) - math.log2(always))


def test_without_training_documents_every_symbol_costs_the_same():
    assert ByteTrigram.fit([]).bits(b"abc") == pytest.approx(4 * math.log2(257))


def test_an_empty_document_costs_its_end_symbol():
    model = ByteTrigram.fit([b""] * 20)
    assert 0 < model.bits(b"") < 0.5
    assert model.bits_per_byte([b"", b"x"]) == model.bits(b"") + model.bits(b"x")


def test_real_files_need_fewer_bits_than_their_own_byte_entropy():
    *training, held_out = REAL_FILES
    sizes = np.bincount(np.frombuffer(held_out, dtype=np.uint8))
    frequencies = sizes[sizes > 0] / len(held_out)
    entropy = float(-(frequencies * np.log2(frequencies)).sum())
    assert ByteTrigram.fit(training).bits_per_byte([held_out]) < entropy


def test_bits_per_byte_weighs_documents_by_their_bytes():
    model = ByteTrigram.fit(REAL_FILES)
    first, second = REAL_FILES[:2]
    bits = model.bits(first) + model.bits(second)
    assert model.bits_per_byte([first, second]) == pytest.approx(bits / (len(first) + len(second)))


@pytest.mark.skipif(shutil.which("xz") is None, reason="the xz command is not installed")
def test_xz_is_as_large_as_the_command_writes_it():
    block = np.random.default_rng(0).bytes(4096)
    beyond_the_window_of_lower_presets = block + bytes(9 << 20) + block
    held_out = [*REAL_FILES, b"", b"x" * 1000, beyond_the_window_of_lower_presets]
    sizes = [
        len(
            subprocess.run(
                ["xz", "-9", "--threads=1", "--stdout"], input=document, capture_output=True, check=True
            ).stdout
        )
        for document in held_out
    ]
    assert xz_bits_per_byte(held_out) == 8 * sum(sizes) / sum(map(len, held_out))


def test_xz_compresses_each_document_alone():
    once, twice = xz_bits_per_byte(REAL_FILES[:1]), xz_bits_per_byte(REAL_FILES[:1] * 2)
    assert once == twice


@pytest.mark.parametrize("held_out", [[], [b"", b""]])
def test_no_bytes_have_no_bits_per_byte(held_out: list[bytes]):
    with pytest.raises(ValueError, match="hold no bytes"):
        xz_bits_per_byte(held_out)
    with pytest.raises(ValueError, match="hold no bytes"):
        ByteTrigram.fit([b"ab"]).bits_per_byte(held_out)
