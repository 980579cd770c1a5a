"""Do the training benchmarks still run, and do they measure what they say? At sizes that say nothing about speed."""

import re
import shutil
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from moeut.model.language_model import LanguageModel

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

STAND_IN = '''
"""What nanoGPT's model.py offers, around a table of bigrams."""
from dataclasses import dataclass

import torch


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert (config.block_size, config.n_layer, config.n_head, config.n_embd) == (64, 4, 4, 128)
        self.table = torch.nn.Embedding(10_000, config.vocab_size)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        print("number of parameters")
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)

    def forward(self, tokens, targets):
        logits = self.table(tokens)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
'''


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/training.py`, imported as it is when it runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("training")


def rows(output: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    table = [line for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_loop(training: ModuleType, capsys: pytest.CaptureFixture[str]):
    sizes = ["--batch-size", "2", "--context", "8", "--repetitions", "3", "--threads", "1"]
    training.main(["loop", "--presets", "nano", *sizes])
    ((preset, tokens, *times),) = rows(capsys.readouterr().out)
    assert (preset, tokens) == ("nano", "16")
    assert all(re.fullmatch(r"\d+\.\d\d", time) and float(time) > 0 for time in times[:2])


def test_loop_is_what_passes_between_bare_steps(training: ModuleType):
    """By a clock that ticks when it is looked at: once in a bare step, once between two of them."""
    found = import_module("measure.loop").overhead("nano", 2, 8, 3, iter(range(1000)).__next__)
    assert (found.preset, found.tokens, found.bare, found.loop, found.ratio) == ("nano", 16, 1, 1, 1)


def test_variants(training: ModuleType, capsys: pytest.CaptureFixture[str]):
    sizes = ["--batch-size", "1", "--context", "8", "--repetitions", "1", "--threads", "1"]
    training.main(["variants", "--size", "tiny", "--variants", "tiny", "--expert-backend", "cpu", *sizes])
    dense, moeut = rows(capsys.readouterr().out)
    assert (dense[0], moeut[0]) == ("dense-tiny", "tiny")
    assert (dense[5], dense[6]) == ("1.00", "1.00")
    # Weights, gradients and both moments are 16 bytes a parameter; what was freed before and is used again is not seen.
    assert all(float(row[-1].removesuffix(" MB")) > 8 * int(row[1].replace(",", "")) / 1e6 for row in (dense, moeut))


def test_nanogpt(training: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "model.py").write_text(STAND_IN)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} bottles of beer on the wall\n" for number in range(60)))
    training.main(
        ["nanogpt", "--checkout", str(tmp_path), str(text), "--learning-rates", "1e-3", "2e-3", "--iterations", "4",
         "--repetitions", "1", "--threads", "1", "--plot", str(tmp_path / "loss.png")]
    )  # fmt: skip
    output = capsys.readouterr().out
    table = rows(output)
    assert [(row[0], row[1]) for row in table] == [
        ("nanoGPT", "0.001"), ("MoEUT", "0.001"), ("nanoGPT", "0.002"), ("MoEUT", "0.002")
    ]  # fmt: skip
    assert "Best of each: MoEUT" in output
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_nanogpt_without_a_checkout_is_skipped_in_one_line(training: ModuleType, tmp_path: Path):
    (tmp_path / "text.txt").write_text("a" * 1000)
    with pytest.raises(SystemExit, match=r"skipped: .*no model\.py here"):
        training.main(["nanogpt", "--checkout", str(tmp_path), str(tmp_path / "text.txt"), "--threads", "1"])


@pytest.mark.parametrize("length", [2, 64, 65, 66, 129, 20_000])
def test_score_counts_every_character_but_the_first_once(training: ModuleType, length: int):
    """A model that knows the distance to its block's start: the mean of what it says of each place."""
    nanogpt = import_module("measure.nanogpt")
    tokens = np.random.default_rng(0).integers(0, 3, length)

    def logits(inputs: torch.Tensor) -> torch.Tensor:
        place = torch.arange(inputs.shape[1], dtype=torch.float64)
        return torch.stack([place / 50, inputs[0] * 0.0, inputs[0] * 0.0], dim=-1).expand(len(inputs), -1, -1)

    expected = []
    for index in range(1, length):
        scores = [((index - 1) % 64) / 50, 0.0, 0.0]
        expected.append(np.log(np.exp(scores).sum()) - scores[tokens[index]])
    assert nanogpt.score(logits, tokens) == pytest.approx(np.mean(expected), rel=1e-6)


def test_text_is_split_and_numbered_as_nanogpt_does(training: ModuleType):
    nanogpt = import_module("measure.nanogpt")
    text = nanogpt.Text("abcabcabca\nb")
    assert text.parts == ("abcabcabca", "\nb")
    assert [part.tolist() for part in text.numbers()] == [[1, 2, 3, 1, 2, 3, 1, 2, 3, 1], [0, 2]]
    with pytest.raises(ValueError, match="not ASCII"):
        nanogpt.Text("é")


def test_a_run_with_more_time_is_no_victory(training: ModuleType):
    nanogpt = import_module("measure.nanogpt")
    run = nanogpt.Run("nanoGPT", 1e-3, 800, 10, 5.0, 1.9, [])
    rival = nanogpt.Run("MoEUT", 1e-3, 700, 10, 4.0, 1.7, [])
    assert "+0.2000 for MoEUT" in training.verdict([run, rival])
    assert "NOT FAIR" in training.verdict([run, rival._replace(seconds=5.1)])
    assert "NOT FAIR" in training.verdict([run, rival._replace(parameters=801)])
    assert "NOT FAIR" in training.verdict([run, run._replace(seconds=3.9), rival])


@pytest.fixture
def generation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/generation.py`, imported as it is when it runs, reading little."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = import_module("generation")
    monkeypatch.setattr(module.decoding, "BUFFER", 2**20)
    return module


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("what", ["step", "prefill", "uncached", "around"])
def test_generation(
    generation: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
):
    """By a clock that goes on by one at each look, and by ten for each forward pass: no machine is too busy for it."""
    looks, passed = count(), [0]
    monkeypatch.setitem(generation.CLOCKS, "wall", lambda: next(looks) + passed[0])
    forward = LanguageModel.forward

    def counted(*args: object, **settings: object) -> object:
        passed[0] += 10
        return forward(*args, **settings)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(LanguageModel, "forward", counted)
    sizes = ["--preset", "nano", "--rival", "dense-tiny", "--batches", "1", "2", "--contexts", "3", "9"]
    generation.main([what, *sizes, "--new-tokens", "2", "--repetitions", "1", "--threads", "1"])
    found = rows(capsys.readouterr().out)
    batches = 2 if what in ("step", "prefill") else 1
    assert len(found) == 3 * 2 * batches
    assert [row[0] for row in found[:3]] == ["nano, native", "nano, cpu", "dense-tiny"]
    assert all(float(row[3].replace(",", "")) > 0 for row in found)


