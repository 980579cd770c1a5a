"""How do the expert layers compare with those of others, on the same GPU, from checkouts of theirs?

    python benchmarks/peers.py [--moeut PATH | --cvmm-codex PATH] [--scattermoe PATH] [--minutes 7.5]

    projections  the twelve of cvmm_codex's README: one projection, with its sorting, forward and backward
    layers       σ-MoE layers of the paper's models, with their sorting, forward and backward
    step         a training step of MoEUT 244M, ours and the official release's: time and peak memory

The paths are git checkouts of RobertCsordas/moeut (the official release), RobertCsordas/cvmm_codex and
shawntan/scattermoe. The first two register one operator under one name: measure them in two runs. All run as their
authors run them: float32 weights under autocast to bfloat16 for the first two and for ours, weights cast to bfloat16 by
hand for scattermoe. A variant whose output differs from the reference's is reported as wrong. Without a GPU, or without
a path, it says so and ends with code 2.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from measure.gpu import Machine
from measure.layers import choose
from measure.models import MODELS, language_model, training_step
from torch import Tensor

from moeut.experts import ExpertBackend, Routes, expert_linear, expert_mlp


class Projection(NamedTuple):
    """Tokens, input and output features, experts per token and experts; weighted: summed over a token's routes."""

    tokens: int
    inputs: int
    outputs: int
    selected: int
    experts: int
    weighted: bool


PROJECTIONS = {
    "ff_up_1024": Projection(16384, 1024, 128, 8, 512, False),
    "ff_down_1024_weighted": Projection(16384, 128, 1024, 8, 512, True),
    "ff_up_2048": Projection(8192, 2048, 128, 8, 512, False),
    "ff_down_2048_weighted": Projection(8192, 128, 2048, 8, 512, True),
    "switch_v_1024": Projection(16384, 1024, 64, 32, 512, False),
    "switch_o_1024_weighted": Projection(16384, 64, 1024, 32, 512, True),
    "switch_v_2048_h32": Projection(8192, 2048, 64, 64, 1024, False),
    "switch_o_2048_h32_weighted": Projection(8192, 64, 2048, 64, 1024, True),
    "ff_up_768": Projection(8192, 768, 128, 8, 256, False),
    "switch_o_768_weighted": Projection(8192, 64, 768, 24, 384, True),
    "ff_up_4096_stress": Projection(2048, 4096, 128, 8, 512, False),
    "ff_down_4096_weighted_stress": Projection(2048, 128, 4096, 8, 512, True),
}

# x, weight [E, I, O], gates [N, K], experts [N, K] → output
Project = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# x, up, down, gates, experts → output
Layer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def load(path: Path, name: str) -> ModuleType:
    """A module or package of a checkout under another name: the official package is called like ours."""
    inside = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=inside)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path} is not there: is this a checkout of that repository?")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def ours_project(
    x: Tensor, weight: Tensor, gates: Tensor, expert: Tensor, *, weighted: bool, backend: ExpertBackend
) -> Tensor:
    routes = Routes(expert, weight.shape[0])
    outputs, gate = (len(expert), gates.flatten()) if weighted else (expert.numel(), None)
    with torch.autocast("cuda", torch.bfloat16):
        return expert_linear(x, weight, routes, gate, outputs, backend=backend)


def cvmm_project(
    x: Tensor, weight: Tensor, gates: Tensor, expert: Tensor, *, weighted: bool, module: ModuleType
) -> Tensor:
    """The official kernel and its successor: they differ in how a weighted sum is asked for."""
    if not weighted:
        selection = module.cvmm_prepare_sel2(expert.int())
    elif "route_input" in module.cvmm_prepare_sel2.__code__.co_varnames:
        selection = module.cvmm_prepare_sel2(expert.int(), gates, route_input=True)
    else:
        selection = module.cvmm_prepare_sel2(expert.int(), gates)
        selection.sel_index, selection.out_index = selection.out_index, None
    rows = x.view(*expert.shape, -1) if weighted else x
    with torch.autocast("cuda", torch.bfloat16):
        return module.cvmm(rows, selection, weight).flatten(0, -2)


def scattermoe_project(
    x: Tensor, weight: Tensor, gates: Tensor, expert: Tensor, *, weighted: bool, module: ModuleType
) -> Tensor:
    by_expert, order, ends = module.flatten_sort_count(expert, weight.shape[0])
    fan = 1 if weighted else expert.shape[1]
    gate = gates.to(x.dtype) if weighted else None
    return module.parallel_linear(x, weight.to(x.dtype), fan, by_expert, order, ends, gates=gate)


def ours_layer(x: Tensor, up: Tensor, down: Tensor, gates: Tensor, expert: Tensor, *, backend: ExpertBackend) -> Tensor:
    routes = Routes(expert, up.shape[0])
    with torch.autocast("cuda", torch.bfloat16):
        return expert_mlp(x, up, down, routes, gates.flatten(), backend=backend)


def two_projections(
    x: Tensor, up: Tensor, down: Tensor, gates: Tensor, expert: Tensor, *, project: Callable[..., Tensor]
) -> Tensor:
    hidden = torch.relu(project(x, up, gates, expert, weighted=False))
    return project(hidden, down, gates, expert, weighted=True)


def run(function: Callable[..., Tensor], leaves: tuple[Tensor, ...], expert: Tensor) -> Tensor:
    """Forward and backward."""
    inputs = [leaf.detach().requires_grad_() for leaf in leaves]
    y = function(*inputs, expert)
    y.sum().backward()
    return y.detach()


