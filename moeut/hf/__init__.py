"""The door to transformers: importing this makes a `moeut` folder something that `AutoModelForCausalLM` can load."""

from transformers import AutoConfig, AutoModelForCausalLM

from moeut.hf.configuration import MoEUTConfig
from moeut.hf.modeling import MoEUTForCausalLM

__all__ = ["MoEUTConfig", "MoEUTForCausalLM"]

AutoConfig.register(MoEUTConfig.model_type, MoEUTConfig, exist_ok=True)
AutoModelForCausalLM.register(MoEUTConfig, MoEUTForCausalLM, exist_ok=True)
