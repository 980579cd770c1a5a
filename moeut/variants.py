"""Which systems are compared? Each a choice of parts, as a function of its dimensions (paper, section 3).

Sizes of them have names in `moeut.presets`; the table of variants is in docs/variants.md.
"""

from dataclasses import replace

from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.halting import ActConfig
from moeut.model.language_model import ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

PAPER_VOCABULARY = 8000


def moeut(
    *, hidden_size: int, num_hidden_layers: int, group_size: int, num_attention_heads: int, head_dim: int,
    attention_experts: int, experts: int, experts_per_tok: int, expert_size: int = 128,
    attention_experts_per_tok: int = 2, vocab_size: int = PAPER_VOCABULARY,
) -> ModelConfig:  # fmt: skip
    """A MoEUT as in the paper: SwitchHead (there 2 experts selected), σ-MoE, peri-layernorm, a repeated group."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        group_size=group_size,
        attention=SwitchHeadConfig(
            num_attention_heads=num_attention_heads,
            head_dim=head_dim,
            num_experts=attention_experts,
            num_experts_per_tok=attention_experts_per_tok,
        ),
        feed_forward=SigmaMoEConfig(
            num_experts=experts, num_experts_per_tok=experts_per_tok, moe_intermediate_size=expert_size
        ),
    )


def dense(
    *, hidden_size: int, num_hidden_layers: int, num_attention_heads: int, head_dim: int, intermediate_size: int,
    vocab_size: int = PAPER_VOCABULARY,
) -> ModelConfig:  # fmt: skip
    """The paper's dense Transformer: pre-layernorm, rotary positions, nothing shared."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        group_size=num_hidden_layers,
        norm="pre",
        attention=DenseAttentionConfig(num_attention_heads=num_attention_heads, head_dim=head_dim),
        feed_forward=MLPConfig(intermediate_size=intermediate_size),
    )


def universal(
    *, hidden_size: int, num_hidden_layers: int, num_attention_heads: int, head_dim: int, intermediate_size: int,
    vocab_size: int = PAPER_VOCABULARY,
) -> ModelConfig:  # fmt: skip
    """A Universal Transformer: one dense layer, run again and again; pre-layernorm."""
    transformer = dense(
        hidden_size=hidden_size, num_hidden_layers=num_hidden_layers, num_attention_heads=num_attention_heads,
        head_dim=head_dim, intermediate_size=intermediate_size, vocab_size=vocab_size,
    )  # fmt: skip
    return replace(transformer, group_size=1)


def with_act(model: ModelConfig, *, intermediate_size: int) -> ModelConfig:
    """A Universal Transformer whose tokens halt, with post-layernorm; narrower by what the halting gate needs."""
    return replace(model, norm="post", halting=ActConfig(), feed_forward=MLPConfig(intermediate_size=intermediate_size))


def sut(
    *, hidden_size: int, num_hidden_layers: int, num_attention_heads: int, head_dim: int, attention_experts: int,
    experts: int, expert_size: int, experts_per_tok: int = 2, sample_topk: int = 0,
    mutual_information_loss_coef: float = 0.001, vocab_size: int = PAPER_VOCABULARY,
) -> ModelConfig:  # fmt: skip
    """A Sparse Universal Transformer: attention experts (2 selected), softmax MoE, post-layernorm, ACT."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        group_size=1,
        norm="post",
        attention=AttentionExpertsConfig(
            num_attention_heads=num_attention_heads, head_dim=head_dim, num_experts=attention_experts,
            sample_topk=sample_topk, mutual_information_loss_coef=mutual_information_loss_coef,
        ),
        feed_forward=SoftmaxMoEConfig(
            num_experts=experts, num_experts_per_tok=experts_per_tok, moe_intermediate_size=expert_size,
            mutual_information_loss_coef=mutual_information_loss_coef,
        ),
        halting=ActConfig(),
    )  # fmt: skip


def gated(model: ModelConfig, *, experts: int) -> ModelConfig:
    """A MoEUT with one attention expert a head, as the official release has it: dense heads, each with a gate."""
    attention = DenseAttentionConfig(
        num_attention_heads=model.attention.num_attention_heads, head_dim=model.attention.head_dim, output_gate=True
    )
    return replace(model, attention=attention, feed_forward=replace(model.feed_forward, num_experts=experts))


def grouped(model: ModelConfig, *, group_size: int, attention_experts: int, experts: int) -> ModelConfig:
    """A MoEUT with another number of layers in its group, and experts that make up for it."""
    return replace(
        model,
        group_size=group_size,
        attention=replace(
            model.attention, num_experts=attention_experts, num_experts_per_tok=min(2, attention_experts)
        ),
        feed_forward=replace(model.feed_forward, num_experts=experts),
    )


def sigma_moe(model: ModelConfig, *, experts: int) -> ModelConfig:
    """The σ-MoE beside a MoEUT: nothing shared, one attention expert a head, which keeps its two gates."""
    return grouped(model, group_size=model.num_hidden_layers, attention_experts=1, experts=experts)


def sigma_moe_plain(model: ModelConfig, transformer: ModelConfig, *, experts: int) -> ModelConfig:
    """The σ-MoE beside a MoEUT with the attention of a dense Transformer."""
    return replace(sigma_moe(model, experts=experts), attention=transformer.attention)


def switchhead(model: ModelConfig, *, attention_experts: int, intermediate_size: int) -> ModelConfig:
    """SwitchHead without σ-MoE beside a MoEUT: its heads, a dense MLP, pre-layernorm, nothing shared."""
    return replace(
        model,
        group_size=model.num_hidden_layers,
        norm="pre",
        attention=replace(model.attention, num_experts=attention_experts),
        feed_forward=MLPConfig(intermediate_size=intermediate_size),
    )
