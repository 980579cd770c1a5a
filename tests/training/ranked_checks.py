"""What must hold where several ranks train together? Checks that torchrun's processes carry out together.

`torchrun --nproc-per-node 2 ranked_checks.py RESULTS CHECK…` writes a line to RESULTS for each check that has passed.
Whole batches are compared in float64, as everywhere where shapes differ.
"""

import dataclasses
import itertools
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from steps import without_batch_losses, without_dropout
from test_variants import MOEUT, ROWS, VARIANTS
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.routing import Router
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.settings import IGNORED_TARGET
from moeut.training.distributed import Ranks, parallelise, ranks, spread, whole
from moeut.training.step import Rows, backward
from moeut.training.training_config import TrainingConfig

LENGTH = 6
# Two ranks × two micro-batches × two sequences.
TRAINING = TrainingConfig(
    num_steps=1, batch_tokens=8 * LENGTH, context_length=LENGTH, micro_batch_size=2, precision="float32"
)
AT_ONCE = dataclasses.replace(TRAINING, micro_batch_size="auto")
SPARSE = dataclasses.replace(
    MOEUT,
    vocab_size=13,
    feed_forward=SigmaMoEConfig(num_experts=150, num_experts_per_tok=2, moe_intermediate_size=4),
    tie_word_embeddings=True,
)
"""Fewer tokens than experts, so that many experts get no route; two layers, three repeats."""

WAYS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {"parallel": "fsdp"}, "hsdp": {"parallel": "fsdp", "replicas": 2}}


def build(config: ModelConfig) -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(config).double()


def batch(config: ModelConfig) -> Rows:
    """Eight rows, of which each scores another number of targets; one scores nothing, nor does a whole micro-batch."""
    generator = np.random.default_rng(2)
    tokens = generator.integers(config.vocab_size, size=(8, LENGTH + 1))
    targets = tokens[:, 1:].copy()
    for row, scored in enumerate((6, 1, 0, 4, 2, 5, 0, 0)):
        targets[row, scored:] = IGNORED_TARGET
    return tokens[:, :-1].copy(), targets


def rows_of(own: Ranks, rows: Rows) -> Rows:
    share = len(rows[0]) // own.world_size
    mine = slice(own.rank * share, (own.rank + 1) * share)
    return rows[0][mine], rows[1][mine]


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def assert_same_gradients(own: Ranks, config: ModelConfig, module: nn.Module, model: LanguageModel) -> None:
    """The losses and gradients of micro-batches on all ranks are those of the whole batch on one."""
    reference = build(config)
    expected = backward(reference, batch(config), AT_ONCE, Ranks(), 1.0, None)
    losses = backward(module, rows_of(own, batch(config)), TRAINING, own, 1.0, None)
    assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    found = {name: whole(gradient(parameter)) for name, parameter in model.named_parameters()}
    wanted = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert_close(found, wanted, rtol=1e-8, atol=1e-11)


def gradients_equal_one_ranks(own: Ranks) -> None:
    """By DDP, FSDP and HSDP; also where most experts got no route: their gradient is zero, not missing."""
    for way in WAYS.values():
        model = build(SPARSE)
        module = parallelise(model, own, **way)
        assert_same_gradients(own, SPARSE, module, model)
        up = whole(gradient(model.get_parameter("stack.layers.0.feed_forward.up_experts")))
        unused = (up == 0).flatten(1).all(dim=1)
        assert 0 < unused.sum() < len(unused)


def assert_same_gradients_by_every_way(own: Ranks, names: Iterable[str], *, checkpointing: bool) -> None:
    """Of these variants, but for losses that are defined over the batch."""
    for name, (way, settings) in itertools.product(names, WAYS.items()):
        config = without_batch_losses(without_dropout(VARIANTS[name]))
        model = build(config)
        model.stack.gradient_checkpointing = checkpointing
        try:
            assert_same_gradients(own, config, parallelise(model, own, **settings), model)
        except Exception as error:
            raise AssertionError(f"{name}, {way}, checkpointing {checkpointing}") from error


