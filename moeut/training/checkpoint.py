"""What of a run survives a stop? Folders that hold the model and all that training needs to go on to the last bit.

    RUN/checkpoints/step-00000500/   a model folder (`moeut.model.folder`), and
        training/optimizer.safetensors   the optimizer's state, `PARAMETER/exp_avg` and so on
        training/state.json              `SavedState`: step, random state of every rank, what loop and reporter remember
        checksums.json                   SHA-256 of every file above
    RUN/final → the last checkpoint
    RUN/best  → the one that predicted held-out text best

Nothing is read with pickle. Only the main rank reads and writes; the others send it their parts and get theirs from it,
so that a checkpoint knows nothing of ranks but their random states.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import pydantic
import torch
from torch import Tensor

from moeut.files import flush
from moeut.model.folder import read_weights, save_model, stored_tensors
from moeut.model.language_model import LanguageModel
from moeut.model.tensor_files import read_json, read_tensors, write_json, write_tensors
from moeut.settings import STRICT, NonNegativeInt
from moeut.training.distributed import Ranks, spread, whole
from moeut.training.random_state import random_state, seed_all, seed_of_rank, set_random_state
from moeut.training.retention import (
    OPTIMIZER,
    STATE,
    checkpoint_folder,
    newest_complete,
    point,
    prune,
    remove_partial_checkpoints,
    write_checksums,
)
from moeut.validation import validate


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands: steps done, and what its reporter and its loop remember, as JSON can hold it."""

    step: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Best:
    """The checkpoint that predicted held-out text best, and its cross entropy there in nats a token."""

    step: NonNegativeInt
    cross_entropy: float


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class SavedState:
    """What `training/state.json` holds: a `TrainingState`, the best checkpoint so far, each rank's random state."""

    step: NonNegativeInt
    report: dict[str, Any]
    loop: dict[str, Any]
    best: Best | None
    random: list[dict[str, Any]]


