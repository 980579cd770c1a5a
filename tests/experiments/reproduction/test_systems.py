"""Is each rival of a MoEUT as large as it, and what its name says?"""

from dataclasses import replace

import pytest
import torch

from moeut.experiments.reproduction.scales import SMALL, TINY
from moeut.experiments.reproduction.systems import (
    AABB,
    DENSE,
    GATED,
    MOEUT,
    SIGMA_MOE,
    SUT,
    SUT_WITHOUT_ACT,
    UNIVERSAL,
    System,
    as_large_as,
    attention_of,
    balanced_over,
    dense_beside,
    experts_of,
    in_groups_of,
    selecting,
    sut_beside,
    universal_beside,
    with_experts_of,
    with_heads,
    with_long_embeddings,
    with_norm,
)
from moeut.model.cost import cost
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.presets import preset

BASES = {**TINY.moeuts, **SMALL.moeuts}
BASE = SMALL.moeuts["4m"]


def parameters(config: ModelConfig) -> int:
    return cost(config).parameters


@pytest.mark.parametrize("size", BASES)
@pytest.mark.parametrize(
    "system",
    [
        AABB,
        DENSE,
        GATED,
        MOEUT,
        SIGMA_MOE,
        SUT,
        UNIVERSAL,
        in_groups_of(1),
        with_heads(4),
        with_norm("pre"),
        with_norm("post"),
    ],
    ids=lambda system: system.variant,
)
def test_rivals_are_as_large(system: System, size: str):
    """Within half of what one more expert, or one more column of an MLP, in each layer adds."""
    moeut, rival = BASES[size], system.beside(BASES[size])
    part = rival.feed_forward
    name = "intermediate_size" if hasattr(part, "intermediate_size") else "num_experts"
    more = replace(rival, feed_forward=replace(part, **{name: getattr(part, name) + 1}))
    assert abs(parameters(rival) - parameters(moeut)) <= (parameters(more) - parameters(rival)) / 2
    assert rival.num_hidden_layers == moeut.num_hidden_layers
    assert rival.vocab_size == moeut.vocab_size


def test_what_is_shared():
    assert {system.beside(BASE).num_repeats for system in (DENSE, SIGMA_MOE)} == {1}
    assert {system.beside(BASE).group_size for system in (UNIVERSAL, SUT, in_groups_of(1))} == {1}
    assert AABB.beside(BASE) == replace(BASE, layer_order="aabb")
    assert SUT_WITHOUT_ACT.beside(BASE) == replace(sut_beside(BASE), halting=None)


def test_attention_experts_are_shared_out_as_in_the_paper():
    """Table of the ablation of group sizes at 244M: 20, 10, 6, 3, 2 and 1 attention experts."""
    moeut = preset("moeut-244m")
    there = {size: attention_of(in_groups_of(size).beside(moeut)) for size in (1, 2, 3, 6, 9, 18)}
    assert [attention.num_experts for attention in there.values()] == [20, 10, 6, 3, 2, 1]
    assert there[18].num_experts_per_tok == 1


@pytest.mark.parametrize("group_size", [1, 3, 6, 9])
def test_the_papers_models_would_be_found_again(group_size: int):
    """779, 260, 128 and 84 feed-forward experts; the nearest that `match` finds is at most one away."""
    papers = preset(f"moeut-g{group_size}-244m")
    found = in_groups_of(group_size).beside(preset("moeut-244m"))
    assert abs(experts_of(found).num_experts - experts_of(papers).num_experts) <= 1
    assert replace(found, feed_forward=papers.feed_forward) == papers


def test_the_dense_rivals_fill_their_width_with_heads():
    dense, universal = dense_beside(BASE), universal_beside(BASE)
    assert dense.hidden_size == BASE.hidden_size
    for rival in (dense, universal):
        assert rival.attention.num_attention_heads * rival.attention.head_dim == rival.hidden_size
        assert rival.attention.head_dim == BASE.attention.head_dim
    assert universal.hidden_size > dense.hidden_size


def test_sut_selects_as_many_weights():
    part = sut_beside(BASE).feed_forward
    assert part.kind == "softmax_moe"
    ours = experts_of(BASE)
    assert 2 * part.moe_intermediate_size == ours.num_experts_per_tok * ours.moe_intermediate_size


def test_ablations_change_one_thing():
    fewer = selecting(3).beside(BASE)
    assert replace(fewer, feed_forward=BASE.feed_forward) == BASE
    assert experts_of(fewer).num_experts_per_tok == 3
    large = experts_of(with_experts_of(192).beside(BASE))
    assert (large.moe_intermediate_size, large.num_experts_per_tok) == (192, 2)
    heads = attention_of(with_heads(5).beside(BASE))
    assert (heads.num_attention_heads, heads.num_experts, heads.num_experts_per_tok) == (5, 2, 2)
    assert attention_of(with_heads(24).beside(BASE)).num_experts_per_tok == 1
    batch = balanced_over("batch").beside(BASE)
    assert attention_of(batch).balance_scope == experts_of(batch).balance_scope == "batch"
    assert balanced_over("sequence").beside(BASE) == BASE


def test_nothing_is_called_equal_that_is_not():
    with pytest.raises(ValueError, match="nothing is near"):
        as_large_as(replace(BASE, vocab_size=10), dense_beside(preset("moeut-44m")))


def losses_and_gradients(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one draw of initial weights, on one draw of tokens."""
    torch.manual_seed(0)
    # Without the term that keeps norms finite, which is not small beside the variance of short embeddings.
    model = LanguageModel(replace(config, layer_norm_eps=1e-12))
    tokens = torch.randint(config.vocab_size, (2, 17))
    output = model(tokens[:, :-1], targets=tokens[:, 1:])
    gradients = torch.autograd.grad(output.loss, list(model.parameters()))
    return output.loss, torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize(("norm", "matters"), [("peri", False), ("pre", True)])
def test_how_long_embeddings_are_makes_no_difference_to_peri_layernorm(norm: str, matters: bool):
    """The loss is the same function of the parameters: so is every gradient, and all of the training."""
    config = replace(TINY.moeuts["200k"], norm=norm)
    (loss, gradient), (other, other_gradient) = map(losses_and_gradients, (config, with_long_embeddings(config)))
    same = torch.allclose(loss, other, rtol=1e-5) and torch.allclose(gradient, other_gradient, rtol=1e-2, atol=1e-5)
    assert same is not matters


def test_rivals_with_pre_layernorm_get_long_embeddings():
    for system in (DENSE, UNIVERSAL, with_norm("pre")):
        rival = system.beside(BASE)
        assert rival.embedding_scale == rival.hidden_size**0.5
