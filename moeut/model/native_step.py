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


def can_step(layers: nn.ModuleList, backend: ExpertBackend, x: Tensor, around: Surroundings) -> bool:
    """Whether `step` gives for x [B, T, d] what these layers would, and nobody would miss what it leaves out.

    It is one token that sees all keys, without gradients, in float32 or float64, on a CPU whose backend is `native`,
    through layers of the paper's parts, with sigmoid gates and without biases, that nobody has put hooks or other parts
    into (adapters, offloading).
    """
    return (
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


def step(layer: Layer, x: Tensor, around: Surroundings, slot: CacheSlot | None) -> Tensor:
    """The stream x [B, 1, d] after a layer, its keys and values put into the cache. Only where `can_step` says so."""
    attention, moe = layer.attention, layer.feed_forward
    assert isinstance(attention, SwitchHeadAttention)
    assert isinstance(moe, SigmaMoE)
    config, (batch, _, d), x = attention.config, x.shape, x.contiguous()
    heads, size, selected = config.num_attention_heads, config.head_dim, config.num_experts_per_tok
    query, key, value = (x.new_empty(batch, heads, 1, size) for _ in range(3))
    expert = torch.empty(batch * heads * selected, dtype=torch.int64)
    gates = x.new_empty(batch * heads * selected)
    cos, sin = around.phases
    norm, dims = layer.attention_norm, [batch, d, heads, size, config.num_experts, selected]
    call(
        "step_begin", x.dtype,
        [x, norm.weight, norm.bias, attention.q_proj.weight, attention.k_proj.weight, attention.v_router.weight,
         attention.o_router.weight, attention.v_experts, cos, sin, query, key, value, expert, gates],
        [norm.eps, *dims, cos.shape[-1], 0 if len(cos) == 1 else cos.shape[-1],
         shares_of(batch * heads * (2 + selected) * d * size)],
    )  # fmt: skip
    keys, values = (key, value) if slot is None else slot.extend(key, value)
    assert keys.stride(3) == values.stride(3) == 1
    norm, y = layer.feed_forward_norm, torch.empty_like(x)
    num_experts, _, expert_size = moe.up_experts.shape
    chosen = moe.router.config.num_experts_per_tok
    call(
        "step_end", x.dtype,
        [x, query, keys, values, expert, gates, attention.o_experts, norm.weight, norm.bias, moe.router.weight,
         moe.up_experts, moe.down_experts, y],
        [norm.eps, *keys.stride()[:3], *values.stride()[:3], *dims, keys.shape[2], num_experts, expert_size, chosen,
         shares_of(2 * batch * chosen * d * expert_size)],
    )  # fmt: skip
    return y
