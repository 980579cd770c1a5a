"""What does a dense layer compute for each token by itself? An MLP with one hidden layer.

Letters: d hidden size, F intermediate size.
"""

from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from moeut.model.initialise import InitialWeights, Linear, zeros
from moeut.model.routing import Selection
from moeut.model.surroundings import Inputs, Tokens
from moeut.settings import STRICT, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MLPConfig:
    """An MLP of width `intermediate_size` with ReLU and biases, as the paper's dense baseline."""

    kind: Literal["mlp"] = "mlp"
    intermediate_size: PositiveInt


class MLP(nn.Module):
    """y = relu(x W₁ + b₁) W₂ + b₂; up_proj [F, d], down_proj [d, F]. Reads `projected`; nothing in it is scored."""

    def __init__(self, config: MLPConfig, hidden_size: int, initial: InitialWeights) -> None:
        super().__init__()
        width = config.intermediate_size
        self.up_proj = Linear(hidden_size, width, initial.dense(hidden_size), bias=zeros)
        self.down_proj = Linear(width, hidden_size, initial.dense(width), bias=zeros)

    def forward(self, inputs: Inputs, tokens: Tokens) -> tuple[Tensor, dict[str, Selection]]:
        """inputs: [B, T, d] → [B, T, d]; there is no selection to report."""
        return self.down_proj(self.up_proj(inputs.projected).relu()), {}
