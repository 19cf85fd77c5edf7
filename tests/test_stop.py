"""alexnet_jax/runtime/stop.py: what signals do while a run goes on, and that they do it no longer after."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from alexnet_jax.runtime import processes
from alexnet_jax.runtime.stop import StopRequest, StopRequested, hold_signals

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


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_held_back_and_the_next_is_not(received, number):
    with hold_signals():
        os.kill(os.getpid(), number)
        assert received == []
        os.kill(os.getpid(), number)
        assert received == [number]
    assert received == [number, number]


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


# Process 1 of two that hangs where no Python handler runs, as in a collective.
HANGING = """
import contextlib, ctypes, signal, sys, time
from alexnet_jax.runtime import processes, stop
class State: process_id, num_processes, client = 1, 2, None
processes._private_jax = lambda: (State, None)
processes.watch_preemption = lambda: signal.signal(signal.SIGTERM, lambda *_: None)
processes.preempted = lambda step: True
processes._STOP_SECONDS = 2, 2
def check(request):
    with contextlib.suppress(stop.StopRequested):
        request.check()
with stop.StopRequest() as request:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # other threads get them
    print("hanging", flush=True)
    PART
print("after")
"""


def ended(block, number):
    command = [sys.executable, "-c", HANGING.replace("PART", block)]
    root, pipe = pathlib.Path(__file__).parent.parent, subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.program
@pytest.mark.parametrize("number", NUMBERS)
def test_one_of_several_processes_that_hangs_ends_after_a_signal(number):
    code, out, err = ended("ctypes.CDLL(None).sleep(60)", number)
    assert code == 1 and out == ""
    assert err.startswith(f"error: {number.name}, and no further step for 2 s: ") and err.count("\n") == 1


@pytest.mark.program
@pytest.mark.parametrize("steps", ["processes.progress()", "check(request)"])
def test_one_of_several_processes_that_makes_steps_or_is_stopping_goes_on_after_a_signal(steps):
    block = f"for _ in range(4):\n        {steps}\n        ctypes.CDLL(None).sleep(1)"
    if steps.startswith("check"):  # what follows it may take long
        block = f"ctypes.CDLL(None).sleep(1)\n    {steps}\n    ctypes.CDLL(None).sleep(4)"
    assert ended(block, signal.SIGTERM) == (0, "after\n", "")
