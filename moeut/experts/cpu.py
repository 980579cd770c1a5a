"""Stub, being written: the CPU path."""

from moeut.experts.reference import expert_linear as expert_linear
from moeut.experts.reference import expert_mlp as expert_mlp
