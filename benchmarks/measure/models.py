"""Which models are measured, and how are they built where pydantic is missing?"""

import dataclasses
import sys
import types
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Model(NamedTuple):
    """Executed layers, group size, hidden size, heads, head size, experts a head, experts, experts per token, size."""

    layers: int
    group: int
    hidden: int
    heads: int
    head_dim: int
    head_experts: int
    experts: int
    selected: int
    expert_size: int = 128


MODELS = {
    "44m": Model(16, 2, 412, 4, 82, 8, 155, 12),
    "126m": Model(18, 2, 768, 4, 96, 10, 254, 12),
    "244m": Model(18, 2, 1024, 4, 128, 10, 387, 16),
    "318m": Model(24, 3, 1024, 4, 128, 10, 338, 16),
    "727m": Model(36, 4, 1280, 5, 128, 13, 467, 20),
    "1b": Model(36, 4, 1536, 6, 128, 12, 565, 24),
}
TINY = Model(4, 2, 24, 2, 8, 3, 5, 2, 16)


def without_pydantic() -> None:
    """Let configurations be plain dataclasses where pydantic is missing: they are right in this file."""
    pydantic, dataclass_module = types.ModuleType("pydantic"), types.ModuleType("pydantic.dataclasses")
    vars(dataclass_module)["dataclass"] = lambda *_, config, **options: dataclasses.dataclass(**options)
    vars(pydantic).update(dataclasses=dataclass_module, Field=lambda **_: None, ConfigDict=dict)
    sys.modules |= {"pydantic": pydantic, "pydantic.dataclasses": dataclass_module}


def language_model(model: Model | None, tiny: bool) -> Any:
    """A MoEUT, or, for None, the dense model of as many parameters as the 244M; on the default device."""
    if find_spec("pydantic") is None and "pydantic" not in sys.modules:
        without_pydantic()
    from moeut.model.attention import DenseAttentionConfig
    from moeut.model.feedforward import MLPConfig
    from moeut.model.language_model import LanguageModel, ModelConfig
    from moeut.model.sigma_moe import SigmaMoEConfig
    from moeut.model.switchhead import SwitchHeadConfig

    if model is None:
        layers, hidden, heads, width = (4, 24, 3, 96) if tiny else (18, 1024, 16, 4110)
        return LanguageModel(
            ModelConfig(
                vocab_size=8000, hidden_size=hidden, num_hidden_layers=layers, group_size=layers, norm="pre",
                attention=DenseAttentionConfig(num_attention_heads=heads, head_dim=hidden // heads),
                feed_forward=MLPConfig(intermediate_size=width),
            )
        )  # fmt: skip
    return LanguageModel(
        ModelConfig(
            vocab_size=8000, hidden_size=model.hidden, num_hidden_layers=model.layers, group_size=model.group,
            attention=SwitchHeadConfig(
                num_attention_heads=model.heads, head_dim=model.head_dim, num_experts=model.head_experts
            ),
            feed_forward=SigmaMoEConfig(
                num_experts=model.experts, num_experts_per_tok=model.selected, moe_intermediate_size=model.expert_size
            ),
            expert_backend="triton",
        )
    )  # fmt: skip


def training_step(model: torch.nn.Module, loss_of: Callable[[Tensor], Tensor], tokens: Tensor) -> Callable[[], None]:
    """Forward in autocast to bfloat16, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16):
            loss = loss_of(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
