"""How much memory does training take? A step on tensors that have shapes but no contents, counted as it goes.

Counted are weights, gradients, the optimizer's state and whatever forward and backward pass keep, at the moment when
they are most. Between tensors an allocator keeps gaps: one that the largest tensor does not fit into, because gradients
or the optimizer's state have come to lie in what another of its size left; the others, and what an operation needs for
itself alone, are a share. What libraries take is a constant. Share and constant were measured on a CPU: the growth of a
process's resident set, from the moment when everything is imported to its peak after three steps.
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


ALLOCATOR_SHARE = 0.20
LIBRARY_BYTES = 28 * 10**6
LARGEST_IN_GAPS = 32 * 2**20
"""A larger tensor lies in no gap and leaves none: glibc takes and returns its pages by themselves, as it does from
M_MMAP_THRESHOLD on, which grows up to this (mallopt(3))."""


def peak_bytes(model: ModelConfig, training: TrainingConfig, rows: int, precision: Precision) -> int:
    """The memory that training in micro-batches of `rows` sequences adds to a process that has imported everything."""
    live = live_bytes_of_a_step(model, training, rows, precision)
    return LIBRARY_BYTES + live.largest + round((1 + ALLOCATOR_SHARE) * live.peak)


def live_bytes_of_a_step(model: ModelConfig, training: TrainingConfig, rows: int, precision: Precision) -> "LiveBytes":
    """The bytes of tensors in a step in micro-batches of `rows` sequences, on one device alone.

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
    return live


class LiveBytes(TorchDispatchMode):
    """While inside, counts the bytes of all tensors that are made and not yet gone.

    peak: the most there were. largest: of one tensor, among those of at most LARGEST_IN_GAPS.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
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
        if storage.nbytes() <= LARGEST_IN_GAPS:
            self.largest = max(self.largest, storage.nbytes())

    def _forget(self, num_bytes: int) -> None:
        self.now -= num_bytes
