"""How does the paper count computation? Its authors' formula, which leaves out and takes together what ours does not.

The figures of the appendix on computation are made with it. Letters: d hidden size, H heads, P head size, A attention
experts a head, E feed-forward experts, K of them selected, S expert size, F intermediate size, T context length.
"""

from moeut.model.attention import DenseAttentionConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig


def paper_macs(config: ModelConfig, context_length: int = 1024) -> int:
    """Multiply-accumulates of a forward pass over one sequence of T = `context_length` tokens, as the authors count.

    A layer takes, with dense and with SwitchHead attention, with an MLP and with σ-MoE,

        2·H·P·T² + 4·d·H·P·T                    or   2·H·P·T² + (2·K + 2)·d·H·P·T + 2·H·K·P·T + 2·A·d·T
        + 2·d·F·T                               or   + 2·d·S·K·T + d·E·T

    and the embedding and the head nothing. They count one head's routers for all heads', a weighted sum of outputs as
    if it had P channels instead of d, and none in σ-MoE; `moeut.model.cost.cost` counts all of it. What they call a
    training's computation is this times sequences, without a backward pass.

    Raises ValueError for other parts, of which the formula says nothing.
    """
    d, tokens, attention, feed_forward = config.hidden_size, context_length, config.attention, config.feed_forward
    width = attention.num_attention_heads * attention.head_dim
    match attention:
        case DenseAttentionConfig(output_gate=False):
            layer = 4 * d * width
        case SwitchHeadConfig(num_experts=experts, num_experts_per_tok=selected):
            layer = (2 * selected + 2) * d * width + 2 * selected * width + 2 * experts * d
        case _:
            raise ValueError("attention: the paper's formula knows dense heads without a gate, and switchhead")
    match feed_forward:
        case MLPConfig():
            layer += 2 * d * feed_forward.intermediate_size
        case SigmaMoEConfig():
            selected = feed_forward.num_experts_per_tok * feed_forward.moe_intermediate_size
            layer += 2 * d * selected + d * feed_forward.num_experts
        case _:
            raise ValueError("feed_forward: the paper's formula knows mlp and sigma_moe")
    return config.num_hidden_layers * (2 * width * tokens + layer) * tokens
