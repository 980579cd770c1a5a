"""The door to transformers: importing this makes a `moeut` folder something that its Auto classes can load."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from moeut.hf.configuration import MoEUTConfig
from moeut.hf.modeling import MoEUTForCausalLM, MoEUTModel

__all__ = ["MoEUTConfig", "MoEUTForCausalLM", "MoEUTModel"]

AutoConfig.register(MoEUTConfig.model_type, MoEUTConfig, exist_ok=True)
AutoModel.register(MoEUTConfig, MoEUTModel, exist_ok=True)
AutoModelForCausalLM.register(MoEUTConfig, MoEUTForCausalLM, exist_ok=True)
