"""Is the place named where a model first holds something that is not finite?"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import VOCAB_SIZE, tiny_model, tiny_training

from moeut.model.language_model import LanguageModel
from moeut.training.checkpoint import Checkpointer, TrainingState
from moeut.training.diagnosis import first_not_finite, give_up
from moeut.training.distributed import Ranks
from moeut.training.optimizer import build_optimizer
from moeut.training.progress import Progress
from moeut.training.report import METRICS, Reporter, given_up
from moeut.training.trackers import LinesFile


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(tiny_model())


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    tokens = torch.randint(VOCAB_SIZE, (2, 2, 9))
    return [(block[:, :-1], block[:, 1:]) for block in tokens]


def diagnosis(model: LanguageModel) -> str:
    return first_not_finite(model, model, batches(), Ranks())


def test_weights(model: LanguageModel):
    with torch.no_grad():
        model.get_parameter("stack.layers.1.feed_forward.up_experts")[2, 0, 0] = math.nan
        model.lm_head.weight[0, 0] = math.inf
    assert diagnosis(model) == "the weights stack.layers.1.feed_forward.up_experts"


def test_the_output_of_a_layer_at_its_depth(model: LanguageModel):
    """Layer 1 runs at depths 1 and 3; only its second run overflows."""
    runs: list[int] = []

    def second(module: Any, inputs: Any, output: Any) -> Any:
        runs.append(len(runs))
        return (output[0] * math.inf, output[1]) if len(runs) % 2 == 0 else output

    model.stack.layers[1].register_forward_hook(second)
    assert diagnosis(model) == "the output of layer 1 at depth 3"


@pytest.mark.parametrize(
    ("part", "message"), [("embedding", "the output of the embedding"), ("lm_head", "the output of the head")]
)
def test_the_ends(model: LanguageModel, part: str, message: str):
    getattr(model, part).register_forward_hook(lambda module, inputs, output: output / 0)
    assert diagnosis(model) == message


def test_gradients_from_the_head_downwards(model: LanguageModel):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert diagnosis(model) == "nothing that lasts"
    for name in ("embedding.weight", "stack.layers.0.attention.q_proj.weight"):
        model.get_parameter(name).grad = torch.full_like(model.get_parameter(name), math.nan)
    assert diagnosis(model) == "the gradient of stack.layers.0.attention.q_proj.weight"


@pytest.mark.parametrize("saved", [True, False])
def test_giving_up_says_where_one_can_go_back(model: LanguageModel, tmp_path: Path, saved: bool):
    config = tiny_training()
    checkpointer = Checkpointer(
        tmp_path, model, build_optimizer(model, config.optimizer), keep=2, notice=pytest.fail, ranks=Ranks()
    )
    if saved:
        checkpointer.save(TrainingState(4))
    with torch.no_grad():
        model.get_parameter("norm.weight")[0] = math.nan
    tokens = torch.randint(VOCAB_SIZE, (3, 13)).numpy()
    lines = LinesFile(tmp_path / METRICS)
    reporter = Reporter([lines], Progress(quiet=True), num_steps=2000, tokens_per_step=36, every=10)
    reporter.resume(0, {})
    back = "the last good checkpoint is .*step-00000004;" if saved else "there is no checkpoint yet;"
    where = "not finite is the weights norm.weight"
    with pytest.raises(ValueError, match=rf"^step 1,234: 5 steps in a row .* {where}; {back}"):
        give_up(1234, model, (tokens[:, :-1], tokens[:, 1:]), config, checkpointer, reporter, Ranks())
    reporter.__exit__()
    assert given_up(tmp_path) == "step 1,234: not finite is the weights norm.weight"
