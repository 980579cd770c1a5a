"""What does `auto` mean on this machine? The precision, and how many sequences fit into its memory at a time."""

from dataclasses import replace

from moeut.config import RunConfig
from moeut.training.distributed import Ranks
from moeut.training.machine import free_memory_bytes
from moeut.training.memory import peak_bytes
from moeut.training.precision import resolve_precision
from moeut.training.report import human

USED_SHARE = 0.8
"""How much of the free memory a micro-batch may take: estimates err, and a machine has other things to do."""


def resolved(config: RunConfig, ranks: Ranks) -> RunConfig:
    """The same configuration with something in the place of every `auto`; all processes on one CPU share its memory.

    micro_batch_size is the rank's whole share of a step, or the first of its halves that is estimated to fit. Raises
    ValueError where not even one sequence does.
    """
    training = config.training
    precision = resolve_precision(training.precision, ranks.device)
    rows = training.micro_batch_size
    if rows == "auto":
        rows = training.batch_size // ranks.world_size
        processes = ranks.world_size if ranks.device.type == "cpu" else 1
        free = free_memory_bytes(ranks.device)
        while (needed := peak_bytes(config.model, training, rows, precision)) * processes > USED_SHARE * free:
            if rows == 1:
                raise ValueError(
                    f"training.micro_batch_size: one sequence at a time needs about {human(needed)}, and "
                    f"{human(free)} are free; shorten training.context_length, choose a smaller model, or say 1"
                )
            rows = -(-rows // 2)
    return replace(config, training=replace(training, precision=precision, micro_batch_size=rows))
