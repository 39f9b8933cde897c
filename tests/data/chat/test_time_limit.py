"""Other people's code is interrupted when its time is up, and nothing else is."""

import threading
import time

import pytest

from sft_jax.data.chat import time_limit
from sft_jax.data.chat.time_limit import Overdue, TimeLimit


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_what_takes_too_long_is_interrupted_in_the_thread_that_is_late_alone():
    late, done = [], []

    def work(limit: float) -> None:
        try:
            with TimeLimit(limit):
                busy(0.6)
            done.append(limit)
        except Overdue:
            late.append(limit)
            busy(0.3)

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (0.05, 10.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert late == [0.05] and done == [10.0]


def test_an_exception_that_is_on_its_way_comes_within_the_limit():
    """The watcher has decided, the work ends, and only then the exception arrives."""
    me = threading.get_ident()
    with pytest.raises(Overdue), TimeLimit(100):
        assert time_limit._ends.pop(me)
        arrival = threading.Timer(0.2, time_limit._interrupt, [me])
        arrival.start()
    arrival.join()
    busy(0.05)
    assert me not in time_limit._ends


def test_an_error_of_the_work_comes_through():
    with pytest.raises(KeyError), TimeLimit(10):
        raise KeyError("theirs")
    with TimeLimit(10):
        pass
