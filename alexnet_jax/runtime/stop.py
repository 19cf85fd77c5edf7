"""Ending a run from outside: SIGTERM, SIGINT, and a cluster's notice of preemption."""

import logging
import os
import signal

from alexnet_jax.runtime import processes

log = logging.getLogger("alexnet_jax")


class StopRequested(Exception):
    """A stop was asked for, and nothing is under way that would be lost; `signal` is the signal's number."""

    def __init__(self, number: int):
        """Take the signal's number."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class StopRequest:
    """Within the block, SIGTERM and SIGINT ask for a stop at the next check; a second one stops at once.

    A signal to any of several processes stops all of them at the same check.
    """

    def __init__(self):
        self.signal, self._checks, self._several = 0, 0, processes.count() > 1

    def __enter__(self):
        self._former = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        if self._several:
            processes.watch_preemption()  # has a handler of its own for SIGTERM
            signal.signal(signal.SIGINT, self._pass_on)
        else:
            for number in self._former:
                signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StopRequested if a stop was asked for.

        Several processes must all check after the same steps and batches: they agree on a check's number.
        """
        self._checks += 1
        if self._several and processes.preempted(self._checks):
            self.signal = signal.SIGTERM
        if self.signal:
            raise StopRequested(self.signal)

    def _ask(self, number, frame):
        del frame
        self.signal = number
        signal.signal(number, self._former[number])
        log.info(f"{signal.Signals(number).name}: stopping after this step or batch")

    def _pass_on(self, number, frame):
        del frame
        signal.signal(number, self._former[number])
        os.kill(os.getpid(), signal.SIGTERM)
