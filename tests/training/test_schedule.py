"""Does each schedule give the values one computes by hand?"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moeut.training.schedule import ConstantSchedule, CosineSchedule, LinearSchedule, PaperSchedule

SCHEDULES = [CosineSchedule, LinearSchedule, ConstantSchedule, PaperSchedule]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up(kind):
    schedule = kind(warmup_steps=4)
    assert [schedule.factor(step, 20) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert kind().factor(0, 20) == 1.0


@pytest.mark.parametrize("kind", SCHEDULES)
def test_nothing_but_warm_up(kind):
    assert kind(warmup_steps=4).factor(3, 4) == 1.0


def test_cosine():
    schedule = CosineSchedule(warmup_steps=2, final_share=0.2)
    # 8 steps after the warm-up; after 4 the cosine is at its middle, (1 + 0.2) / 2.
    assert schedule.factor(6, 10) == pytest.approx(0.6)
    assert schedule.factor(4, 10) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert schedule.factor(9, 10) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 7 / 8)))


def test_linear():
    schedule = LinearSchedule(warmup_steps=2, final_share=0.2)
    assert [schedule.factor(step, 10) for step in (2, 6, 9)] == pytest.approx([1.0, 0.6, 0.3])
    assert LinearSchedule().factor(9, 10) == pytest.approx(0.1)


def test_constant_with_cooldown():
    schedule = ConstantSchedule(warmup_steps=1, cooldown_steps=4)
    assert [schedule.factor(step, 10) for step in range(10)] == [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert ConstantSchedule().factor(9, 10) == 1.0


def test_paper():
    """Learning rate 2.5e-4, 4,000 warm-up steps of 100,000: it ends at 2.589e-5 (facts of the official runs)."""
    schedule = PaperSchedule(warmup_steps=4000)
    assert 2.5e-4 * schedule.factor(0, 100_000) == pytest.approx(2.5e-4 / 4000)
    assert 2.5e-4 * schedule.factor(54_000, 100_000) == pytest.approx(2.5e-4 * 0.55)
    assert 2.5e-4 * schedule.factor(99_999, 100_000) == pytest.approx(2.589e-5, rel=1e-4)


@given(st.sampled_from(SCHEDULES), st.integers(1, 60), st.data())
def test_always_a_share_of_the_height(kind, num_steps, data):
    schedule = kind(warmup_steps=data.draw(st.integers(0, num_steps)))
    assert 0 < schedule.factor(data.draw(st.integers(0, num_steps - 1)), num_steps) <= 1


@pytest.mark.parametrize("bad", [{"final_share": 1.5}, {"warmup_steps": -1}, {"kind": "linear"}, {"warmup": 3}])
def test_impossible_values(bad):
    with pytest.raises(ValidationError):
        CosineSchedule(**bad)
