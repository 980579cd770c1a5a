"""Which steps are applied, what becomes of the scale of a float16 run, and when is it too much?"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeut.training.guard import FIRST_SCALE, GROW_AFTER_STEPS, Guard

values = st.sampled_from([1.0, 0.0, math.nan, math.inf, -math.inf])


@given(st.lists(st.tuples(values, values), max_size=30), st.sampled_from(["float32", "bfloat16", "auto"]))
def test_without_a_scale_only_finite_steps_pass(steps, precision):
    guard = Guard.of(precision)
    in_a_row = 0
    for loss, norm in steps:
        finite = math.isfinite(loss) and math.isfinite(norm)
        in_a_row = 0 if finite else in_a_row + 1
        assert guard.passes(loss, norm) == finite
        assert (guard.failures, guard.scale) == (in_a_row, 1.0)


def test_an_overflow_halves_the_scale_and_is_no_failure():
    guard = Guard.of("float16")
    assert guard.scale == FIRST_SCALE
    for halvings in range(1, 17):
        assert not guard.passes(2.0, math.inf)
        assert (guard.scale, guard.failures) == (FIRST_SCALE / 2**halvings, 0)
    assert guard.scale == 1
    assert not guard.passes(2.0, math.inf)
    assert (guard.scale, guard.failures) == (1, 1)


def test_a_loss_that_is_not_finite_is_not_the_scales_doing():
    guard = Guard.of("float16")
    assert not guard.passes(math.nan, math.nan)
    assert (guard.scale, guard.failures) == (FIRST_SCALE, 1)


def test_the_scale_grows_after_many_good_steps():
    guard = Guard(scaled=True, scale=8.0, good_steps=GROW_AFTER_STEPS - 2)
    assert guard.passes(1.0, 1.0)
    assert guard.scale == 8
    assert guard.passes(1.0, 1.0)
    assert guard.scale == 16
    assert not guard.passes(1.0, math.inf)
    assert (guard.scale, guard.good_steps) == (8, 0)


@pytest.mark.parametrize("failing", [True, False])
def test_a_good_step_forgives(failing: bool):
    guard = Guard(failures=4)
    guard.passes(math.nan if failing else 1.0, 1.0)
    assert guard.failures == (5 if failing else 0)
