"""alexnet_jax/runtime/stop.py: what signals do while a run goes on, and that they do it no longer after."""

import os
import signal

import pytest

from alexnet_jax.runtime import processes
from alexnet_jax.runtime.stop import StopRequest, StopRequested

NUMBERS = signal.SIGTERM, signal.SIGINT


@pytest.fixture
def received():
    """The signals that came to handlers which were there before."""
    received = []
    former = {n: signal.signal(n, lambda number, _: received.append(number)) for n in NUMBERS}
    yield received
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks_and_the_second_is_the_former_handlers(received, number):
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(StopRequested, match=f"^stopped by {number.name}$") as stopped:
            stop.check()
        assert stopped.value.signal == number and received == []
        os.kill(os.getpid(), number)
        assert received == [number]


def test_handlers_are_put_back(received):
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(ValueError), StopRequest():
        raise ValueError
    assert [signal.getsignal(number) for number in NUMBERS] == before
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_several_processes_stop_where_all_do(received, monkeypatch):
    """JAX's notice of preemption decides; SIGINT is passed on as SIGTERM, which JAX listens for."""
    asked, watched = [], []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "watch_preemption", lambda: watched.append(True))
    monkeypatch.setattr(processes, "preempted", lambda check: asked.append(check) or check == 3)
    with StopRequest() as stop:
        assert watched == [True]
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGTERM]
        stop.check()
        stop.check()
        with pytest.raises(StopRequested, match="SIGTERM") as stopped:
            stop.check()
        assert stopped.value.signal == signal.SIGTERM
    assert asked == [1, 2, 3]
