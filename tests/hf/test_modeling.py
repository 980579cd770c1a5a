"""Does our model answer as transformers expects, in its names and outputs, and with our numbers?"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_models import DENSE, MOEUT, SUT, VARIANTS, build, prompts
from torch import Tensor

from moeut.hf import MoEUTForCausalLM, MoEUTModel
from moeut.hf.modeling import CACHE_NAME
from moeut.model.folder import load_model
from moeut.model.language_model import LanguageModel, ModelConfig


def headless(model: Any) -> Any:
    """A `MoEUTModel` with the weights of a model that has a head."""
    other = MoEUTModel(model.config).double().eval()
    weights = {name: tensor for name, tensor in model.state_dict().items() if "lm_head" not in name}
    other.load_state_dict(weights)
    return other


@VARIANTS
def test_numbers_are_the_language_models(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    labels = ids.clone()
    labels[0, :3] = -100
    targets = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)
    theirs, ours = model.train()(ids, labels=labels), model.model(ids, targets)
    assert torch.equal(theirs.logits, ours.logits)
    assert theirs.loss == ours.loss
    assert theirs.aux_loss == ours.regulariser
    assert (theirs.hidden_states, theirs.router_logits) == (None, None)
    assert model.eval()(ids).aux_loss is None


def test_the_last_logits_alone_and_a_plain_tuple() -> None:
    model, ids = build(MOEUT), prompts()
    whole = model(ids, labels=ids)
    last = model(ids, labels=ids, logits_to_keep=3)
    torch.testing.assert_close(last.logits, whole.logits[:, -3:])
    shifted = torch.nn.functional.cross_entropy(whole.logits[:, -3:-1].flatten(0, 1), ids[:, -2:].flatten())
    torch.testing.assert_close(last.loss, shifted)
    assert torch.equal(model(ids, labels=ids, return_dict=False)[1], whole.logits)


@VARIANTS
def test_hidden_states_end_in_what_the_head_reads(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    output = model(ids, output_hidden_states=True)
    streams = model.model(ids, return_hidden_states=True).hidden_states
    assert len(output.hidden_states) == config.num_hidden_layers + 1
    assert all(torch.equal(*both) for both in zip(output.hidden_states[:-1], streams[:-1], strict=True))
    assert torch.equal(model.model.lm_head(output.hidden_states[-1]), output.logits)
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == config.num_hidden_layers + 1


@VARIANTS
def test_the_model_without_a_head_gives_the_hidden_states(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    output = headless(model)(ids, output_hidden_states=True, output_router_logits=True)
    expected = model(ids, output_hidden_states=True, output_router_logits=True)
    assert torch.equal(model.model.lm_head(output.last_hidden_state), expected.logits)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    torch.testing.assert_close(output.router_logits, expected.router_logits, rtol=0, atol=0)
    assert not MoEUTModel.can_generate()


def test_the_model_without_a_head_has_a_cache() -> None:
    model, ids = headless(build(MOEUT)), prompts()
    whole = model(ids)
    begun = model(ids[:, :4])
    rest = model(ids[:, 4:], **{CACHE_NAME: getattr(begun, CACHE_NAME)}).last_hidden_state
    torch.testing.assert_close(rest, whole.last_hidden_state[:, 4:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (MOEUT, {"attention_value": (2, 3), "attention_output": (2, 3), "feed_forward": (1, 6)}),
        (SUT, {"attention": (1, 4), "feed_forward": (1, 5)}),
        (DENSE, {}),
    ],
    ids=["moeut", "sut", "dense"],
)
def test_router_logits_are_what_the_experts_were_chosen_by(config: ModelConfig, shapes: dict) -> None:
    model, ids = build(config), prompts()
    logits = model(ids, output_router_logits=True).router_logits
    routing = model.model(ids, return_routing=True).routing
    assert len(logits) == len(routing) == config.num_hidden_layers
    for by_router, selected in zip(logits, routing, strict=True):
        assert {name: tuple(scores.shape[2:]) for name, scores in by_router.items()} == shapes
        for name, scores in by_router.items():
            experts = selected[name].experts
            halted = experts == scores.shape[-1]
            best = scores.topk(experts.shape[-1]).indices
            assert torch.equal(best.masked_fill(halted, scores.shape[-1]), experts)
    model.config.output_router_logits = True
    torch.testing.assert_close(model(ids).router_logits, logits, rtol=0, atol=0)


def test_router_logits_have_gradients() -> None:
    """So that one can train with a loss of one's own on them."""
    model, ids = build(MOEUT).train(), prompts()
    logits = model(ids, output_router_logits=True).router_logits
    logits[-1]["feed_forward"].square().sum().backward()
    assert model.model.stack.layers[1].feed_forward.router.weight.grad.abs().sum() > 0


