"""Does the first signal let a step end, and the second one the program?"""

import signal

import pytest

from moeut.training import interruption as module
from moeut.training.interruption import SAME_SECONDS, interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted(number: signal.Signals):
    former = signal.getsignal(number)
    with interruption() as noted:
        assert noted.received is None
        signal.raise_signal(number)
        assert noted.received == number
    assert signal.getsignal(number) is former


def test_the_second_acts_as_before(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with pytest.raises(KeyboardInterrupt), interruption() as noted:  # noqa: PT012 (the first must not raise)
        signal.raise_signal(signal.SIGTERM)
        # What torchrun passes on at once is no second one.
        now += SAME_SECONDS / 2
        signal.raise_signal(signal.SIGINT)
        assert noted.received == signal.SIGTERM
        now += SAME_SECONDS
        signal.raise_signal(signal.SIGINT)


def test_handlers_come_back_after_an_error():
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interruption():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is former