class Checkpointer:
    """Saves one run's model and optimizer, keeps the newest `keep` checkpoints and the best, restores the newest whole.

    run: the run's folder. model: as it was before DDP wrapped it. seed: of the run. tokenizer_folder,
    end_of_document_id, context_length: see `moeut.model.folder.save_model`. notice: gets a line for whatever a user
    should know, such as a damaged checkpoint. All ranks call every method alike.
    """

    def __init__(
        self, run: Path, model: LanguageModel, optimizer: torch.optim.Optimizer, *, keep: int,
        notice: Callable[[str], None], ranks: Ranks, seed: int = 0, tokenizer_folder: Path | None = None,
        end_of_document_id: int = 0, context_length: int | None = None,
    ) -> None:  # fmt: skip
        self.run, self.model, self.optimizer, self.ranks = run, model, optimizer, ranks
        self.keep, self.notice, self.seed = keep, notice, seed
        self.tokenizer_folder, self.end_of_document_id = tokenizer_folder, end_of_document_id
        self.context_length = context_length
        self.parameters = dict(model.named_parameters())
        self.best: Best | None = None

    def save(self, state: TrainingState) -> Path:
        """Write a checkpoint, point `final` at it, and remove what is neither among the newest `keep` nor the best.

        Raises OSError where it cannot be written; older checkpoints are then untouched.
        """
        weights = self._gather(stored_tensors(self.model))
        optimizer = self._gather(
            {
                f"{name}/{key}": value
                for name, parameter in self.parameters.items()
                for key, value in self.optimizer.state[parameter].items()
            }
        )
        random = self.ranks.gather(random_state())
        folder = checkpoint_folder(self.run, state.step)

        def write() -> None:
            saved = SavedState(state.step, state.report, state.loop, self.best, random)
            try:
                self._write(folder, weights, optimizer, saved)
            except OSError as error:
                raise OSError(f"{folder}: could not be saved, older checkpoints are as they were ({error})") from error
            point(self.run / "final", folder)
            prune(self.run, self.keep, self.best and self.best.step)

        self.ranks.on_main(write)
        return folder

    def held_out(self, step: int, cross_entropy: float) -> None:
        """Point `best` at the checkpoint of this step if no other has predicted held-out text as well.

        The checkpoint comes before its evaluation and remembers the best before it: a run that dies in between
        evaluates again, and decides the same.
        """

        def compare() -> None:
            if cross_entropy < (self.best.cross_entropy if self.best else math.inf):
                self.best = Best(step, cross_entropy)
                point(self.run / "best", checkpoint_folder(self.run, step))
                prune(self.run, self.keep, step)

        self.ranks.on_main(compare)

    def restore(self) -> TrainingState:
        """Bring model, optimizer and random state to where the newest whole checkpoint was; step 0 if there is none.

        Random states go on where as many ranks saved them; otherwise each rank starts anew from (seed, step, rank).
        What an interrupted save left is removed; damaged checkpoints are noticed and set aside. Raises ValueError if
        all are damaged, or if the checkpoint is that of another model.
        """
        weights: dict[str, Tensor] = {}
        optimizer: dict[str, Tensor] = {}

        def read() -> dict[str, Any] | None:
            remove_partial_checkpoints(self.run)
            folder = newest_complete(self.run, self.notice)
            if folder is None:
                return None
            saved = _read_state(folder)
            weights.update(read_weights(self.model, folder))
            optimizer.update(self._read_optimizer(folder))
            self._restore_best(saved.best)
            kinds = {path: (list(tensor.shape), str(tensor.dtype)) for path, tensor in optimizer.items()}
            return asdict(cast(Any, saved)) | {"optimizer": kinds}

        found = self.ranks.on_main(read)
        if found is None:
            # Every rank has made the same weights; from here on their random numbers differ.
            if not self.ranks.is_main:
                seed_all(seed_of_rank(self.seed, 0, self.ranks.rank))
            return TrainingState()
        for name, tensor in stored_tensors(self.model).items():
            spread(tensor, weights.get(name), self.ranks)
        self.optimizer.state.clear()
        for path, (shape, dtype) in found["optimizer"].items():
            name, key = path.rsplit("/", 1)
            parameter, kind = self.parameters[name], getattr(torch, dtype.removeprefix("torch."))
            value = torch.zeros_like(parameter, dtype=kind, requires_grad=False)
            if not shape:  # the number of steps, which is never cut into parts
                value = torch.zeros((), dtype=kind, device=parameter.device)
            spread(value, optimizer.get(path), self.ranks)
            self.optimizer.state[parameter][key] = value
        self._restore_random_state(found["step"], found["random"])
        return TrainingState(found["step"], found["report"], found["loop"])

    def _gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors in the main rank's memory; nothing on the others."""
        gathered: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            value = whole(tensor.detach())
            if self.ranks.is_main:
                gathered[name] = value.cpu()
        return gathered

    def _write(
        self, folder: Path, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], saved: SavedState
    ) -> None:
        partial = folder.with_name(f".{folder.name}.partial")
        partial.mkdir(parents=True)
        try:
            save_model(
                self.model, partial, weights=weights, tokenizer_folder=self.tokenizer_folder,
                end_of_document_id=self.end_of_document_id, context_length=self.context_length,
            )  # fmt: skip
            (partial / "training").mkdir()
            write_tensors(partial / OPTIMIZER, optimizer)
            write_json(partial / STATE, asdict(cast(Any, saved)))
            write_checksums(partial)
            if folder.exists():
                shutil.rmtree(folder)
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        flush(folder.parent)

    def _read_optimizer(self, folder: Path) -> dict[str, Tensor]:
        tensors = read_tensors(folder / OPTIMIZER)
        for path, tensor in tensors.items():
            parameter = self.parameters.get(path.rpartition("/")[0])
            if parameter is None or tensor.shape not in (parameter.shape, torch.Size()):
                raise ValueError(f"{folder}: {OPTIMIZER} does not fit the model: {path} of shape {tuple(tensor.shape)}")
        return tensors

    def _restore_best(self, best: Best | None) -> None:
        link = self.run / "best"
        if best and checkpoint_folder(self.run, best.step).is_dir():
            self.best = best
            point(link, checkpoint_folder(self.run, best.step))
        else:
            self.best = None
            link.unlink(missing_ok=True)

    def _restore_random_state(self, step: int, states: list[dict[str, Any]]) -> None:
        if len(states) != self.ranks.world_size:
            seed_all(seed_of_rank(self.seed, step, self.ranks.rank))
            return
        try:
            set_random_state(states[self.ranks.rank])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.run}: the checkpoint of step {step} holds no random state ({error})") from None


def _read_state(folder: Path) -> SavedState:
    try:
        return validate(SavedState, read_json(folder / STATE))
    except ValueError as error:
        raise ValueError(f"{folder}: {STATE} is not what a save wrote: {'; '.join(str(error).splitlines())}") from None
