"""Is each token read once, with all that its window holds before it, and is every piece of the text some token's?"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from examined import tokenizer_of_items
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import build
from test_variants import ACT, ATTENTION_EXPERTS, DENSE, MOEUT, SOFTMAX_MOE
from tokenizers import Tokenizer, models

from moeut.analysis.reading import Reading, pieces, read
from moeut.data.tokenizer import byte_tokenizer
from moeut.model.language_model import LanguageModel, ModelConfig

TEXT = "The fox\n\tjumps over it."
HALTING_SUT = dataclasses.replace(
    MOEUT, num_hidden_layers=4, group_size=1, norm="post", attention=ATTENTION_EXPERTS, feed_forward=SOFTMAX_MOE,
    halting=ACT,
)  # fmt: skip


def over_bytes(config: ModelConfig) -> LanguageModel:
    return build(dataclasses.replace(config, vocab_size=257))


def reference(model: LanguageModel, text: str, context_length: int) -> tuple[list[float], list[list[np.ndarray]]]:
    """The loss of each token, and what each router selected for it at each depth [G, K]: a forward for each of them."""
    ids = torch.tensor([0, *(byte + 1 for byte in text.encode()), 0])
    stride = -(-context_length // 2)
    losses, selected = [], []
    model.eval()
    for place in range(1, len(ids)):  # the token that is predicted; the one before it is the last input
        start = max(0, -(-(place - context_length) // stride)) * stride
        with torch.no_grad():
            output = model(ids[None, start:place], return_routing=True)
        losses.append(-float(output.logits[0, -1].log_softmax(-1)[ids[place]]))
        selected.append(
            [
                np.stack([output.routing[depth][router.name].experts[0, -1].numpy() for depth in depths])
                for _, depths, router in model.stack.routers()
            ]
        )
    return losses[:-1], selected[1:]


@pytest.mark.parametrize("context_length", [25, 24, 8, 7, 1])
@pytest.mark.parametrize("config", [MOEUT, HALTING_SUT], ids=["moeut", "halting sut"])
def test_a_forward_for_each_token_says_the_same(config: ModelConfig, context_length: int):
    model = over_bytes(config)
    reading = read(model, byte_tokenizer(), TEXT, context_length)
    losses, selected = reference(model, TEXT, context_length)
    assert reading.losses == pytest.approx(losses, rel=1e-6)
    for place, router in enumerate(reading.routers):
        np.testing.assert_array_equal(router.experts, np.stack([one[place] for one in selected]))


def test_routers_are_those_of_each_layer_with_the_depths_it_runs_at():
    reading = read(over_bytes(MOEUT), byte_tokenizer(), TEXT, 100)
    depths = {0: (0, 2, 4), 1: (1, 3, 5)}
    assert [(router.layer, router.name, router.depths, router.num_experts) for router in reading.routers] == [
        (layer, name, depths[layer], experts)
        for layer in (0, 1)
        for name, experts in (("attention_value", 3), ("attention_output", 3), ("feed_forward", 5))
    ]
    assert [router.experts.shape[1:] for router in reading.routers[:3]] == [(3, 2, 2), (3, 2, 2), (3, 1, 2)]
    grouped = read(over_bytes(dataclasses.replace(MOEUT, layer_order="aabb")), byte_tokenizer(), TEXT, 100)
    assert {router.depths for router in grouped.routers} == {(0, 1, 2), (3, 4, 5)}
    assert reading.num_layers == 6
    assert reading.expected_layers is None


def test_halted_tokens_choose_nobody():
    reading = read(over_bytes(HALTING_SUT), byte_tokenizer(), TEXT, 100)
    assert reading.expected_layers is not None
    assert reading.expected_layers.min() >= 1
    assert reading.expected_layers.max() <= 4
    nobody = [(router.experts == router.num_experts).all(axis=(2, 3)) for router in reading.routers]
    halted = np.logical_and.reduce(nobody)  # [T, depth]; routers run at all four depths
    assert halted.any()
    assert not halted[:, 0].any()
    assert (halted[:, 1:] >= halted[:, :-1]).all()
    # Once a token has halted, less than 1 − τ = 0.2 of it goes on, for 3 layers at most.
    assert (reading.expected_layers <= (~halted).sum(1) + 0.6).all()


def test_a_dense_model_has_no_routers_but_losses():
    reading = read(over_bytes(DENSE), byte_tokenizer(), TEXT, 100)
    assert reading.routers == ()
    assert reading.losses == pytest.approx(reference(over_bytes(DENSE), TEXT, 100)[0], rel=1e-6)


def test_one_token_one_repeat():
    reading = read(over_bytes(dataclasses.replace(MOEUT, num_hidden_layers=2)), byte_tokenizer(), "a", 8)
    assert (reading.pieces, reading.losses.shape) == (("a",), (1,))
    assert [router.experts.shape for router in reading.routers][:3] == [(1, 1, 2, 2), (1, 1, 2, 2), (1, 1, 1, 2)]


def test_the_first_tokens_of_a_long_text_do_not_know_of_the_rest():
    model = over_bytes(MOEUT)
    cut = read(model, byte_tokenizer(), TEXT, 8, max_tokens=13)
    whole = read(model, byte_tokenizer(), TEXT, 8)
    assert "".join(cut.pieces) == TEXT[:13]
    assert cut.losses == pytest.approx(whole.losses[:13], rel=1e-6)


def test_the_model_is_left_as_it_was():
    model = over_bytes(MOEUT)
    for training in (True, False):
        model.train(training)
        read(model, byte_tokenizer(), "abc", 8)
        assert {module.training for module in model.modules()} == {training}


def test_refusals():
    with pytest.raises(ValueError, match="there is no text to read"):
        read(over_bytes(MOEUT), byte_tokenizer(), "", 8)
    with pytest.raises(ValueError, match="no token for the end of a document"):
        read(over_bytes(MOEUT), Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "a", 8)


def read_pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(pieces(text, tokenizer.encode(text, add_special_tokens=False).offsets))


BYTES, BPE = byte_tokenizer(), tokenizer_of_items()


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_pieces_are_the_text(text: str):
    assert "".join(read_pieces(BYTES, text)) == text
    assert "".join(read_pieces(BPE, text)) == text


def test_a_character_of_several_tokens_is_the_first_ones():
    assert read_pieces(BYTES, "aé€\nb") == ["a", "é", "", "€", "", "", "\n", "b"]


def test_what_a_tokenizer_leaves_out_is_the_next_tokens():
    assert list(pieces("a  b c", [(0, 1), (3, 4), (5, 6)])) == ["a", "  b", " c"]


def test_probabilities_of_a_uniform_model():
    model = over_bytes(MOEUT)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
    reading: Reading = read(model, byte_tokenizer(), TEXT, 8)
    assert reading.losses == pytest.approx(math.log(257), rel=1e-6)