def test_attention_weights_are_refused() -> None:
    model = build(MOEUT)
    with pytest.raises(ValueError, match="output_attentions: attention weights are never formed"):
        model(prompts(), output_attentions=True)
    with pytest.raises(ValueError, match="output_attentions"):
        model.generate(prompts(), output_attentions=True, return_dict_in_generate=True, max_new_tokens=1)


def test_tokens_or_vectors_but_not_both() -> None:
    model, ids = build(MOEUT), prompts()
    vectors = model.get_input_embeddings()(ids)
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": vectors}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**wrong)


def test_an_argument_that_nobody_knows_is_an_error() -> None:
    """A forward that took everything would decode without its cache in silence, were that renamed once more."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'cahce'"):
        build(MOEUT)(prompts(), cahce=None)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, ids = build(MOEUT).train(), prompts()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    kept = gradients()
    # The public methods have another name in every other version of transformers.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    assert model.model.stack.gradient_checkpointing
    torch.testing.assert_close(gradients(), kept)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(ids, use_cache=True)
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()
    assert not model.model.stack.gradient_checkpointing


def test_a_new_model_has_our_initial_weights() -> None:
    model = MoEUTForCausalLM(build(replace(MOEUT, vocab_size=2000)).config)
    assert model.model.embedding.weight.std().item() == pytest.approx(16**-0.5, rel=0.05)
    assert model.model.lm_head.weight.abs().max() <= 16**-0.5


def test_wrapping_shares_the_parameters() -> None:
    ours = LanguageModel(MOEUT)
    wrapped = MoEUTForCausalLM.wrap(ours, end_of_document_id=5)
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in ours.parameters()}
    assert wrapped.config.eos_token_id == wrapped.generation_config.pad_token_id == 5
    assert wrapped.training
    assert wrapped.device.type == "cpu"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mean_resizing", [False, True])
def test_the_vocabulary_can_grow_and_shrink(tied: bool, mean_resizing: bool, tmp_path: Any) -> None:
    model, ids = build(replace(MOEUT, tie_word_embeddings=tied)), prompts() % 30
    expected = model(ids).logits.detach()  # a graph that is alive would hold on to the old shapes
    for size in (50, 30):
        model.resize_token_embeddings(size, mean_resizing=mean_resizing)
        assert (model.model.lm_head.weight is model.model.embedding.weight) == tied
        assert (model.config.vocab_size, model.model.config.vocab_size) == (size, size)
        logits = model(ids).logits.detach()
        assert logits.shape[-1] == size
        torch.testing.assert_close(logits[..., :30], expected[..., :30])
        model.save_pretrained(tmp_path / str(size))
        loaded = load_model(tmp_path / str(size))
        assert loaded.config == replace(MOEUT, vocab_size=size, tie_word_embeddings=tied)
        torch.testing.assert_close(loaded(ids).logits, logits, rtol=1e-10, atol=1e-10)
        if size == 50:
            added = model.model.embedding.weight[40:]
            assert 0 < added.std() < 1
            model(ids + 15, labels=ids).loss.backward()


def test_the_vocabulary_can_be_rounded_up() -> None:
    model = headless(build(MOEUT))
    model.resize_token_embeddings(pad_to_multiple_of=16)
    assert (model.config.vocab_size, model.get_input_embeddings().num_embeddings) == (48, 48)
    assert model(prompts()).last_hidden_state.shape == (2, 7, 16)
