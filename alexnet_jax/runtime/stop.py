"""Ending a run from outside: SIGTERM, SIGINT, and a cluster's notice of preemption."""

import logging
import os
import signal

from alexnet_jax.runtime import processes

log = logging.getLogger("alexnet_jax")


class StopRequest:
    """Within the block, SIGTERM and SIGINT ask for a stop after the step; a second one stops at once.

    A signal to any of several processes stops all of them after the same step.
    """

    def __init__(self, first_step: int):
        self.signal, self._first_step, self._several = 0, first_step, processes.count() > 1

    def __enter__(self):
        self._former = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        if self._several:
            processes.watch_preemption(self._first_step)  # has a handler of its own for SIGTERM
            signal.signal(signal.SIGINT, self._pass_on)
        else:
            for number in self._former:
                signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name

    def after(self, step: int) -> bool:
        """Return whether to stop after `step`; several processes must all ask after every step."""
        if self._several and processes.preempted(step):
            self.signal = signal.SIGTERM
        return bool(self.signal)

    def _ask(self, number, frame):
        del frame
        self.signal = number
        signal.signal(number, self._former[number])
        log.info(f"{self.name}: saving after this step")

    def _pass_on(self, number, frame):
        del frame
        signal.signal(number, self._former[number])
        os.kill(os.getpid(), signal.SIGTERM)
