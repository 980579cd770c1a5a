"""Which processes train together, and how do they share a model? torchrun's ranks; DDP, FSDP2 and HSDP of PyTorch.

`torchrun --nproc-per-node N -m moeut train …` starts N processes, the ranks; without torchrun there is one rank and no
communication at all. Only the main rank reads and writes a run's folder; what it finds there, it tells the others.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from moeut.model.language_model import LanguageModel

Parallel = Literal["auto", "ddp", "fsdp"]


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, as one of them sees them.

    rank: this process's number, from 0; world_size: how many there are; device: what this one computes on. Every method
    must be called by all ranks alike, and in the same order.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone reads and writes files and talks to the user."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, which have one shape and dtype."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def any(self, condition: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self.sum(torch.tensor(int(condition))).item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks; values are what JSON can hold."""
        if self.world_size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.empty(1, dtype=torch.long) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(own)]))
        longest = max(int(size) for size in sizes)
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(texts, torch.cat([own, own.new_zeros(longest - len(own))]))
        return [json.loads(text[: int(size)].numpy().tobytes()) for text, size in zip(texts, sizes, strict=True)]

    def on_main(self, act: Callable[[], Any]) -> Any:
        """Call `act` on the main rank only; every rank gets what it returned, a value that JSON can hold.

        Where it raises, the main rank raises that, and the others end quietly with exit code 2: it has been said.
        """
        if self.world_size == 1:
            return act()
        result: Any = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = act()
            except Exception as problem:  # whatever it is, the others must not wait for it
                error = problem
        failed, result = self.gather([error is not None, result])[0]
        if error is not None:
            raise error
        if failed:
            raise SystemExit(2)
        return result


@contextmanager
def ranks(device: str = "auto") -> Iterator[Ranks]:
    """While inside, this process is one of those that torchrun started, or the only one.

    device: see `pick_device`. Errors of ranks other than the main one carry their number. Raises ConnectionError where
    another rank is gone.
    """
    if not dist.is_torchelastic_launched():
        yield Ranks(device=pick_device(device))
        return
    chosen = pick_device(device, int(os.environ["LOCAL_RANK"]))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # Decisions travel as CPU tensors through gloo, gradients through the device's own library.
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    own = Ranks(dist.get_rank(), dist.get_world_size(), chosen)
    try:
        yield own
    except (ValueError, OSError) as error:
        if own.is_main:
            raise
        raise ValueError(f"rank {own.rank}: {error}") from error
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ConnectionError(
            f"rank {own.rank}: another process is gone or does not answer; run the same command to go on from the last "
            "checkpoint"
        ) from error
    finally:
        # Whoever lets go of the group last waits for gloo's threads and holds Python's lock, which a thread that has
        # just carried out an operation needs to let go of its tensors (torch 2.13 hangs): leave them that moment.
        time.sleep(0.2)
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process is the main rank, also before and after `ranks`."""
    return not dist.is_torchelastic_launched() or os.environ["RANK"] == "0"


def parallelise(model: LanguageModel, ranks: Ranks, parallel: Parallel = "auto", replicas: int = 1) -> nn.Module:
    """The module to call instead of `model`, so that each parameter's gradient is its mean over the ranks.

    `ddp` (`auto` is that): every rank holds the whole model. `fsdp`: weights, gradients and the optimizer's state are
    cut into parts, one a rank; with `replicas` > 1 (HSDP) as many groups of ranks hold the model once each. One rank
    alone: the model itself. Build the optimizer afterwards, and see `accumulating`.

    FSDP gathers what it has cut: embedding, head and last norm together, for they may share a matrix, and each layer. A
    layer that runs several times is gathered once for all of them, forward, backward, and every micro-batch of a step.
    What is gathered is float32, as on one device: routers and the residual stream see no difference.

    Raises ValueError as `refuse_division` does.
    """
    refuse_division(ranks, parallel, replicas)
    if ranks.world_size == 1:
        return model
    if parallel != "fsdp":
        devices = [ranks.device] if ranks.device.type == "cuda" else None
        return DistributedDataParallel(model, devices, gradient_as_bucket_view=True)
    shape, names = ((ranks.world_size,), ("shard",))
    if replicas > 1:
        shape, names = (replicas, ranks.world_size // replicas), ("replicate", "shard")
    mesh = init_device_mesh(ranks.device.type, shape, mesh_dim_names=names)
    # Logits are a view, and nobody changes them in place, of which torch warns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    repeated = model.stack.config.num_repeats > 1
    for layer in model.stack.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=not repeated)
    sharded = fully_shard(model, mesh=mesh, reshard_after_forward=False)
    sharded.set_reshard_after_backward(not repeated)

    def reshard_after_evaluation(*_: object) -> None:
        if not torch.is_grad_enabled():
            _reshard(sharded)

    model.register_forward_hook(reshard_after_evaluation)
    return model


def refuse_division(ranks: Ranks, parallel: Parallel, replicas: int) -> None:
    """Raise ValueError where a model cannot be shared so by the ranks."""
    if parallel not in ("auto", "ddp", "fsdp"):
        raise ValueError(f"--parallel: {parallel!r} is none of auto, ddp and fsdp")
    if replicas != 1 and parallel != "fsdp":
        raise ValueError("--replicas: only with --parallel fsdp; with ddp every process holds a replica")
    if replicas < 1 or ranks.world_size % replicas:
        raise ValueError(f"--replicas: {ranks.world_size} processes cannot hold {replicas} replicas of one size")


@contextmanager
def accumulating(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Around forward and backward of one micro-batch; the `last` of a step brings the ranks' gradients together."""
    match module:
        case DistributedDataParallel() if not last:
            with module.no_sync():
                yield
        case FSDPModule():
            module.set_requires_gradient_sync(last)
            module.set_is_last_backward(last)
            yield
            if last:
                _reshard(module)
        case _:
            yield


def _reshard(module: FSDPModule) -> None:
    """Let go of everything gathered; parameters are the rank's own parts again."""
    assert isinstance(module, nn.Module)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP has cut into parts; every rank must ask. Any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(target: Tensor, value: Tensor | None, ranks: Ranks) -> None:
    """Fill `target`, a parameter or what belongs to one, on every rank with the main rank's `value` of its whole shape.

    value: anything, also None, on the other ranks.
    """
    with torch.no_grad():
        if not ranks.is_main or value is None:
            value = torch.empty(target.shape, dtype=target.dtype)
        value = value.to(target.device, target.dtype)
        if isinstance(target, DTensor):
            target.copy_(distribute_tensor(value, target.device_mesh, target.placements))
            return
        if ranks.world_size > 1:
            dist.broadcast(value, 0)
        target.copy_(value)


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device of this name; `auto` is a CUDA GPU where there is one, otherwise the CPU (`mps` only when asked for).

    local_rank: under torchrun, this process's number on its machine: it takes the GPU of that number. Raises ValueError
    where there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local_rank is not None and name == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; start as "
                "many processes with --nproc-per-node, or say --device cpu"
            )
        name = f"cuda:{local_rank}"
    elif local_rank is not None and name != "cpu":
        raise ValueError(f"--device: under torchrun cpu, cuda or auto, not {name!r}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device: {name!r} cannot be used here; leave it out, or say cpu, cuda or mps") from None
    return device
