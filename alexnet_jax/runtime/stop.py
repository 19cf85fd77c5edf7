"""Stop a run on SIGTERM, SIGINT or a cluster's notice of preemption."""

import contextlib
import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Iterator

from alexnet_jax.runtime import processes

log = logging.getLogger("alexnet_jax")


class StopRequested(Exception):
    """A stop was requested, at a point where nothing is lost; `signal` is the signal's number."""

    def __init__(self, number: int):
        """Take the signal's number."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Hold SIGTERM or SIGINT back until the block ends; a second one is not held back.

    A library that catches all exceptions would mistake the handler's exception for a failure of its own.
    """
    held, former = list[int](), {}

    def hold(number, frame):
        del frame
        held.append(number)
        put_back()

    def put_back():
        for number, handler in former.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():  # others cannot have handlers
        former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in former:
            signal.signal(number, hold)
    try:
        yield
    finally:
        put_back()
        for number in held:
            signal.raise_signal(number)


class StopRequest:
    """Within the block, SIGTERM and SIGINT request a stop at the next check; a second one stops at once.

    In other threads than the main one, signals are left to the main thread.

    A signal to any of several processes stops all of them at the same check. A signalled process that reaches
    no further check, because another process is stuck, ends with one line.
    """

    def __init__(self):
        self.signal, self._checks, self._several = 0, 0, processes.count() > 1
        self._stopping, self._pipes = threading.Event(), list[int]()

    def __enter__(self):
        self._former = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        if threading.current_thread() is not threading.main_thread():  # it cannot have handlers
            self._former = {}
        if self._several:
            processes.watch_preemption()  # has its own handler for SIGTERM
            if signal.SIGINT in self._former:
                signal.signal(signal.SIGINT, self._pass_on)
            for number in self._former:
                self._end_if_stuck(number)
        else:
            for number in self._former:
                signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        self._stopping.set()
        if self._several:
            for number in self._former:
                faulthandler.unregister(number)
            for pipe in self._pipes:
                os.close(pipe)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StopRequested if a stop was requested.

        Several processes must all check after the same steps and batches, because they agree on the number of
        a check.
        """
        self._checks += 1
        if self._several and processes.preempted(self._checks):
            self.signal = signal.SIGTERM
            self._stopping.set()
        if self.signal:
            raise StopRequested(self.signal)

    def _ask(self, number, frame):
        del frame
        self.signal = number
        signal.signal(number, self._former[number])
        log.info(f"{signal.Signals(number).name}: stopping after this step or batch")

    def _end_if_stuck(self, number):
        """End this process if the signal comes and no step follows.

        Python's handlers run between instructions of the main thread, which may be in a collective for ever,
        and JAX's handlers report nothing. faulthandler writes at once when a signal comes, and then calls the
        previous handler.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        faulthandler.register(number, file=writing, all_threads=False, chain=True)
        self._pipes.append(writing)

        def wait():
            with os.fdopen(reading, "rb") as pipe:
                if pipe.read(1):
                    processes.end_unless_progress(signal.Signals(number).name, self._stopping)

        threading.Thread(target=wait, daemon=True).start()

    def _pass_on(self, number, frame):
        del frame
        signal.signal(number, self._former[number])
        faulthandler.unregister(signal.SIGTERM)  # so that `_end_if_stuck` names the signal that came
        os.kill(os.getpid(), signal.SIGTERM)
