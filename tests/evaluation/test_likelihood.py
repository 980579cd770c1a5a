"""Are log probabilities those of the plain definition, whatever is asked with them, and is nothing asked twice?"""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from examined import Fake, oracle, subject, tiny_model, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.evaluation.likelihood import Answer, Examiner, Question

TOKENS = st.lists(st.integers(0, 256), min_size=1, max_size=30).map(tuple)
QUESTIONS = st.lists(st.builds(Question, TOKENS, TOKENS), min_size=1, max_size=12)


def plain(model: torch.nn.Module, question: Question) -> Answer:
    """One question alone, one token after the other."""
    ids, scores, greedy = [*question.context], [], []
    for token in question.continuation:
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        scores.append(float(log_probs[token]))
        greedy.append(int(log_probs.argmax()))
        ids.append(token)
    return Answer(np.array(scores), np.array(greedy), False)


def assert_same(answers: Sequence[Answer], expected: Sequence[Answer], tolerance: float) -> None:
    for answer, right in zip(answers, expected, strict=True):
        assert answer.log_probs == pytest.approx(right.log_probs, abs=tolerance)
        assert answer.greedy.tolist() == right.greedy.tolist()
        assert answer.truncated == right.truncated


@settings(deadline=None, max_examples=5)
@given(questions=QUESTIONS, batch_size=st.integers(1, 3))
def test_many_together_are_each_alone(questions: list[Question], batch_size: int):
    model = tiny_model(257).double()
    answers = Examiner(subject(model), batch_size).ask(questions)
    assert_same(answers, [plain(model, question) for question in questions], 1e-9)


def test_sums_and_means():
    [answer] = Examiner(subject(uniform(100))).ask([Question((1,), (2, 3, 4))])
    assert answer.log_likelihood == pytest.approx(-3 * np.log(100))
    assert answer.mean_log_prob == pytest.approx(-np.log(100))


def test_what_is_known_is_not_asked_again():
    model = uniform()
    calls = []
    examiner = Examiner(subject(model), progress=lambda *call: calls.append(call))
    first, again = Question((1,), (2, 3)), Question((1,), (2, 3))
    assert len(examiner.ask([first, again, first])) == 3
    assert (model.calls, calls) == (1, [("tasks", 1, 1)])
    assert len(examiner.ask([first, Question((1, 2), (3,))], "piqa")) == 2
    assert (model.calls, calls[1:]) == (2, [("piqa", 1, 1)])


def test_batches_hold_so_many_tokens():
    """The longest question first; 4 · 256 tokens are 2 rows of 512, and more of shorter ones."""
    shapes = []

    class Watched(Fake):
        def forward(self, ids: torch.Tensor) -> SimpleNamespace:
            shapes.append(tuple(ids.shape))
            return super().forward(ids)

    long = [Question((0,) * 500, (n,) * 13) for n in range(3)]
    short = [Question((n, 1, 0, 2), (n, 1, 2, 0, 1)) for n in range(12)]
    Examiner(subject(Watched(lambda _: torch.zeros(20))), 4).ask([*short, *long])
    assert shapes == [(2, 512), (2, 512), (11, 8)]


def test_the_beginning_of_what_is_too_long_is_left_out():
    """A model that reads 4 tokens scores at most 4, each with what is left of its context."""
    model = tiny_model(257).double()
    fits, longer, ending = Question((1, 2), (3, 4, 5)), Question((9, 1, 2), (3, 4, 5)), Question((1,), (2, 3, 4, 5, 6))
    answers = Examiner(subject(model, max_length=4)).ask([fits, longer, ending])
    assert [answer.truncated for answer in answers] == [False, True, True]
    expected = [plain(model, fits), plain(model, fits), plain(model, Question((2,), (3, 4, 5, 6)))]
    for answer, right in zip(answers, expected, strict=True):
        assert answer.log_probs == pytest.approx(right.log_probs, abs=1e-9)


def test_nothing_to_say():
    [nothing, something] = Examiner(subject(uniform())).ask([Question((1,), ()), Question((1,), (2,))])
    assert (nothing.log_likelihood, nothing.mean_log_prob, len(nothing.greedy)) == (0, -np.inf, 0)
    assert len(something.log_probs) == 1


def test_certainty():
    [right, wrong] = Examiner(subject(oracle([(5, 6, 7)]))).ask([Question((5,), (6, 7)), Question((5,), (7,))])
    assert (right.log_likelihood, right.greedy.tolist()) == (0, [6, 7])
    assert (wrong.log_likelihood, wrong.greedy.tolist()) == (-np.inf, [6])


def test_what_is_no_number_is_not_scored():
    broken = Fake(lambda prefix: torch.full((3,), torch.nan))
    with pytest.raises(ValueError, match=r"^it: its logits are not numbers"):
        Examiner(subject(broken)).ask([Question((0,), (1,))])
