"""How does a CPU take one more token through a model? As a whole, in C++: Python takes longer than the numbers do.

For each layer of a MoEUT, PyTorch carries out some eighty operations; with one token each of them takes longer to call
than to compute. `moeut/experts/native_step.h` computes what the layers and the head do: this file says when, and hands
it the weights and the cache's memory. Letters: B sequences, d hidden size, H heads, P head size, A experts a head, K
selected, N keys, E experts, S expert size, V vocabulary, L executed layers.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moeut.experts import ExpertBackend, resolve_backend
from moeut.experts.native import call, shares_of
from moeut.model.cache import Cache, lengthening
from moeut.model.initialise import Linear
from moeut.model.layer import Layer, norm_placement
from moeut.model.routing import Router, RouterConfig
from moeut.model.sigma_moe import SigmaMoE
from moeut.model.surroundings import Surroundings
from moeut.model.switchhead import SwitchHeadAttention, SwitchHeadConfig


def streams_of(
    layers: nn.ModuleList, schedule: Sequence[int], backend: ExpertBackend, x: Tensor, around: Surroundings,
    cache: Cache | None,
) -> Tensor | None:  # fmt: skip
    """The streams [L + 1, B, 1, d] before and after each executed layer; keys and values go into the cache.

    None, and nothing is done, where that would not be what the layers compute, or somebody would miss them: it does for
    one token that sees all keys, without gradients, in float32 or float64, on a CPU with the backend `native`, through
    layers of the paper's parts, with sigmoid gates and without biases, that nobody has put hooks or other parts into
    (adapters, offloading).
    """
    if around.mask is not None or not _fits(x, backend):
        return None
    weights = [_weights(layer) for layer in layers]
    if not all(weights) or not all(_plain(tensor, x) for of_layer in weights for tensor in of_layer):
        return None
    first, *others = layers
    if any(_configs(layer) != _configs(first) for layer in others):
        return None
    assert isinstance(first, Layer)
    return _step(first, [tensor for of_layer in weights for tensor in of_layer], schedule, x, around, cache)


def logits_of(norm: nn.Module, head: nn.Module, backend: ExpertBackend, x: Tensor) -> Tensor | None:
    """head(norm(x)) [B, 1, V] for one token of each sequence, x [B, 1, d]; None where `streams_of` would not do."""
    if not _fits(x, backend) or not (type(norm) is nn.LayerNorm and type(head) is Linear) or _watched(norm, head):
        return None
    tensors = [norm.weight, norm.bias, head.weight, head.bias]
    if not all(tensor is not None and _plain(tensor, x) for tensor in tensors):
        return None
    B, _, d = x.shape
    logits = x.new_empty(B, 1, head.out_features)
    call(
        "head", x.dtype, [x.contiguous(), *tensors, logits],
        [norm.eps, B, d, head.out_features, shares_of(B * d * head.out_features)],
    )  # fmt: skip
    return logits


def _fits(x: Tensor, backend: ExpertBackend) -> bool:
    return (
        x.shape[1] == 1
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and type(x) is Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and resolve_backend(backend, x.device, x.dtype) == "native"
    )


def _weights(layer: nn.Module) -> list[Tensor]:
    """In the order of `LayerWeights` in native_step.h; none where the layer or a part of it is another than there."""
    if type(layer) is not Layer or layer.placement != norm_placement("peri"):
        return []
    attention, moe, dropout = layer.attention, layer.feed_forward, layer.dropout
    before, after = layer.attention_norm, layer.feed_forward_norm
    if type(attention) is not SwitchHeadAttention or type(moe) is not SigmaMoE:
        return []
    query, key, v_router, o_router, router = (
        attention.q_proj, attention.k_proj, attention.v_router, attention.o_router, moe.router
    )  # fmt: skip
    classes = (nn.LayerNorm, nn.LayerNorm, Linear, Linear, Router, Router, Router, nn.Dropout)
    parts = (before, after, query, key, v_router, o_router, router, dropout)
    known = all(type(part) is kind for part, kind in zip(parts, classes, strict=True))
    if not known or moe.up is not None or moe.bias is not None or _watched(layer, attention, moe, *parts):
        return []
    if any(each.config.gate != "sigmoid" or each.bias is not None for each in (v_router, o_router, router)):
        return []
    return [
        before.weight, before.bias, query.weight, key.weight, v_router.weight, o_router.weight, attention.v_experts,
        attention.o_experts, after.weight, after.bias, router.weight, moe.up_experts, moe.down_experts,
    ]  # fmt: skip


def _configs(layer: nn.Module) -> tuple[SwitchHeadConfig, RouterConfig]:
    """What, besides the weights, a layer may do otherwise than another."""
    assert isinstance(layer, Layer)
    attention, moe = layer.attention, layer.feed_forward
    assert isinstance(attention, SwitchHeadAttention)
    assert isinstance(moe, SigmaMoE)
    return attention.config, moe.router.config


def _watched(*parts: nn.Module) -> bool:
    """Whether calling one of these modules may do something besides its class's `forward` in evaluation mode."""
    return any(
        part.training
        or part._forward_hooks
        or part._forward_pre_hooks
        or part._compiled_call_impl
        or "forward" in vars(part)
        for part in parts
    )


