"""Which of our configurations does a case of official numbers describe?

A case's `semantic` entry says in plain terms what the official code computed, its `config` what the clean release was
given; every combination of what they can say is mapped, part by part.
"""

from typing import Any

from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.halting import ActConfig
from moeut.model.language_model import ModelConfig
from moeut.model.layer import AttentionConfig, FeedForwardConfig
from moeut.model.routing import GateName
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.switchhead import SwitchHeadConfig


def balance(semantic: dict[str, Any], part: str) -> dict[str, Any]:
    """Coefficient and scope of a σ-MoE router's balance term."""
    described = semantic["regulariser"] or {}
    scope = {"layers_time": "sequence", "global": "batch", "time": "application"}[described.get("mode", "layers_time")]
    coefficient = described.get(part) or 0.0
    if part == "ffn" and scope == "application":
        # The official code adds up a feed-forward layer's terms over its repeats; we average, as it does in attention.
        coefficient *= len(semantic["layer_order"]) / (max(semantic["layer_order"]) + 1)
    return {"router_aux_loss_coef": coefficient, "balance_scope": scope}


def gate(selection: str, of_softmax: GateName) -> GateName:
    """The training code has two names for softmax gates."""
    gates: dict[str, GateName] = {"sigmoid": "sigmoid", "softmax": of_softmax, "gate": of_softmax}
    return gates[selection]


def softmax_losses(semantic: dict[str, Any]) -> dict[str, Any]:
    described = semantic["regulariser"] or {}
    return {
        "mutual_information_loss_coef": described.get("mutual_information") or 0.0,
        "variation_loss_coef": described.get("cv") or 0.0,
        "switch_loss_coef": described.get("switch") or 0.0,
        "z_loss_coef": described.get("z") or 0.0,
        "loss_form": "official",
    }


def feed_forward_config(semantic: dict[str, Any], official: dict[str, Any]) -> FeedForwardConfig:
    match semantic["ffn"]:
        case "dense relu with biases":
            return MLPConfig(intermediate_size=semantic["ffn_size"])
        case "sut_moe":
            return SoftmaxMoEConfig(
                num_experts=semantic["ffn_n_experts"],
                num_experts_per_tok=semantic["ffn_k"],
                moe_intermediate_size=semantic["ffn_expert_size"],
                **softmax_losses(semantic),
            )
        case "sigma_moe":
            selection = semantic.get("ffn_selection") or semantic["selection"]
            biases = bool(semantic.get("ffn_expert_bias"))
            return SigmaMoEConfig(
                num_experts=semantic.get("ffn_n_experts") or official["ff_n_experts"],
                num_experts_per_tok=semantic.get("ffn_k") or official["ff_k"],
                moe_intermediate_size=semantic.get("ffn_expert_size") or official.get("ff_expert_size", 128),
                gate=gate(selection, "softmax"),
                expert_bias=biases,
                output_bias=biases,
                router_bias=bool(semantic.get("ffn_selection_bias")),
                **balance(semantic, "ffn"),
            )
        case other:
            raise ValueError(f"unknown feed-forward: {other}")


def attention_config(semantic: dict[str, Any], official: dict[str, Any]) -> AttentionConfig:
    if semantic["attention"] == "sut_moa":
        return AttentionExpertsConfig(
            num_attention_heads=semantic["att_heads_per_expert"],
            head_dim=semantic["d_head"],
            num_experts=semantic["att_n_experts"],
            num_experts_per_tok=semantic["att_k"],
            max_relative_positions=semantic["max_relative_positions"],
            sample_topk=semantic.get("sample_topk") or 0,
            **softmax_losses(semantic),
        )
    heads_and_rotation: dict[str, Any] = {
        "num_attention_heads": semantic["n_heads"],
        "head_dim": semantic["d_head"],
        "rope_theta": semantic["rope_base"],
        # Half a channel more, so that rounding down gives just this many.
        "partial_rotary_factor": min(1.0, (semantic["n_rotate"] + 0.5) / semantic["d_head"]),
    }
    match semantic["attention"]:
        case "dense_rope":
            return DenseAttentionConfig(**heads_and_rotation)
        case "dense_with_output_gate":
            return DenseAttentionConfig(output_gate=True, **heads_and_rotation)
        case "switchhead":
            return SwitchHeadConfig(
                num_experts=semantic.get("att_n_experts") or official["att_n_experts"],
                num_experts_per_tok=semantic.get("att_k") or official.get("att_k", 2),
                gate=gate(semantic.get("att_selection") or semantic["selection"], "softmax_of_selected"),
                **balance(semantic, "attention"),
                **heads_and_rotation,
            )
        case other:
            raise ValueError(f"unknown attention: {other}")


def halting_config(semantic: dict[str, Any]) -> ActConfig | None:
    if not semantic.get("act"):
        return None
    return ActConfig(
        threshold=semantic["halting_threshold"],
        act_loss_coef=(semantic["regulariser"] or {}).get("act") or 0.0,
        loss_form="official",
    )


def model_config(entry: dict[str, Any], vocab_size: int) -> ModelConfig:
    semantic, official = entry["semantic"], entry.get("config") or {}
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=semantic["d_model"],
        num_hidden_layers=semantic["n_layers"],
        group_size=semantic["group_size"] or semantic["n_layers"],
        layer_order="aabb" if semantic["sharing"] == "aabb" else "abab",
        norm=semantic["norm"],
        attention=attention_config(semantic, official),
        feed_forward=feed_forward_config(semantic, official),
        halting=halting_config(semantic),
        embedding_scale=float(semantic["embedding_scale"]),
        embedding_norm=semantic["input_norm"] is not None,
        final_norm=semantic["output_norm"] is not None,
    )
    assert config.schedule == semantic["layer_order"]
    return config
