"""How fast is everything on a GPU, measured against what the same GPU does at best?

    python benchmarks/gpu.py [SECTION …] [--minutes 7.5] [--models 44m 244m 1b] > benchmarks/results/gpu_….md

    training    a whole step of MoEUT 244M against the dense 244M: forward, backward, AdamW; time and peak memory
    layers      σ-MoE and SwitchHead's projections of the paper's models, forward and forward + backward
    decoding    one σ-MoE layer for few tokens, and the whole 244M model for one, against reading the matrices
    blocks      other ways to cut the products than the table in moeut/experts/fused.py has

It needs this repository, torch 2.11 or newer with CUDA, and Triton; where pydantic is missing, configurations are not
checked. Products are in bfloat16. Variants take turns; medians are reported. A variant whose outputs or gradients
differ from the reference's is reported as wrong, without a time. What does not fit into the minutes is left out, and
said. Without a GPU it says so and ends with code 2; `--tiny` then shows that all of it works, interpreted, with
meaningless times.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
from measure.gpu import TABLE, Machine, compare
from measure.layers import choose, run_both, run_forward
from measure.models import MODELS, TINY, Model, language_model, training_step
from torch import Tensor

from moeut.experts import ExpertBackend, Routes, expert_linear, expert_mlp

BACKENDS: tuple[ExpertBackend, ...] = ("triton", "triton_atomic", "grouped")


def moe_leaves(model: Model, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, up and down, scaled so that outputs are of order one."""
    D, E, S, K = model.hidden, model.experts, model.expert_size, model.selected
    x, up, down = torch.randn(tokens, D), torch.randn(E, D, S) / D**0.5, torch.randn(E, S, D) / (K * S) ** 0.5
    return x.bfloat16(), up.bfloat16(), down.bfloat16()


def our_mlp(x: Tensor, up: Tensor, down: Tensor, gates: Tensor, *, expert: Tensor, backend: ExpertBackend) -> Tensor:
    """Sorting included: in a model it is done once for each selection."""
    return expert_mlp(x, up, down, Routes(expert, up.shape[0]), gates.flatten(), backend=backend)


def our_linear(x: Tensor, weight: Tensor, gates: Tensor, *, expert: Tensor, outputs: int, backend: ExpertBackend):
    routes = Routes(expert, weight.shape[0])
    return expert_linear(x, weight, routes, gates.flatten(), outputs, backend=backend)


def layers(machine: Machine, models: dict[str, Model]) -> None:
    """σ-MoE layers, and SwitchHead's value and output projections."""
    print(f"\n## Layers\n\n{TABLE}", flush=True)
    tokens = 16 if machine.tiny else 8192
    backends = ("reference", *BACKENDS)
    for name, model in models.items():
        D, E, K, S = model.hidden, model.experts, model.selected, model.expert_size
        for routing in ("uniform", "zipf"):
            if machine.late(f"{name} σ-MoE, {routing}"):
                return
            gates, expert = choose(tokens, E, K, routing)
            compare(
                machine, f"{name} σ-MoE, {routing}",
                {backend: partial(our_mlp, expert=expert, backend=backend) for backend in backends},
                (*moe_leaves(model, tokens), gates), lambda x, up, down: torch.relu(x @ up) @ down,
                tuple(torch.randn(size).bfloat16() for size in ((tokens, D), (D, K * S), (K * S, D))),
                2 * tokens * K * D * S,
            )  # fmt: skip
        if machine.late(f"{name} SwitchHead"):
            return
        H, A, P = model.heads, model.head_experts, model.head_dim
        gates, within = choose(tokens * H, A, 2)
        expert = within.view(tokens, H, 2) + torch.arange(H)[:, None] * A
        for kind, rows, outputs, I, O in (("values", tokens, tokens * H, D, P), ("outputs", tokens * H, tokens, P, D)):
            weight = (torch.randn(H * A, I, O) / I**0.5).bfloat16()
            dense = (torch.randn(2 * tokens * H, I).bfloat16(), weight[0])
            compare(
                machine, f"{name} {kind}",
                {b: partial(our_linear, expert=expert, outputs=outputs, backend=b) for b in backends},
                (torch.randn(rows, I).bfloat16(), weight, gates), torch.matmul, dense, 2 * tokens * H * I * O,
            )  # fmt: skip


def training(machine: Machine, models: dict[str, Model]) -> None:
    """Whole steps, as written and with each layer compiled."""
    size = "tiny" if machine.tiny else "244m"
    tokens = torch.randint(8000, (1, 9) if machine.tiny else (8, 1025))
    print("\n## Training step\n\n| model | ms | time / dense | tokens/s | peak MB beyond the weights |")
    print("|---|---|---|---|---|", flush=True)
    for compiled in (False,) if machine.tiny else (False, True):
        if machine.late(f"training, compiled: {compiled}", 120 if compiled else 30):
            return
        steps = {}
        for name, model in ((f"dense-{size}", None), (f"moeut-{size}", TINY if machine.tiny else MODELS["244m"])):
            network = language_model(model, machine.tiny)
            if compiled:
                for layer in network.stack.layers:
                    layer.compile()
            loss_of = partial(lambda network, tokens: network(tokens[:, :-1], tokens[:, 1:]).loss, network)
            steps[name + (", compiled" if compiled else "")] = training_step(network, loss_of, tokens)
        times = machine.medians(steps)
        dense = next(iter(times.values()))
        for name, taken in times.items():
            count = tokens.numel() - len(tokens)
            megabytes = machine.peak_megabytes(steps[name])
            print(
                f"| {name} | {1e3 * taken:.1f} | {taken / dense:.2f} | {count / taken:.0f} | {megabytes:.0f} |",
                flush=True,
            )