def gradients_equal_one_ranks_in_every_row(own: Ranks) -> None:
    """Of the table of variants; `VARIANTS` has more, which differ in sizes and settings."""
    assert_same_gradients_by_every_way(own, ROWS, checkpointing=False)


def gradients_equal_one_ranks_in_every_variant(own: Ranks) -> None:
    for checkpointing in (False, True):
        assert_same_gradients_by_every_way(own, VARIANTS, checkpointing=checkpointing)


def losses_over_the_batch_are_means_over_ranks(own: Ranks) -> None:
    """Each rank's own, of its own tokens: what micro-batches of one rank give."""
    config = without_dropout(VARIANTS["sut"])
    reference, rows = build(config), batch(config)
    expected = backward(reference, rows, dataclasses.replace(AT_ONCE, micro_batch_size=4), Ranks(), 1.0, None)
    for way in WAYS.values():
        model = build(config)
        module = parallelise(model, own, **way)
        losses = backward(module, rows_of(own, rows), AT_ONCE, own, 1.0, None)
        assert_close(losses, expected, rtol=1e-9, atol=1e-12)
        found = {name: whole(gradient(parameter)) for name, parameter in model.named_parameters()}
        wanted = {name: parameter.grad for name, parameter in reference.named_parameters()}
        assert_close(found, wanted, rtol=1e-8, atol=1e-11)


class Collectives(TorchDispatchMode):
    """Counts what a rank sends to the others."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.counts[function._schema.name.removeprefix("c10d::").strip("_")] += 1
        return function(*args, **(kwargs or {}))


def collectives_of_a_step(
    own: Ranks, config: ModelConfig, rows: Rows, training: TrainingConfig = TRAINING, **way: Any
) -> Counter[str]:
    model = build(config)
    module = parallelise(model, own, **way)
    with Collectives() as collectives:
        backward(module, rows_of(own, rows), training, own, 1.0, None)
    # What the losses and the number of targets take.
    collectives.counts["allreduce"] -= 2
    return +collectives.counts


def collectives_are_few(own: Ranks) -> None:
    """Embedding and head, and each of two layers: gathered once a step, though layers run three times."""
    rows = batch(SPARSE)
    count = partial(collectives_of_a_step, own, SPARSE, rows)
    assert count(AT_ONCE, parallel="fsdp") == {"allgather_base": 3, "reduce_scatter_base": 3}
    # A second micro-batch gathers nothing. What the first has left is reduced as soon as a repeated layer is met.
    assert count(parallel="fsdp") == {"allgather_base": 3, "reduce_scatter_base": 5}
    # HSDP with one rank a replica has nothing to gather, and sums gradients over the replicas.
    assert count(AT_ONCE, parallel="fsdp", replicas=2) == {"allreduce": 3}
    # DDP: gradients in one bucket.
    assert count() == {"allreduce": 1}
    # Layers that run once are let go after forward and gathered again for backward.
    unshared = dataclasses.replace(SPARSE, num_hidden_layers=2)
    counts = collectives_of_a_step(own, unshared, rows, AT_ONCE, parallel="fsdp")
    assert counts == {"allgather_base": 5, "reduce_scatter_base": 3}


def collectives_do_not_depend_on_the_data(own: Ranks) -> None:
    rows = batch(SPARSE)
    # One rank routes every token alike, the other scores nothing.
    dull = np.zeros_like(rows[0]), np.where(np.arange(8)[:, None] < 4, rows[1], IGNORED_TARGET)
    for way in WAYS.values():
        assert collectives_of_a_step(own, SPARSE, rows, **way) == collectives_of_a_step(own, SPARSE, dull, **way)


def ranks_speak(own: Ranks) -> None:
    assert (own.world_size, own.is_main) == (2, own.rank == 0)
    assert own.sum(torch.tensor([1.0, own.rank])).tolist() == [2.0, 1.0]
    assert own.any(own.rank == 1)
    assert not own.any(False)
    assert own.gather({"σ": "x" * own.rank}) == [{"σ": ""}, {"σ": "x"}]
    assert own.on_main(lambda: [own.rank, "main"]) == [0, "main"]
    # The main rank says what is wrong, the other leaves with exit code 2.
    with pytest.raises(ValueError if own.is_main else SystemExit, match="invalid literal" if own.is_main else "^2$"):
        own.on_main(lambda: int("a"))


def values_are_spread(own: Ranks) -> None:
    """The main rank's tensors reach parameters and scalars, whole or cut into parts of unequal size."""
    for way in WAYS.values():
        model = build(SPARSE)
        parallelise(model, own, **way)
        for parameter in model.parameters():
            value = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
            spread(parameter, value if own.is_main else None, own)
            assert torch.equal(whole(parameter), value)
        number = torch.zeros(())
        spread(number, torch.tensor(7.0) if own.is_main else None, own)
        assert number == 7


