"""How does a CPU take one more token through a layer? As a whole, in C++: Python takes longer than the numbers do.

For each layer of a MoEUT, PyTorch carries out some eighty operations; with one token each of them takes longer to call
than to compute. `moeut/experts/native_step.h` computes what `moeut.model.layer.Layer` does: this file says when, and
hands it the weights. Letters: B sequences, d hidden size, H heads, P head size, K experts selected, N keys.
"""

import torch
from torch import Tensor, nn

from moeut.experts import ExpertBackend, resolve_backend
from moeut.experts.native import call, shares_of
from moeut.model.cache import CacheSlot
from moeut.model.initialise import Linear
from moeut.model.layer import Layer, norm_placement
from moeut.model.routing import Router
from moeut.model.sigma_moe import SigmaMoE
from moeut.model.surroundings import Surroundings
from moeut.model.switchhead import SwitchHeadAttention

PARTS = {Layer, SwitchHeadAttention, SigmaMoE, Router, Linear, nn.LayerNorm, nn.Dropout}


def steps_of(
    layers: nn.ModuleList, backend: ExpertBackend, x: Tensor, around: Surroundings
) -> "tuple[LayerStep, ...] | None":
    """What gives for x [B, T, d] what these layers would; None where it would not, or somebody would miss the layers.

    It does for one token that sees all keys, without gradients, in float32 or float64, on a CPU with the backend
    `native`, through layers of the paper's parts, with sigmoid gates and without biases, that nobody has put hooks or
    other parts into (adapters, offloading).
    """
    fit = (
        x.shape[1] == 1
        and around.mask is None
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and type(x) is Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and resolve_backend(backend, x.device, x.dtype) == "native"
        and all(_is_the_papers(layer) for layer in layers)
    )
    return tuple(LayerStep(layer) for layer in layers if isinstance(layer, Layer)) if fit else None


def _is_the_papers(layer: nn.Module) -> bool:
    if any(type(part) not in PARTS or part.training or _hooked(part) for part in layer.modules()):
        return False
    assert isinstance(layer, Layer)
    attention, feed_forward = layer.attention, layer.feed_forward
    return (
        isinstance(attention, SwitchHeadAttention)
        and isinstance(feed_forward, SigmaMoE)
        and layer.placement == norm_placement("peri")
        and feed_forward.up is None
        and feed_forward.bias is None
        and all(
            router.config.gate == "sigmoid" and router.bias is None
            for router in (attention.v_router, attention.o_router, feed_forward.router)
        )
    )


def _hooked(part: nn.Module) -> bool:
    """Whether calling a module does something besides its class's `forward`."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) or part._compiled_call_impl)


class LayerStep:
    """What `Layer.forward` does, for one token of each sequence; made anew in each forward pass."""

    def __init__(self, layer: Layer) -> None:
        attention, moe = layer.attention, layer.feed_forward
        assert isinstance(attention, SwitchHeadAttention)
        assert isinstance(moe, SigmaMoE)
        config, before, after = attention.config, layer.attention_norm, layer.feed_forward_norm
        self.heads, self.head_dim, self.selected = (
            config.num_attention_heads, config.head_dim, config.num_experts_per_tok
        )  # fmt: skip
        self.head_experts, self.chosen, self.eps = config.num_experts, moe.router.config.num_experts_per_tok, before.eps
        self.num_experts, self.hidden_size, self.expert_size = moe.up_experts.shape
        self.begin = [
            before.weight, before.bias, attention.q_proj.weight, attention.k_proj.weight, attention.v_router.weight,
            attention.o_router.weight, attention.v_experts,
        ]  # fmt: skip
        self.end = [
            attention.o_experts, after.weight, after.bias, moe.router.weight, moe.up_experts, moe.down_experts
        ]  # fmt: skip

    def __call__(self, x: Tensor, around: Surroundings, slot: CacheSlot | None) -> Tensor:
        """The stream x [B, 1, d] after the layer; keys and values go into the cache."""
        x, batch, heads, size = x.contiguous(), x.shape[0], self.heads, self.head_dim
        query, key, value = x.new_empty(3, batch, heads, 1, size).unbind()
        expert = torch.empty(batch, heads, self.selected, dtype=torch.int64)
        gates = x.new_empty(batch, heads, self.selected)
        cos, sin = around.phases
        half = cos.shape[-1]
        dims = (batch, self.hidden_size, heads, size, self.head_experts, self.selected)
        macs = batch * self.hidden_size * heads * size * (2 + self.selected)
        call(
            "step_begin", x.dtype, [x, *self.begin, cos, sin, query, key, value, expert, gates],
            [self.eps, *dims, half, half if len(cos) > 1 else 0, shares_of(macs)],
        )  # fmt: skip
        keys, values = (key, value) if slot is None else slot.extend(key, value)
        assert keys.stride(3) == values.stride(3) == 1
        y, macs = torch.empty_like(x), 2 * batch * self.chosen * self.hidden_size * self.expert_size
        call(
            "step_end", x.dtype, [x, query, keys, values, expert, gates, *self.end, y],
            [self.eps, *keys.stride()[:3], *values.stride()[:3], *dims, keys.shape[2], self.num_experts,
             self.expert_size, self.chosen, shares_of(macs)],
        )  # fmt: skip
        return y
