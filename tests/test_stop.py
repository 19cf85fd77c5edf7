"""alexnet_jax/runtime/stop.py: what signals do while a run goes on, and that they do it no longer after."""

import os
import signal

import pytest

from alexnet_jax.runtime import processes
from alexnet_jax.runtime.stop import StopRequest

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
    with StopRequest(0) as stop:
        assert not stop.after(1)
        os.kill(os.getpid(), number)
        assert stop.after(2) and stop.signal == number and stop.name == number.name
        assert received == []
        os.kill(os.getpid(), number)
        assert received == [number]


def test_handlers_are_put_back(received):
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(ValueError), StopRequest(0):
        raise ValueError
    assert [signal.getsignal(number) for number in NUMBERS] == before
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_several_processes_stop_where_all_do(received, monkeypatch):
    """JAX's notice of preemption decides; SIGINT is passed on as SIGTERM, which JAX listens for."""
    asked, watched = [], []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "watch_preemption", watched.append)
    monkeypatch.setattr(processes, "preempted", lambda step: asked.append(step) or step == 9)
    with StopRequest(6) as stop:
        assert watched == [6]
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGTERM]
        assert not stop.after(7) and not stop.after(8)
        assert stop.after(9) and stop.name == "SIGTERM" and stop.signal == signal.SIGTERM
    assert asked == [7, 8, 9]
