"""Do our parts agree with the official code's meaning in combinations for which there are no official numbers?

`dense_reference.py` says what the official code means, without routing. It is held against the official numbers; then
our models are held against it, logits, losses and all gradients, with weights under official names and configurations
made as those of official cases are.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_reference import Case
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from official_cases import model_config
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from moeut.model.language_model import LanguageModel
from moeut.official.names import from_official

ASSETS = Path(__file__).parent / "assets" / "parity"
D, VOCABULARY, BATCH, LENGTH = 12, 19, 2, 9

PERI = {"norm": "peri", "embedding_scale": 1.0, "input_norm": None, "output_norm": "layernorm"}
PRE = PERI | {"norm": "pre"}
POST = {
    "norm": "post",
    "embedding_scale": D**0.5,
    "input_norm": "layernorm without affine parameters",
    "output_norm": None,
}
ROTARY = {"n_heads": 2, "d_head": 6, "n_rotate": 2, "rope_base": 100.0}
DENSE_HEADS = ROTARY | {"attention": "dense_rope"}
SWITCHHEAD = ROTARY | {"attention": "switchhead", "att_n_experts": 3, "att_k": 2, "att_selection": "sigmoid"}
MLP = {"ffn": "dense relu with biases", "ffn_size": 10, "regulariser": None}
SIGMA_MOE = {
    "ffn": "sigma_moe", "ffn_n_experts": 5, "ffn_expert_size": 4, "ffn_k": 2, "ffn_selection": "sigmoid",
    "ffn_expert_bias": False, "ffn_selection_bias": False,
    "regulariser": {"ffn": 0.03, "attention": 0.02, "mode": "layers_time"},
}  # fmt: skip
SUT_MOE = {"ffn": "sut_moe", "ffn_n_experts": 6, "ffn_expert_size": 7, "ffn_k": 2}
SUT = SUT_MOE | {
    "attention": "sut_moa", "d_head": 4, "att_n_experts": 5, "att_k": 2, "att_expert_dim": 8, "att_heads_per_expert": 2,
    "max_relative_positions": 4, "act": False,
    "regulariser": {"cv": 0.03, "switch": 0.02, "mutual_information": 0.1, "act": None},
}  # fmt: skip
ACT = {
    "act": True, "halting_threshold": 0.9,
    "regulariser": {"cv": 0.03, "switch": 0.02, "mutual_information": 0.1, "act": 0.05},
}  # fmt: skip


def shared(order: list[int], sharing: str = "abab") -> dict[str, Any]:
    group = max(order) + 1
    return {
        "sharing": sharing,
        "group_size": None if sharing == "none" else group,
        "n_layers": len(order),
        "layer_order": order,
        "d_model": D,
    }


ONE, TWO, UNSHARED = shared([0, 0, 0, 0], "single"), shared([0, 1, 0, 1]), shared([0, 1], "none")
AABB = shared([0, 0, 1, 1], "aabb")


def scope(mode: str) -> dict[str, Any]:
    return {"regulariser": SIGMA_MOE["regulariser"] | {"mode": mode}}


BIASES = {"ffn_expert_bias": True, "ffn_selection_bias": True}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "softmax gates in the feed-forward layer": PERI | TWO | SWITCHHEAD | SIGMA_MOE | {"ffn_selection": "softmax"},
    "softmax gates, by their official name": PRE | TWO | SWITCHHEAD | SIGMA_MOE | {"ffn_selection": "gate"},
    "softmax gates in attention": PERI | TWO | SWITCHHEAD | SIGMA_MOE | {"att_selection": "softmax"},
    "softmax gates everywhere, aabb, over the batch": PRE | AABB | SWITCHHEAD | SIGMA_MOE | scope("global")
    | {"ffn_selection": "softmax", "att_selection": "softmax"},
    "biases under peri, shared": PERI | TWO | SWITCHHEAD | SIGMA_MOE | BIASES,
    "biases under post, each application by itself": POST | AABB | SWITCHHEAD | SIGMA_MOE | BIASES | scope("time"),
    "biases and softmax gates": PRE | UNSHARED | DENSE_HEADS | SIGMA_MOE | BIASES | {"ffn_selection": "softmax"},
    "expert biases alone": PERI | TWO | SWITCHHEAD | SIGMA_MOE | {"ffn_expert_bias": True},
    "selection biases alone": PRE | TWO | DENSE_HEADS | SIGMA_MOE | {"ffn_selection_bias": True},
    "each application by itself": PERI | TWO | SWITCHHEAD | SIGMA_MOE | scope("time"),
    "over the batch": POST | ONE | SWITCHHEAD | SIGMA_MOE | scope("global"),
    "one attention expert with two gates": PERI | UNSHARED | SWITCHHEAD | SIGMA_MOE | {"att_n_experts": 1, "att_k": 1},
    "every expert selected": PERI | TWO | SWITCHHEAD | SIGMA_MOE | {"att_k": 3, "ffn_k": 5},
    "sigma-moe with dense heads, post, shared": POST | TWO | DENSE_HEADS | SIGMA_MOE,
    "switchhead with an mlp": PRE | UNSHARED | SWITCHHEAD | MLP | {"regulariser": {"ffn": None, "attention": 0.02}},
    "post without the norm of the embedding": POST | TWO | SWITCHHEAD | SIGMA_MOE | {"input_norm": None},
    "post with a final norm": POST | TWO | DENSE_HEADS | MLP | {"output_norm": "layernorm"},
    "pre with a norm of the embedding": PRE | TWO | DENSE_HEADS | MLP | {"input_norm": POST["input_norm"]},
    "another scale of the embedding": PERI | TWO | SWITCHHEAD | SIGMA_MOE | {"embedding_scale": 0.5},
    "everything rotated": PERI | TWO | SWITCHHEAD | SIGMA_MOE | {"n_rotate": 6},
    "nothing rotated": PRE | TWO | DENSE_HEADS | MLP | {"n_rotate": 0},
    "universal transformer, pre": PRE | ONE | DENSE_HEADS | MLP,
    "universal transformer, post": POST | ONE | DENSE_HEADS | MLP,
    "universal transformer with act": POST | ONE | DENSE_HEADS | MLP | ACT,
    "universal transformer with act, groups of two": PRE | TWO | DENSE_HEADS | MLP | ACT,
    "sut, pre": PRE | ONE | SUT,
    "sut, groups of two": POST | TWO | SUT,
    "sut of one expert and one head": POST | ONE | SUT | {"att_k": 1, "ffn_k": 1, "att_heads_per_expert": 1},
    "sut without losses": POST | ONE | SUT | {"regulariser": {"cv": 0.0, "switch": 0.0, "mutual_information": 0.0}},
    "sut with near positions only": POST | ONE | SUT | {"max_relative_positions": 1},
    "sut with positions farther than the text": POST | ONE | SUT | {"max_relative_positions": 30},
    "sut with act": POST | ONE | SUT | ACT,
    "sut with act, pre": PRE | ONE | SUT | ACT,
    "sut with act, groups of two": POST | TWO | SUT | ACT,
    "sut with act, aabb": POST | AABB | SUT | ACT,
    "sut's attention with sigma-moe": POST | TWO | SUT | SIGMA_MOE,
    "sut's experts with dense heads": PRE | ONE | SUT | DENSE_HEADS,
    "sut, peri": PERI | ONE | SUT,
}  # fmt: skip


def official_shapes(semantic: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (VOCABULARY, D),
        "output.weight": (VOCABULARY, D),
        "output.bias": (VOCABULARY,),
    }
    if semantic["output_norm"]:
        shapes |= {"out_norm.weight": (D,), "out_norm.bias": (D,)}
    for index in range(max(semantic["layer_order"]) + 1):
        inside = attention_shapes(semantic) | feed_forward_shapes(semantic)
        names = ("self_attn_layer_norm", "final_layer_norm") if "sut" in semantic["attention"] else ("norm1", "norm2")
        inside |= {f"{norm}.{leaf}": (D,) for norm in names for leaf in ("weight", "bias")}
        prefix = f"unique_layers.{index}."
        if semantic.get("act"):
            gates = {"_gate.0.weight": (D, D), "_gate.0.bias": (D,), "_gate.3.weight": (2, D)}
            inside = {f"mod.{name}": shape for name, shape in inside.items()} | gates
        shapes |= {prefix + name: shape for name, shape in inside.items()}
    return shapes


def router_shapes(prefix: str, experts: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.w_gate.0.weight": (D, D),
        f"{prefix}.w_gate.0.bias": (D,),
        f"{prefix}.w_gate.3.weight": (experts, D),
    }


def attention_shapes(semantic: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    size = semantic["d_head"]
    if semantic["attention"] == "sut_moa":
        experts, heads = semantic["att_n_experts"], semantic["att_heads_per_expert"]
        return router_shapes("self_attn.q_proj", experts) | {
            "self_attn.q_proj.experts.w": (experts, D, heads * size),
            "self_attn.q_proj.output_experts.w": (experts, heads * size, D),
            "self_attn.k_proj.weight": (heads * size, D),
            "self_attn.v_proj.weight": (heads * size, D),
            "self_attn.rel_pos_emb": (heads, size, 2 * semantic["max_relative_positions"] + 1),
        }
    width = semantic["n_heads"] * size
    if semantic["attention"] == "dense_rope":
        return {
            "self_attn.data_to_q.weight": (width, D),
            "self_attn.data_to_kv.weight": (2 * width, D),
            "self_attn.out_proj.weight": (D, width),
        }
    experts = semantic["n_heads"] * semantic["att_n_experts"]
    return {
        "self_attn.projections.q": (width, D),
        "self_attn.projections.k": (width, D),
        "self_attn.projections.v": (experts, D, size),
        "self_attn.projections.o": (experts, size, D),
        "self_attn.selections.v": (experts, D),
        "self_attn.selections.o": (experts, D),
    }


def feed_forward_shapes(semantic: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    if semantic["ffn"] == "dense relu with biases":
        size = semantic["ffn_size"]
        return {"linear1.weight": (size, D), "linear1.bias": (size,), "linear2.weight": (D, size), "linear2.bias": (D,)}
    experts, size = semantic["ffn_n_experts"], semantic["ffn_expert_size"]
    if semantic["ffn"] == "sut_moe":
        return router_shapes("moe", experts) | {
            "moe.experts.w": (experts, D, size),
            "moe.experts.b": (experts, size),
            "moe.output_experts.w": (experts, size, D),
            "moe.output_experts.b": (experts, D),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "pkm.keys": (experts, D, size),
        "pkm.values": (experts, size, D),
        "pkm.expert_sel": (experts, D),
    }
    if semantic["ffn_expert_bias"]:
        shapes |= {"pkm.bias": (experts, size), "pkm.o_bias": (D,)}
    if semantic["ffn_selection_bias"]:
        shapes["pkm.sel_bias"] = (experts,)
    return shapes


def random_weights(semantic: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    weights: dict[str, Tensor] = {}
    for name, shape in official_shapes(semantic).items():
        drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
        if "norm" in name:
            weights[name] = drawn / 10 + (1 if name.endswith("weight") else 0)
        else:
            weights[name] = drawn * (2 if "sel" in name or "gate" in name else 1) * D**-0.5
    return weights


def step(case: Case, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The reference's logits, cross entropy and regulariser."""
    logits = case.logits(ids)
    return logits, cross_entropy(logits.flatten(0, 1), targets.flatten()), case.regulariser()