def decoding(machine: Machine, models: dict[str, Model]) -> None:
    """Few tokens: reading the matrices takes the time. The ceiling is summing as many bytes that lie in a row."""
    print("\n## Decoding\n\n| what | rows | MB read | variant | ms | time / reading |\n|---|---|---|---|---|---|")
    for name, model in models.items():
        _, up, down = moe_leaves(model, 1)
        weights = torch.cat([up.flatten(), down.flatten()])
        for rows in (1, 8, 64):
            if machine.late(f"decoding {name}"):
                return
            x, (gates, expert) = moe_leaves(model, rows)[0], choose(rows, model.experts, model.selected)
            numbers = len(expert.unique()) * 2 * model.hidden * model.expert_size
            layer = partial(run_forward, partial(our_mlp, expert=expert, backend="triton"), (x, up, down, gates))
            layer()
            report_decoding(machine, f"{name} σ-MoE", rows, weights[:numbers], layer)
    if not machine.late("decoding of the whole model", 30):
        model = TINY if machine.tiny else MODELS["244m"]
        network, token = language_model(model, machine.tiny).bfloat16().eval(), torch.randint(8000, (1, 1))

        @torch.no_grad()
        def decode() -> Tensor:
            return network(token).logits

        D, S, R = model.hidden, model.expert_size, model.layers
        attention = 2 * D * model.heads * model.head_dim + 2 * model.heads * 2 * D * model.head_dim
        active = R * (
            attention + model.selected * 2 * D * S + D * (model.experts + 2 * model.heads * model.head_experts)
        )
        decode()
        report_decoding(machine, "the whole model, no context", 1, torch.zeros(active + D * 8000).bfloat16(), decode)


def report_decoding(machine: Machine, what: str, rows: int, bytes_read: Tensor, run: Callable[[], object]) -> None:
    """As launched from Python, and as a CUDA graph."""
    variants = {"reading": machine.captured(bytes_read.sum), "launched": run}
    try:
        variants["graph"] = machine.captured(run)
    except RuntimeError as error:
        print(f"| {what} | {rows} | | graph | not possible: {str(error).splitlines()[0]} | |")
    times = machine.medians(variants)
    for variant, taken in times.items():
        megabytes = 2e-6 * bytes_read.numel()
        print(f"| {what} | {rows} | {megabytes:.1f} | {variant} | {1e3 * taken:.3f} | {taken / times['reading']:.2f} |")


def blocks(machine: Machine, models: dict[str, Model]) -> None:
    """Forward and backward of σ-MoE layers with other tables of blocks, the one in force first."""
    from moeut.experts import fused

    print("\n## Blocks\n\n| layer | rows, columns, inner, warps, stages | ms, forward | ms, both |\n|---|---|---|---|")
    in_force, B = fused.blocks_for, fused.Blocks
    candidates = [
        B(128, 128, 64, 8, 4), B(128, 128, 64, 4, 3), B(128, 64, 64, 4, 4), B(64, 128, 64, 4, 3), B(64, 256, 64, 8, 3),
        B(64, 64, 64, 4, 4), B(128, 256, 64, 8, 3), B(128, 128, 32, 8, 4),
    ]  # fmt: skip
    for name, model in models.items():
        tokens = 16 if machine.tiny else 8192
        gates, expert = choose(tokens, model.experts, model.selected)
        leaves = (*moe_leaves(model, tokens), gates)
        mean = tokens * model.selected / model.experts
        for cut in (in_force(mean, torch.bfloat16), *candidates[: 1 if machine.tiny else None]):
            if machine.late(f"blocks {name} {tuple(cut)}", 15):
                return
            fused.blocks_for = lambda rows_per_expert, dtype, cut=cut: cut
            layer = partial(our_mlp, expert=expert, backend="triton")
            try:
                times = machine.medians({run.__name__: partial(run, layer, leaves) for run in (run_forward, run_both)})
                print(
                    f"| {name} | {tuple(cut)} | {' | '.join(f'{1e3 * taken:.3f}' for taken in times.values())} |",
                    flush=True,
                )
            except Exception as error:  # a table that the GPU cannot run is a result, too
                print(f"| {name} | {tuple(cut)} | {type(error).__name__} | |", flush=True)
            finally:
                fused.blocks_for = in_force


SECTIONS = {"training": training, "layers": layers, "decoding": decoding, "blocks": blocks}


def ready(tiny: bool) -> None:
    """Leave with code 2 where there is no GPU, unless the sizes are tiny: then Triton interprets."""
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
        properties = torch.cuda.get_device_properties(0)
        print(f"{properties.name}, torch {torch.__version__}, bfloat16")
    elif tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        print("No GPU: these times mean nothing")
    else:
        print("There is no GPU here that torch can use: nothing was measured", file=sys.stderr)
        sys.exit(2)
    torch.manual_seed(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["244m", "44m", "1b"])
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, to see whether everything runs")
    arguments = parser.parse_args()
    ready(arguments.tiny)
    machine = Machine(arguments.minutes, arguments.repetitions, arguments.tiny)
    models = {"tiny": TINY} if arguments.tiny else {name: MODELS[name] for name in arguments.models}
    for section in arguments.sections or SECTIONS:
        SECTIONS[section](machine, models)