def evaluation_leaves_nothing_gathered(own: Ranks) -> None:
    """Scored before, between and after steps, with the same loss as one rank's, the parameters are a rank's parts."""
    config = SPARSE
    inputs, targets = (torch.from_numpy(array) for array in batch(config))
    expected = build(config).eval()(inputs, targets).cross_entropy.detach()
    model = build(config)
    module = parallelise(model, own, "fsdp")
    with torch.no_grad():
        assert_close(model.eval()(inputs, targets).cross_entropy, expected)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert_same_gradients(own, config, module.train(), model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    with torch.no_grad():
        model.eval()(inputs)
    model.zero_grad()
    assert_same_gradients(own, config, module.train(), model)


@contextmanager
def watched_routers(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What each router has for a weight while it runs, and the scores it makes."""
    seen: list[tuple[Tensor, Tensor]] = []
    handles = []
    for router in model.modules():
        if isinstance(router, Router):
            scores = router.scores

            def note(x: Tensor, scores: Any = scores, router: Router = router) -> Tensor:
                result = scores(x)
                seen.append((router.weight, result))
                return result

            router.scores = note
            handles.append(router)
    yield seen
    for router in handles:
        del router.scores


def routers_see_float32(own: Ranks) -> None:
    """Under bfloat16 autocast, sharded or not: the same loss as one rank's, routers in float32."""
    training = dataclasses.replace(TRAINING, precision="bfloat16")
    config = dataclasses.replace(SPARSE, hidden_size=32)
    rows = batch(config)
    torch.manual_seed(1)
    expected = backward(LanguageModel(config), rows, training, Ranks(), 1.0, None)
    for way in WAYS.values():
        torch.manual_seed(1)
        model = LanguageModel(config)
        module = parallelise(model, own, **way)
        with watched_routers(model) as seen:
            losses = backward(module, rows_of(own, rows), training, own, 1.0, None)
        assert len(seen) == 2 * 6 * 3
        assert {tensor.dtype for pair in seen for tensor in pair} == {torch.float32}
        assert_close(losses, expected, rtol=1e-3, atol=1e-3)
        assert all(
            parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters()
        )


def compiled_equals_eager(own: Ranks) -> None:
    # torch's compiler looks at the gradient of what FSDP has gathered.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    for way in WAYS.values():
        model = build(SPARSE)
        for layer in model.stack.layers:
            layer.compile(backend="aot_eager")
        assert_same_gradients(own, SPARSE, parallelise(model, own, **way), model)


def impossible_divisions_are_refused(own: Ranks) -> None:
    mistakes = {
        "--parallel: 'tp' is none of": {"parallel": "tp"},
        "--replicas: only with --parallel fsdp": {"replicas": 2},
        "--replicas: 2 processes cannot hold 3 replicas": {"parallel": "fsdp", "replicas": 3},
    }
    for message, settings in mistakes.items():
        with pytest.raises(ValueError, match=message):
            parallelise(build(MOEUT), own, **settings)


if __name__ == "__main__":
    warnings.simplefilter("error")
    results = Path(sys.argv[1])
    with ranks("cpu") as own:
        for name in sys.argv[2:]:
            globals()[name](own)
            if own.is_main:
                with results.open("a") as file:
                    file.write(f"{name}\n")
