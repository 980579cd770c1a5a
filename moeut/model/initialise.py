"""Where does every initial weight come from?

One table of roles and one function that fills a module's own parameters from it (paper: appendix on initialisation;
the values are those of the training runs). Letters: d hidden size, L executed depth, H heads, P head size, E experts,
S expert size, α = sqrt(2 / L) in pre- and peri-layernorm models, 1 in post-layernorm ones.

| role                             | distribution                                                                  |
| -------------------------------- | ----------------------------------------------------------------------------- |
| embedding                        | normal, std 1/sqrt(d)                                                         |
| language-model head, and bias    | uniform between ±1/sqrt(d)                                                    |
| layer norms                      | weight 1, bias 0                                                              |
| SwitchHead query and key         | normal, std α/sqrt(d)                                                         |
| value experts; output experts    | normal, std α/sqrt(d); α/sqrt(H·P)                                            |
| σ-MoE up; down                   | normal, std α/sqrt(d); α/sqrt(E·S)                                            |
| routers                          | normal, std α/sqrt(d); `release`: the same with rows of equal length          |
| linear maps of dense parts       | normal cut at ±2 std, rescaled to std α/sqrt(fan-in) exactly; biases 0        |
| biases of σ-MoE and its routers  | 0                                                                             |
| SUT keys and values              | uniform between ±sqrt(3/(d + H·P))                                            |
| SUT experts; their biases        | uniform between ±1/fan-in; ±1/sqrt(fan-out)                                   |
| SUT routers, halting             | uniform between ±1/sqrt(fan-in), biases too                                   |
| relative positions, halting gate | 0                                                                             |
"""

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Scheme = Literal["paper", "release"]
Distribution = Callable[[Tensor], object]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Normal:
    """Normal with mean 0 and standard deviation `std`."""

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, parameter: Tensor) -> None:
        nn.init.normal_(parameter, std=self.std)


class NormalWithEqualRows(Normal):
    """`Normal`, then every row is scaled to one length, keeping the standard deviation of the whole matrix.

    W ← W / ‖W‖_row; W ← W · std₀ / std(W). The official release divides by each row's own deviation in its attention
    routers, which changes next to nothing; this is what was meant.
    """

    def __call__(self, parameter: Tensor) -> None:
        super().__call__(parameter)
        if parameter.is_meta or parameter.numel() < 2:
            return
        with torch.no_grad():
            before = parameter.std()
            parameter.div_(parameter.norm(dim=-1, keepdim=True))
            parameter.mul_(before / parameter.std())


class Uniform:
    """Uniform between -`bound` and `bound`."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __call__(self, parameter: Tensor) -> None:
        nn.init.uniform_(parameter, -self.bound, self.bound)


class TruncatedNormal:
    """Normal cut off at two standard deviations, rescaled so that this draw's standard deviation is `std` exactly."""

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, parameter: Tensor) -> None:
        nn.init.trunc_normal_(parameter, std=1.0, a=-2.0, b=2.0)
        scale = self.std / parameter.std().item() if parameter.numel() > 1 and not parameter.is_meta else self.std
        with torch.no_grad():
            parameter.mul_(scale)


def zeros(parameter: Tensor) -> None:
    """All zeros."""
    nn.init.zeros_(parameter)


class InitialWeights:
    """The table above for one model: `scheme`, executed depth L and whether the residual stream is normalised (post).

    Every method takes the sizes its row of the table names and returns what fills a parameter in place.
    """

    def __init__(self, scheme: Scheme, num_hidden_layers: int, *, post_norm: bool) -> None:
        self.scheme = scheme
        self.alpha = 1.0 if post_norm else math.sqrt(2 / num_hidden_layers)

    def projection(self, fan_in: int) -> Distribution:
        """SwitchHead's query and key, expert matrices: normal, std α/sqrt(fan_in)."""
        return Normal(self.alpha / math.sqrt(fan_in))

    def router(self, hidden_size: int) -> Distribution:
        """Selection matrices: normal, std α/sqrt(hidden_size), in the `release` scheme with rows of equal length."""
        kind = NormalWithEqualRows if self.scheme == "release" else Normal
        return kind(self.alpha / math.sqrt(hidden_size))

    def dense(self, fan_in: int) -> Distribution:
        """Linear maps of dense attention and of the dense MLP: std exactly α/sqrt(fan_in)."""
        return TruncatedNormal(self.alpha / math.sqrt(fan_in))


def linear_default(fan_in: int) -> Distribution:
    """What torch fills a linear map and its bias with: uniform between ±1/sqrt(fan_in)."""
    return Uniform(1 / math.sqrt(fan_in))


class Linear(nn.Linear):
    """A linear map filled once, by `initialise`, from the distributions given for its weight and its bias.

    `bias` None means no bias. Weight [out_features, in_features], as in `torch.nn.Linear`.
    """

    def __init__(self, in_features: int, out_features: int, weight: Distribution, bias: Distribution | None = None):
        self.initial = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        super().__init__(in_features, out_features, bias=bias is not None)

    def reset_parameters(self) -> None:
        """Fill both parameters; torch calls this at the end of construction."""
        initialise(self)


class Embedding(nn.Embedding):
    """Token vectors [num_embeddings, embedding_dim], filled once with standard deviation 1/sqrt(embedding_dim)."""

    def reset_parameters(self) -> None:
        """Fill the vectors; torch calls this at the end of construction."""
        self.initial = {"weight": Normal(1 / math.sqrt(self.embedding_dim))}
        initialise(self)


def initialise(module: nn.Module, names: set[str] | None = None) -> None:
    """Fill a module's own parameters (not its children's), or those of them in `names`, with their initial values.

    A module that owns parameters holds `initial`: parameter name → distribution. Layer norms start at 1 and 0.
    """
    initial = getattr(module, "initial", {"weight": nn.init.ones_, "bias": nn.init.zeros_})
    for name, parameter in module.named_parameters(recurse=False):
        if names is None or name in names:
            initial[name](parameter)