def leaves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone().requires_grad_() for name, value in weights.items()}


ANCHORS = [
    pytest.param(entry, id=name)
    for name, entry in json.loads((ASSETS / "manifest.json").read_text())["cases"].items()
    if name.startswith("train_")
]


@pytest.mark.parametrize("entry", ANCHORS)
def test_the_reference_gives_the_official_numbers(entry: dict[str, Any]):
    tensors = load_file(ASSETS / entry["file"])
    weights = leaves({n.removeprefix("param/"): v.double() for n, v in tensors.items() if n.startswith("param/")})
    source = "f64buf" if "f64buf/train/logits" in tensors else "ref"
    logits, entropy, regulariser = step(Case(entry["semantic"], weights), tensors["input_ids"], tensors["targets"])
    assert_close(logits, tensors[f"{source}/train/logits"], rtol=1e-10, atol=1e-10)
    assert_close(entropy, tensors[f"{source}/train/ce"], rtol=1e-10, atol=1e-10)
    assert_close(regulariser, tensors[f"{source}/train/reg_loss"], rtol=1e-10, atol=1e-10)
    (entropy + regulariser).backward()
    gradients = {name: tensors[f"{source}/train/grad/{name}"] for name in weights}
    assert_close({name: weight.grad for name, weight in weights.items()}, gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_equals_the_reference(name: str):
    assert_equals_the_reference(COMBINATIONS[name])


def test_tokens_halt_in_the_combinations_that_say_so():
    for semantic in COMBINATIONS.values():
        if semantic.get("act") and semantic["ffn"] == "sut_moe":
            case = Case(semantic, random_weights(semantic))
            case.logits(blocks()[:, :-1])
            assert any((weight == 0).any() for applications in case.sut.values() for weight, *_ in applications)


@st.composite
def any_combination(draw: st.DrawFn) -> dict[str, Any]:
    """Whatever the words of a manifest can say together, at sizes of their own."""
    among = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    between = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    coefficient = lambda: among(None, 0.0, 0.03, 0.2)  # noqa: E731
    sharing, group, repeats = among("none", "single", "abab", "aabb"), between(1, 3), between(1, 3)
    group = 1 if sharing == "single" else group
    order = list(range(group)) * (1 if sharing == "none" else repeats)
    semantic = among(PERI, PRE, POST) | shared(sorted(order) if sharing == "aabb" else order, sharing)
    semantic |= {"input_norm": among(None, POST["input_norm"]), "output_norm": among(None, "layernorm")}
    rotary, sut = among(True, False), {"d_head": between(1, 5), "att_heads_per_expert": between(1, 3)}
    if rotary:
        size = between(1, 8)
        semantic |= among(DENSE_HEADS, SWITCHHEAD) | {"n_heads": between(1, 3), "d_head": size}
        semantic |= {"n_rotate": 2 * between(0, size // 2), "rope_base": among(10.0, 10000.0)}
    else:
        semantic |= {"attention": "sut_moa", "max_relative_positions": between(1, LENGTH + 2)} | sut
    semantic |= among(MLP, SIGMA_MOE, SUT_MOE)
    for part in ("att", "ffn"):
        semantic[f"{part}_n_experts"] = between(1, 6)
        semantic[f"{part}_k"] = between(1, semantic[f"{part}_n_experts"])
    semantic |= {
        "ffn_expert_size": between(1, 5), "ffn_size": between(1, 9), "ffn_expert_bias": among(True, False),
        "ffn_selection_bias": among(True, False), "ffn_selection": among("sigmoid", "softmax", "gate"),
        "att_selection": among("sigmoid", "softmax"),
        "act": among(True, False), "halting_threshold": among(0.5, 0.9, 0.999),
        "regulariser": {
            "ffn": coefficient(), "attention": coefficient(), "mode": among("layers_time", "global", "time"),
            "cv": coefficient(), "switch": coefficient(), "mutual_information": coefficient(), "act": coefficient(),
        },
    }  # fmt: skip
    if 1 in (semantic["att_n_experts"], semantic["ffn_n_experts"]):
        # The official code takes the variance of a single number.
        semantic["regulariser"]["cv"] = None
    return semantic


@given(semantic=any_combination())
@settings(max_examples=60, deadline=None)
def test_any_combination_equals_the_reference(semantic: dict[str, Any]):
    _, _, regulariser = step(Case(semantic, random_weights(semantic)), blocks()[:, :-1], blocks()[:, 1:])
    # The mean use of a layer by a sequence that has halted means nothing.
    assume(regulariser.isfinite())
    assert_equals_the_reference(semantic)


def blocks() -> Tensor:
    return torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(6))


def assert_equals_the_reference(semantic: dict[str, Any]) -> None:
    """Logits, both losses and every gradient."""
    official, block = random_weights(semantic), blocks()
    ids, targets = block[:, :-1], block[:, 1:]
    model = LanguageModel(model_config({"semantic": semantic}, VOCABULARY)).double()
    model.load_state_dict(from_official(official))
    weights = leaves(official)
    logits, entropy, regulariser = step(Case(semantic, weights), ids, targets)
    (entropy + regulariser).backward()
    output = model(ids, targets)
    output.loss.backward()
    assert_close(output.logits, logits, rtol=1e-10, atol=1e-12)
    assert_close(output.cross_entropy, entropy, rtol=1e-10, atol=1e-12)
    assert_close(output.regulariser, regulariser, rtol=1e-10, atol=1e-12)
    expected = from_official({name: weight.grad for name, weight in weights.items() if weight.grad is not None})
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert_close(model.eval()(ids).logits, logits.detach(), rtol=1e-10, atol=1e-12)
