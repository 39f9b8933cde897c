"""The signals that stop a run after its step."""

import signal

import pytest

from sft_jax.train.preemption import watch_for_preemption


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noticed_and_the_second_ctrl_c_interrupts(first):
    before, noticed = signal.getsignal(signal.SIGINT), []
    with watch_for_preemption(lambda: noticed.append(True)) as preempted:
        assert not preempted()
        signal.raise_signal(first)
        assert preempted() and preempted() and noticed == [True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_background_job_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with watch_for_preemption() as preempted:
            signal.raise_signal(signal.SIGINT)
            assert not preempted()
    finally:
        signal.signal(signal.SIGINT, before)
