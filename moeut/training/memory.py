"""How much memory does training take? Steps on tensors that have shapes but no contents, counted as they go.

Counted are weights, gradients, the optimizer's state and whatever forward and backward pass keep, as they come and go.
What an allocator takes for them, gaps included, is found out by handing them to one (`moeut.training.heap`). What an
operation needs for itself alone is a share, and what libraries take is a constant; both were measured on a CPU: the
growth of a process's resident set, from the moment when everything is imported to its peak after three steps.
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
from moeut.training.heap import Heap
from moeut.training.optimizer import build_optimizer
from moeut.training.precision import Precision, autocast
from moeut.training.training_config import TrainingConfig

CPU = torch.device("cpu")


OPERATIONS_SHARE = 0.20
LIBRARY_BYTES = 38 * 10**6


def peak_bytes(model: ModelConfig, training: TrainingConfig, rows: int, precision: Precision) -> int:
    """The memory that training in micro-batches of `rows` sequences adds to a process that has imported everything."""
    heap = live_bytes(model, training, rows, precision).heap
    return LIBRARY_BYTES + round((1 + OPERATIONS_SHARE) * heap.peak)


def live_bytes(model: ModelConfig, training: TrainingConfig, rows: int, precision: Precision) -> "LiveBytes":
    """The bytes of tensors in two steps in micro-batches of `rows` sequences, on one device alone.

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
        # The second finds the optimizer's state, and gradients, between what the first made.
        for _ in range(2):
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

    peak: the most there were; heap: what an allocator takes for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.heap = Heap()
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
        weakref.finalize(storage, self._forget, storage.nbytes(), self.heap.allocate(storage.nbytes()))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _forget(self, num_bytes: int, block: tuple[int, int] | None) -> None:
        self.now -= num_bytes
        self.heap.free(block, num_bytes)
