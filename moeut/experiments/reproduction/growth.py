"""How does the residual stream grow with depth? The appendix's figure, which motivates peri-layernorm."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from moeut.analysis.recording import record
from moeut.data.sampler import evaluation_batches
from moeut.data.tokens import open_prepared
from moeut.experiments.reproduction.scales import Scale
from moeut.experiments.reproduction.study import Chart, Direction, Means, Quantity, Study
from moeut.experiments.reproduction.systems import DENSE, MOEUT
from moeut.experiments.run_folder import model_folder, run_of
from moeut.model.folder import load_model

BATCHES, BATCH_SIZE = 4, 8


def residual_growth(scale: Scale) -> Study:
    """The updates that the layers of a MoEUT and of a dense Transformer make."""
    [size], [corpus] = scale.sizes("44m"), scale.corpora("c4")
    entrants = [scale.entrant(system, size, corpus) for system in (MOEUT, DENSE)]
    depth = scale.moeuts[size].num_hidden_layers
    curve = {float(layer): update(layer) for layer in range(1, depth + 1)}
    return Study(
        name="residual-growth",
        source="the appendix's figure on the growth of the residual stream",
        question="How large are the updates of the layers, from the first to the last?",
        found="They grow with depth, which makes room for peri-layernorm (caption; the numbers were not found).",
        entrants=entrants,
        charts=[Chart("by-depth", "layer", "mean length of its update", lambda entrant: curve)],
        directions=[Direction(Quantity(entrant, update(1)), Quantity(entrant, update(depth))) for entrant in entrants],
        metrics=(update(1), update(depth)),
        measure=updates,
    )


def update(layer: int) -> str:
    """The name of the number that says how far an executed layer, counted from 1, moves the stream."""
    return f"update of layer {layer}"


def updates(means: Means) -> Callable[[Path], dict[str, float]]:
    """The mean length ‖layer(x) − x‖ of every executed layer's update, over tokens of held-out text."""

    def lengths(run: Path) -> dict[str, float]:
        folder = model_folder(run)
        config, model = run_of(folder), load_model(folder).to(means.device)
        assert config is not None
        batches = evaluation_batches(open_prepared(config.data).held_out, config.training.context_length, BATCH_SIZE)
        recording = record(model, {"held out": islice(batches, BATCHES)}, sample_every=1)
        return {update(layer): length for layer, length in enumerate(recording.stream.update.tolist(), 1)}

    return lengths
