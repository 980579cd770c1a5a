"""How are weights called in the two official code bases, and in ours?

The clean release (RobertCsordas/moeut) and the training code (RobertCsordas/moeut_training_code, whose names the
released checkpoints carry) against `moeut.model`. Weights keep their layout; only the dense baseline's keys and values,
stored as one matrix, are split.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from moeut.settings import listed

_RELEASE = ("attention.", "ffn.", "ln1.", "ln2.")
"""What stands in front of a name inside a layer of the clean release, and of the training code never."""

_LAYER = re.compile(r"(?:transformer\.layers|unique_layers)\.(\d+)\.(?:mod\.)?(.+)")
"""Where SUT halts, its layers stand one deeper (`mod.`), beside the halting gate."""

_BOOKKEEPING = re.compile(r"unique_layers\.\d+\.pkm\.(iter|kv_sel_counts_100)")

_OUTSIDE = {
    "embedding.weight": "embedding.weight",
    "out_norm.weight": "norm.weight",
    "out_norm.bias": "norm.bias",
    "lm_head.weight": "lm_head.weight",
    "lm_head.bias": "lm_head.bias",
    "output.weight": "lm_head.weight",
    "output.bias": "lm_head.bias",
}

_NORMS = {
    "ln1": "attention_norm",
    "ln2": "feed_forward_norm",
    "norm1": "attention_norm",
    "norm2": "feed_forward_norm",
    "self_attn.norm": "attention_norm",
    "pkm.norm": "feed_forward_norm",
    "self_attn_layer_norm": "attention_norm",
    "final_layer_norm": "feed_forward_norm",
}

_HALTING = {
    "_gate.0.weight": "hidden_proj.weight",
    "_gate.0.bias": "hidden_proj.bias",
    "_gate.3.weight": "gate_proj.weight",
}

_FEED_FORWARD = {
    "ffn.keys": "up_experts",
    "ffn.values": "down_experts",
    "ffn.expert_sel": "router.weight",
    "pkm.keys": "up_experts",
    "pkm.values": "down_experts",
    "pkm.expert_sel": "router.weight",
    "pkm.bias": "up.bias",
    "pkm.o_bias": "bias",
    "pkm.sel_bias": "router.bias",
    "linear1.weight": "up_proj.weight",
    "linear1.bias": "up_proj.bias",
    "linear2.weight": "down_proj.weight",
    "linear2.bias": "down_proj.bias",
    "moe.experts.w": "up_experts",
    "moe.experts.b": "up.bias",
    "moe.output_experts.w": "down_experts",
    "moe.output_experts.b": "down.bias",
    "moe.w_gate.0.weight": "router.hidden_proj.weight",
    "moe.w_gate.0.bias": "router.hidden_proj.bias",
    "moe.w_gate.3.weight": "router.weight",
}

_ATTENTION = {
    "attention.q.weight": "q_proj.weight",
    "attention.k.weight": "k_proj.weight",
    "self_attn.projections.q": "q_proj.weight",
    "self_attn.projections.k": "k_proj.weight",
    "self_attn.data_to_q.weight": "q_proj.weight",
    "self_attn.out_proj.weight": "o_proj.weight",
    "self_attn.selections.v": "v_router.weight",
    "self_attn.selections.o": "o_router.weight",
    "self_attn.projections.v": "v_experts",
    "self_attn.projections.o": "o_experts",
    "self_attn.q_proj.experts.w": "q_experts",
    "self_attn.q_proj.output_experts.w": "o_experts",
    "self_attn.q_proj.w_gate.0.weight": "router.hidden_proj.weight",
    "self_attn.q_proj.w_gate.0.bias": "router.hidden_proj.bias",
    "self_attn.q_proj.w_gate.3.weight": "router.weight",
    "self_attn.k_proj.weight": "k_proj.weight",
    "self_attn.v_proj.weight": "v_proj.weight",
    "self_attn.rel_pos_emb": "relative_embedding.weight",
}

_SEVERAL = {
    "attention.v": "v_experts",
    "attention.o": "o_experts",
    "attention.sel_v": "v_router.weight",
    "attention.sel_o": "o_router.weight",
}

_SINGLE = {"attention.v": "v_proj.weight", "attention.o": "o_proj.weight", "attention.sel_o": "gate_proj.weight"}


def from_official(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official weights (or their gradients) to the names of `moeut.model.language_model.LanguageModel`.

    The training code's counters are dropped. Raises ValueError that lists names it does not know, or that mean what
    another name means too.
    """
    # The release keeps a single expert under the names of many; only the number of dimensions tells them apart.
    single_expert = any(name.endswith("attention.v") and tensor.dim() == 2 for name, tensor in official.items())
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in official.items():
        if _BOOKKEEPING.fullmatch(name):
            continue
        ours = _ours(name, tensor, _SINGLE if single_expert else _SEVERAL)
        if not ours or ours.keys() & renamed.keys():
            unknown.append(name)
        renamed |= ours
    if unknown:
        raise ValueError(f"not weights of a MoEUT or of one of its rivals: {listed(unknown)}")
    return renamed


def to_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a language model's weights to the names of the clean release, which are again those of `from_official`.

    Which models the release can be is `moeut.official.release.release_arguments`. Raises ValueError that lists
    names for which the release has none.
    """
    names = {name: _official(name) for name in weights}
    unknown = [name for name, official in names.items() if official is None]
    if unknown:
        raise ValueError(f"the official release has no such weights: {listed(unknown)}")
    return {str(names[name]): tensor for name, tensor in weights.items()}


def _ours(name: str, tensor: Tensor, release: Mapping[str, str]) -> dict[str, Tensor]:
    """Our names for one official tensor; empty if it is unknown."""
    if name in _OUTSIDE:
        return {_OUTSIDE[name]: tensor}
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return {}
    number, inside = layer.groups()
    if inside in _HALTING:
        return {f"stack.halting_gates.{number}.{_HALTING[inside]}": tensor}
    parts = _in_layer(inside, tensor, release)
    return {f"stack.layers.{number}.{part}": value for part, value in parts.items()}


def _in_layer(name: str, tensor: Tensor, release: Mapping[str, str]) -> dict[str, Tensor]:
    """Our names, inside a layer, for one official tensor; empty if it is unknown."""
    owner, _, leaf = name.rpartition(".")
    if owner in _NORMS:
        return {f"{_NORMS[owner]}.{leaf}": tensor}
    if name in _FEED_FORWARD:
        return {f"feed_forward.{_FEED_FORWARD[name]}": tensor}
    if name == "self_attn.data_to_kv.weight" and tensor.dim() > 0:
        key, value = tensor.tensor_split(2)
        return {"attention.k_proj.weight": key, "attention.v_proj.weight": value}
    ours = _ATTENTION.get(name) or release.get(name)
    return {} if ours is None else {f"attention.{ours}": tensor}


def _official(name: str) -> str | None:
    """The clean release's name for one of our tensors, if it has one."""
    if not name.startswith("stack.layers."):
        return next((official for official, ours in _OUTSIDE.items() if ours == name), None)
    _, _, number, part, leaf = name.split(".", 4)
    match part:
        case "attention":
            known = [*_ATTENTION.items(), *_SEVERAL.items(), *_SINGLE.items()]
        case "feed_forward":
            known = [*_FEED_FORWARD.items()]
        case _:
            known = [(f"{official}.{leaf}", leaf) for official, ours in _NORMS.items() if ours == part]
    inside = (official for official, ours in known if ours == leaf and official.startswith(_RELEASE))
    return next((f"transformer.layers.{number}.{official}" for official in inside), None)
