"""How much memory does training take? A step on tensors that have shapes but no contents, counted as it goes.

Counted are weights, gradients, the optimizer's state and whatever forward and backward pass keep, at the moment when
they are most. What an operation needs for itself alone, and what an allocator loses between tensors, is a share and a
constant that were measured on a CPU (docs/training.md): the growth of a process's resident set, from the moment when
everything is imported to its peak after three steps.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.training.optimizer import build_optimizer
from moeut.training.precision import Precision, autocast
from moeut.training.training_config import TrainingConfig

CPU = torch.device("cpu")


ALLOCATOR_SHARE = 0.16
LIBRARY_BYTES = 38 * 10**6


def peak_bytes(model: ModelConfig, training: TrainingConfig, rows: int, precision: Precision) -> int:
    """The memory that training in micro-batches of `rows` sequences adds to a process that has imported everything."""
    return LIBRARY_BYTES + round((1 + ALLOCATOR_SHARE) * tensor_bytes(model, training, rows, precision))


def tensor_bytes(model: ModelConfig, training: TrainingConfig, rows: int, precision: Precision) -> int:
    """The most bytes of tensors at one moment of a step in micro-batches of `rows` sequences, on one device alone.

    A batch of more than `rows` sequences is taken as two micro-batches: more of them need no more. The experts are
    computed as on a CPU, which keeps what a fused kernel keeps.
    """
    with torch.device("meta"):
        built = LanguageModel(replace(model, expert_backend="cpu"))
    # The weights without contents come in from outside this mode; whatever is made of them inside is fake.
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        built.to_empty(device=CPU)
        if model.tie_word_embeddings:
            built.lm_head.weight = built.embedding.weight
        built.stack.gradient_checkpointing = training.gradient_checkpointing
        optimizer = build_optimizer(built, training.optimizer)
        for parameter in built.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        for _ in range(1 if rows >= training.batch_size else 2):
            tokens = torch.empty(rows, training.context_length, dtype=torch.int64)
            with autocast(precision, CPU):
                output = built(tokens, tokens)
            loss = output.loss
            del output
            loss.backward()
        optimizer.step()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """While inside, counts the bytes of all tensors that are made and not yet gone; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        weakref.finalize(storage, self._forget, storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _forget(self, num_bytes: int) -> None:
        self.now -= num_bytes
