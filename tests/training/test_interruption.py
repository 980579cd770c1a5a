"""Is the first signal noted and the second one obeyed?"""

import signal

import pytest

from moeut.training.interruption import interruption, signal_of, sigterm_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted(number):
    former = signal.getsignal(number)
    with interruption() as noted:
        assert noted.received is None
        signal.raise_signal(number)
        assert noted.received == number
    assert signal.getsignal(number) is former


def test_the_second_acts_as_before():
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        second_signal()
    finally:
        signal.signal(signal.SIGINT, former)


def second_signal():
    with pytest.raises(KeyboardInterrupt), interruption() as noted:  # noqa: PT012 (the first must not raise)
        signal.raise_signal(signal.SIGTERM)
        assert noted.received == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)


def test_handlers_come_back_after_an_error():
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interruption():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is former


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sigterm_interrupts_as_ctrl_c_does(number):
    former = signal.getsignal(signal.SIGTERM)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt) as caught, sigterm_interrupts():
            signal.raise_signal(number)
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert signal_of(caught.value) == number
    assert signal.getsignal(signal.SIGTERM) is former
