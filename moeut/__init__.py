"""moeut: Mixture-of-Experts Universal Transformers (arXiv 2405.16039), from training to explanation.

The public names, each loaded from its home when it is first used, so that `import moeut` costs nothing and no command
loads what it does not need. `import moeut.hf` adds the door to transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeut.experiments.run import train as train
    from moeut.generation.generate import generate as generate
    from moeut.model.attention import DenseAttentionConfig as DenseAttentionConfig
    from moeut.model.attention_experts import AttentionExpertsConfig as AttentionExpertsConfig
    from moeut.model.cost import cost as cost
    from moeut.model.elastic_depth import with_repeats as with_repeats
    from moeut.model.feedforward import MLPConfig as MLPConfig
    from moeut.model.folder import load_model as load_model
    from moeut.model.folder import save_model as save_model
    from moeut.model.halting import ActConfig as ActConfig
    from moeut.model.language_model import LanguageModel as LanguageModel
    from moeut.model.language_model import ModelConfig as ModelConfig
    from moeut.model.sigma_moe import SigmaMoEConfig as SigmaMoEConfig
    from moeut.model.softmax_moe import SoftmaxMoEConfig as SoftmaxMoEConfig
    from moeut.model.stack import MoEUT as MoEUT
    from moeut.model.stack import StackConfig as StackConfig
    from moeut.model.switchhead import SwitchHeadConfig as SwitchHeadConfig
    from moeut.presets import preset as preset

_HOMES = {
    "ActConfig": "moeut.model.halting",
    "AttentionExpertsConfig": "moeut.model.attention_experts",
    "DenseAttentionConfig": "moeut.model.attention",
    "LanguageModel": "moeut.model.language_model",
    "MLPConfig": "moeut.model.feedforward",
    "MoEUT": "moeut.model.stack",
    "ModelConfig": "moeut.model.language_model",
    "SigmaMoEConfig": "moeut.model.sigma_moe",
    "SoftmaxMoEConfig": "moeut.model.softmax_moe",
    "StackConfig": "moeut.model.stack",
    "SwitchHeadConfig": "moeut.model.switchhead",
    "cost": "moeut.model.cost",
    "generate": "moeut.generation.generate",
    "load_model": "moeut.model.folder",
    "preset": "moeut.presets",
    "save_model": "moeut.model.folder",
    "train": "moeut.experiments.run",
    "with_repeats": "moeut.model.elastic_depth",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moeut' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