def compare(machine: Machine, name: str, variants: dict[str, Callable[..., Tensor]], leaves, expert: Tensor) -> None:
    """Print one table row a variant; the first is what the others must equal."""
    reference, *others = variants
    expected = variants[reference](*leaves, expert).float()
    right = {}
    for variant in others:
        y = run(variants[variant], leaves, expert).float().view_as(expected)
        if (y - expected).abs().max() <= 3e-2 * expected.abs().max():
            right[variant] = partial(run, variants[variant], leaves, expert)
        else:
            print(f"| {name} | {variant} | WRONG |", flush=True)
    del expected
    times = machine.medians(right)
    ours = times.get("triton", float("nan"))
    for variant, taken in times.items():
        megabytes = machine.peak_megabytes(right[variant])
        print(f"| {name} | {variant} | {1e3 * taken:.3f} | {taken / ours:.2f} | {megabytes:.0f} |", flush=True)


TABLE = "| what | variant | ms | time / ours | peak MB with gradients |\n|---|---|---|---|---|"


def projections(machine: Machine, peers: dict[str, Callable[..., Tensor]]) -> None:
    print(f"\n## Projections\n\n{TABLE}", flush=True)
    for name, shape in PROJECTIONS.items():
        if machine.late(name):
            return
        gates, expert = choose(shape.tokens, shape.experts, shape.selected)
        rows = shape.tokens * (shape.selected if shape.weighted else 1)
        weight = torch.randn(shape.experts, shape.inputs, shape.outputs) / shape.inputs**0.5
        variants = {variant: partial(project, weighted=shape.weighted) for variant, project in peers.items()}
        compare(machine, name, variants, (torch.randn(rows, shape.inputs).bfloat16(), weight, gates), expert)


def layers(machine: Machine, peers: dict[str, Callable[..., Tensor]]) -> None:
    print(f"\n## σ-MoE layers, 8192 tokens\n\n{TABLE}", flush=True)
    ours = {backend: partial(ours_layer, backend=backend) for backend in ("reference", "triton", "triton_atomic")}
    theirs = {name: partial(two_projections, project=peers[name]) for name in peers if name not in ours}
    for name, model in MODELS.items():
        if machine.late(name):
            return
        D, E, S, K = model.hidden, model.experts, model.expert_size, model.selected
        gates, expert = choose(8192, E, K)
        leaves = (
            torch.randn(8192, D).bfloat16(), torch.randn(E, D, S) / D**0.5, torch.randn(E, S, D) / (K * S) ** 0.5, gates
        )  # fmt: skip
        compare(machine, name, {**ours, **theirs}, leaves, expert)


def step(machine: Machine, official: ModuleType) -> None:
    """Batch 8 × 1024, autocast to bfloat16, AdamW."""
    print("\n## Training step of MoEUT 244M\n\n| variant | ms | tokens/s | peak MB beyond the weights |")
    print("|---|---|---|---|", flush=True)
    model = MODELS["244m"]
    theirs = official.MoEUTLM(
        8000, d_model=model.hidden, n_layers=model.layers, n_heads=model.heads, ff_n_experts=model.experts,
        att_n_experts=model.head_experts, d_head=model.head_dim, ff_k=model.selected, group_size=model.group,
    )  # fmt: skip
    ours = language_model(model, False)
    tokens = torch.randint(8000, (8, 1025))

    def their_loss(tokens: Tensor) -> Tensor:
        output = theirs(tokens[:, :-1])
        entropy = torch.nn.functional.cross_entropy(output.outputs.flatten(0, 1), tokens[:, 1:].flatten())
        return (entropy + output.reg_loss).sum()

    steps: dict[str, Callable[[], object]] = {
        "ours": training_step(ours, lambda tokens: ours(tokens[:, :-1], tokens[:, 1:]).loss, tokens),
        "official": training_step(theirs, their_loss, tokens),
    }
    for variant, taken in machine.medians(steps).items():
        megabytes = machine.peak_megabytes(steps[variant])
        print(f"| {variant} | {1e3 * taken:.1f} | {8192 / taken:.0f} | {megabytes:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    one_of_them = parser.add_mutually_exclusive_group()
    one_of_them.add_argument("--moeut", type=Path, help="a checkout of RobertCsordas/moeut")
    one_of_them.add_argument("--cvmm-codex", type=Path, help="a checkout of RobertCsordas/cvmm_codex")
    parser.add_argument("--scattermoe", type=Path, help="a checkout of shawntan/scattermoe")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not (arguments.moeut or arguments.cvmm_codex or arguments.scattermoe):
        sys.exit(print("Needs a GPU that torch can use, and the path of a checkout: nothing was measured") or 2)
    torch.set_default_device("cuda")
    torch.manual_seed(0)
    machine = Machine(arguments.minutes, arguments.repetitions, tiny=False)
    peers: dict[str, Callable[..., Tensor]] = {
        backend: partial(ours_project, backend=backend) for backend in ("reference", "triton", "triton_atomic")
    }
    official = None
    if arguments.moeut:
        official = load(arguments.moeut / "moeut" / "__init__.py", "official_moeut")
        peers["official"] = partial(cvmm_project, module=sys.modules["official_moeut.cvmm"])
    if arguments.cvmm_codex:
        peers["cvmm_codex"] = partial(cvmm_project, module=load(arguments.cvmm_codex / "cvmm.py", "cvmm_codex"))
    if arguments.scattermoe:
        sys.path.insert(0, str(arguments.scattermoe))
        peers["scattermoe"] = partial(scattermoe_project, module=importlib.import_module("scattermoe.parallel_experts"))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    if official is not None:
        step(machine, official)
    projections(machine, peers)
    layers(machine, peers)