def test_a_compiled_step(generation: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """By a clock that ticks when it is looked at; Inductor would take half a minute."""
    monkeypatch.setitem(generation.CLOCKS, "wall", iter(range(1000)).__next__)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    generation.main(
        ["compiled", "--preset", "nano", "--batches", "2", "--contexts", "3", "--repetitions", "2", "--threads", "1"]
    )
    assert rows(capsys.readouterr().out) == [["nano, cpu", "2", "3", "1", "1000.00", "1.00"]]


def test_weights_read_are_those_that_a_token_meets(generation: ModuleType):
    """A dense model reads all but its embedding; of a MoEUT's experts the chosen ones, each time."""
    decoding = generation.decoding
    dense = decoding.build("dense-tiny", "cpu")
    rest = sum(parameter.numel() for parameter in dense.parameters()) - dense.embedding.weight.numel()
    assert decoding.bytes_read(dense, 3) == (4 * rest, 4 * rest)
    ours = decoding.build("nano", "cpu")
    config, layer = ours.config, ours.stack.layers[0]
    moe, attention = config.feed_forward, config.attention
    chosen = 2 * moe.num_experts_per_tok * moe.moe_intermediate_size
    chosen += 2 * attention.num_attention_heads * attention.num_experts_per_tok * attention.head_dim
    experts = config.num_hidden_layers * config.hidden_size * chosen
    common = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() < 3)
    ends = sum(parameter.numel() for part in (ours.norm, ours.lm_head) for parameter in part.parameters())
    once, again = decoding.bytes_read(ours, 1)
    assert once == 4 * (experts + config.group_size * common + ends)
    assert again == 4 * (experts + config.num_hidden_layers * common + ends)
    assert once < decoding.bytes_read(ours, 2).once < 2 * once


def test_analysis(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """By a clock that ticks when it is looked at, both take as long."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    analysis = import_module("analysis")
    monkeypatch.setitem(analysis.CLOCKS, "wall", iter(range(1000)).__next__)
    sizes = ["--tokens", "300", "--expert-backend", "cpu", "--repetitions", "2", "--threads", "1"]
    analysis.main(["--presets", "nano", "dense-tiny", *sizes])
    expected = [[preset, "300", "128", "1.00", "1.00", "1.00"] for preset in ("nano", "dense-tiny")]
    assert rows(capsys.readouterr().out) == expected


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/page.py`, imported as it is when it runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("page")


@pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs Chromium: apt-get install chromium-driver")
def test_page(page: ModuleType, capsys: pytest.CaptureFixture[str]):
    sizes = [
        "--tokens",
        "30",
        "--layers",
        "4",
        "--experts",
        "5",
        "--choices",
        "2",
        "--heads",
        "1",
        "--repetitions",
        "1",
    ]
    page.main(sizes)
    one, two = rows(capsys.readouterr().out)
    assert (one[0], two[0]) == ("1", "2")
    assert all(float(cell) > 0 for cell in one[2:] + two[2:])


def test_a_page_without_a_browser_is_skipped_in_one_line(
    page: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit, match="2"):
        page.main([])
    assert capsys.readouterr() == ("", "skipped: needs Chromium: apt-get install chromium chromium-driver\n")
