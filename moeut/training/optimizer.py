"""What changes the weights? AdamW, with a weight decay that depends on a parameter's role.

| role      | what it is                                                       | decays with `matrices` |
| --------- | ---------------------------------------------------------------- | ---------------------- |
| embedding | token vectors, also where the head uses them; relative positions | no                     |
| bias      | every bias                                                       | no                     |
| norm      | weights of layer norms                                           | no                     |
| router    | selection and gate matrices                                      | no                     |
| expert    | stacks of expert matrices                                        | yes                    |
| matrix    | dense projections, the head                                      | yes                    |
"""

from fnmatch import fnmatchcase
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from moeut.settings import STRICT, NonNegativeFloat, PositiveFloat, Probability

Role = Literal["embedding", "bias", "norm", "router", "expert", "matrix"]

ROLES: tuple[tuple[str, Role], ...] = (
    ("*embedding.weight", "embedding"),
    ("*.bias", "bias"),
    ("*norm.weight", "norm"),
    ("*router.weight", "router"),
    ("*gate_proj.weight", "router"),
    ("*_experts", "expert"),
    ("*_proj.weight", "matrix"),
    ("*lm_head.weight", "matrix"),
)
"""Which names have which role; the first that fits counts. The number of dimensions says nothing of a role."""

DECAYING_ROLES: dict[Literal["matrices", "all"], tuple[Role, ...]] = {
    "matrices": ("expert", "matrix"),
    "all": ("embedding", "bias", "norm", "router", "expert", "matrix"),
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """AdamW and the clipping of gradients.

    learning_rate: at the height of the schedule. decay: which roles `weight_decay` applies to; `all` as in the paper's
    runs (with weight_decay 0.01 and adam_beta2 0.999). max_grad_norm: length that the gradient of all parameters
    together is cut to; None leaves it as it is.
    """

    learning_rate: PositiveFloat = 1e-3
    adam_beta1: Probability = 0.9
    adam_beta2: Probability = 0.95
    adam_epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    decay: Literal["matrices", "all"] = "matrices"
    max_grad_norm: PositiveFloat | None = 1.0


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW in its fused form over all of a model's parameters: one group that decays, one that does not."""
    decaying = DECAYING_ROLES[config.decay]
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter_role(name) in decaying].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def parameter_role(name: str) -> Role:
    """The role of a parameter by its qualified name. Raises ValueError for a name that no row of the table fits."""
    for pattern, role in ROLES:
        if fnmatchcase(name, pattern):
            return role
    raise ValueError(f"{name}: no role is known for this parameter; add one to moeut.training.optimizer.ROLES")
