"""Who may look at whom, and what does each token count?"""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from moeut.model.surroundings import Tokens, token_weights, visibility


@given(data=st.data(), causal=st.booleans(), padded=st.booleans(), new=st.integers(1, 5), past=st.integers(0, 4))
@settings(deadline=None)
def test_visibility_equals_its_description(data: st.DataObject, causal: bool, padded: bool, new: int, past: int):
    """Query i of the new tokens stands at key past + i. None and "plain triangle" mean what torch makes of them."""
    total = past + new
    real = torch.tensor([data.draw(st.lists(st.booleans(), min_size=total, max_size=total)) for _ in range(2)])
    mask, is_causal = visibility(real if padded else None, new, total, causal=causal, device=torch.device("cpu"))
    if mask is None:
        allowed = torch.ones(2, new, total, dtype=torch.bool)
        allowed = allowed.tril() if is_causal else allowed
        assert not is_causal or new == total
    else:
        assert not is_causal
        allowed = mask.expand(2, 1, new, total)[:, 0]
    for b, i in itertools.product(range(2), range(new)):
        wanted = [(not causal or s <= past + i) and (not padded or bool(real[b, s])) for s in range(total)]
        assert allowed[b, i].tolist() == (wanted if any(wanted) else [True] * total)


def test_a_token_counts_where_it_is_real_and_as_much_as_goes_on():
    real, survival = torch.tensor([[True, True, False]]), torch.tensor([[0.5, 0.0, 0.25]])
    assert token_weights(Tokens()) is None
    assert token_weights(Tokens(real)) is real
    assert token_weights(Tokens(None, survival)) is survival
    assert_close(token_weights(Tokens(real, survival)), torch.tensor([[0.5, 0.0, 0.0]]))
