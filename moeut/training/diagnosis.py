"""Why does a run end that is no longer finite? Where that began, and from where one can go back.

Weights, activations and gradients are looked at once, when the run ends, so that a sound run pays nothing for it.
"""

from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moeut.model.language_model import LanguageModel
from moeut.training.checkpoint import Checkpointer
from moeut.training.distributed import Ranks
from moeut.training.report import Reporter
from moeut.training.retention import checkpoints
from moeut.training.step import Rows, micro_batches
from moeut.training.training_config import TrainingConfig


def give_up(
    step: int, model: nn.Module, rows: Rows, config: TrainingConfig, checkpointer: Checkpointer, reporter: Reporter,
    ranks: Ranks,
) -> NoReturn:  # fmt: skip
    """End a run whose last steps, `step` the newest of them, were all skipped; every rank calls it with its rows.

    Raises ValueError, one line, on the main rank, and ends the others quietly.
    """
    where = first_not_finite(model, checkpointer.model, micro_batches(rows, config, ranks), ranks)
    reporter.given_up(step, where)
    saved = checkpoints(checkpointer.run)
    back = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"

    def end() -> NoReturn:
        raise ValueError(
            f"step {step:,}: {config.max_skipped_steps} steps in a row had no finite loss and gradient; not finite is "
            f"{where}; {back}; lower training.optimizer.learning_rate or training.optimizer.max_grad_norm"
        )

    ranks.on_main(end)
    raise SystemExit(2)


def first_not_finite(
    model: nn.Module, inner: LanguageModel, batches: Iterable[tuple[Tensor, Tensor]], ranks: Ranks
) -> str:
    """What is not finite any more, as near to its origin as can be seen; every rank calls it with its batches.

    Looked for among the weights, then along a forward pass, then among the gradients that the last backward pass left,
    from the head downwards. model: the one to call, inner: the same without what makes it parallel.
    """
    names, parameters = zip(*inner.named_parameters(), strict=True)
    broken = _broken([[parameter.detach() for parameter in parameters]], ranks)
    if any(broken):
        return f"the weights {names[broken.index(True)]}"
    places = [
        "the embedding",
        *(f"layer {layer} at depth {depth}" for depth, layer in enumerate(inner.config.schedule)),
    ]
    broken = _broken((_activations(model, inputs, targets) for inputs, targets in batches), ranks)
    if any(broken):
        return f"the output of {[*places, 'the head', 'the routers'][broken.index(True)]}"
    gradients = {name: parameter.grad for name, parameter in reversed(list(inner.named_parameters()))}
    broken = _broken([[gradient for gradient in gradients.values() if gradient is not None]], ranks)
    return f"the gradient of {list(gradients)[broken.index(True)]}" if any(broken) else "nothing that lasts"


def _activations(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    with torch.no_grad():
        output = model(inputs, targets, return_hidden_states=True)
    return [*output.hidden_states, output.logits, output.regulariser]


def _broken(rounds: Iterable[list[Tensor]], ranks: Ranks) -> list[bool]:
    """Which tensors of a round hold something that is not finite, in any round, on any rank."""
    found = sum(
        torch.stack([~_on_this_rank(tensor).isfinite().all() for tensor in tensors]).long() for tensors in rounds
    )
    assert isinstance(found, Tensor)
    return [count > 0 for count in ranks.sum(found).tolist()]


def _on_this_rank(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