def _plain(tensor: Tensor, x: Tensor) -> bool:
    """Whether its numbers lie one after the other in memory, and are such as x's."""
    return (
        type(tensor) in (nn.Parameter, Tensor) and tensor.is_cpu and tensor.dtype == x.dtype and tensor.is_contiguous()
    )


_Extend = ctypes.CFUNCTYPE(None, ctypes.c_int64)
_Slot = ctypes.c_int64 * 9
"""Addresses and strides of keys and of values, and how many there are: `Slot` of native_step.h."""


def _step(
    layer: Layer, weights: list[Tensor], schedule: Sequence[int], x: Tensor, around: Surroundings,
    cache: Cache | None,
) -> Tensor:  # fmt: skip
    """The streams. layer: one of the layers, which are alike; weights: of all, as `_weights` gives them."""
    (B, _, d), L, (cos, sin), (config, router) = x.shape, len(schedule), around.phases, _configs(layer)
    H, P, A, K = config.num_attention_heads, config.head_dim, config.num_experts, config.num_experts_per_tok
    E, S, selected, half = router.num_experts, weights[-1].shape[1], router.num_experts_per_tok, cos.shape[-1]
    streams, new = x.new_empty(L + 1, B, 1, d), x.new_empty(B, H, 1, P)
    streams[0] = x
    lengthen = lengthening(cache)
    if lengthen is None:
        memory = [(torch.empty_like(new), torch.empty_like(new)) for _ in range(L)]
    else:
        memory = [lengthen(new, new, depth) for depth in range(L)]
    slots = (_Slot * L)(*(_slot(*states, new) for states in memory))
    failures: list[BaseException] = []

    def extend(depth: int) -> None:
        # No exception passes through C++. The layers that are left compute something, for nobody.
        try:
            if cache is not None and not failures:
                memory[depth] = cache.update(*memory[depth], depth)
                slots[depth] = _slot(*memory[depth], new)
        except BaseException as failure:
            failures.append(failure)

    layers = (ctypes.c_void_p * len(weights))(*(tensor.data_ptr() for tensor in weights))
    order = (ctypes.c_int64 * L)(*schedule)
    callback = _Extend() if cache is None or lengthen is not None else _Extend(extend)
    macs = B * d * (2 * selected * S + H * (P * (2 + 2 * K) + 2 * A) + E)
    call(
        "step", x.dtype, [cos, sin, streams],
        [layer.attention_norm.eps, B, d, H, P, A, K, E, S, selected, half, half if len(cos) > 1 else 0,
         ctypes.addressof(layers), ctypes.addressof(order), ctypes.addressof(slots),
         ctypes.cast(callback, ctypes.c_void_p).value or 0, L, shares_of(macs)],
    )  # fmt: skip
    if failures:
        raise failures[0]
    return streams


def _slot(keys: Tensor, values: Tensor, new: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """keys, values: [B, H, N, P], of a new token's [B, H, 1, P]. Raises ValueError where they are not."""
    B, H, _, P = new.shape
    N = keys.shape[2]
    if not (keys.shape == values.shape == (B, H, N, P) and keys.dtype == values.dtype == new.dtype):
        raise ValueError(
            f"cache: keys and values of {tuple(keys.shape)}, {keys.dtype}, cannot follow on from "
            f"{tuple(new.shape)}, {new.dtype}"
        )
    of_keys, of_values = keys.stride(), values.stride()
    assert of_keys[3] == of_values[3] == 1
    return _Slot(keys.data_ptr(), *of_keys[:3], values.data_ptr(), *of_values[:3], N)
