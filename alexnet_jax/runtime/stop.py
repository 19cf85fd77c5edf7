"""Ending a run from outside: SIGTERM, SIGINT, and a cluster's notice of preemption."""

import faulthandler
import logging
import os
import signal
import threading

from alexnet_jax.runtime import processes

log = logging.getLogger("alexnet_jax")


class StopRequest:
    """Within the block, SIGTERM and SIGINT ask for a stop after the step; a second one stops at once.

    A signal to any of several processes stops all of them after the same step. One that was signalled and
    comes to no further step, because another process is stuck, ends with one line.
    """

    def __init__(self, first_step: int):
        self.signal, self._first_step, self._several = 0, first_step, processes.count() > 1
        self._stopping, self._pipes = threading.Event(), list[int]()

    def __enter__(self):
        self._former = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        if self._several:
            processes.watch_preemption(self._first_step)  # has a handler of its own for SIGTERM
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

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name

    def after(self, step: int) -> bool:
        """Return whether to stop after `step`; several processes must all ask after every step."""
        if self._several and processes.preempted(step):
            self.signal = signal.SIGTERM
            self._stopping.set()
        return bool(self.signal)

    def _ask(self, number, frame):
        del frame
        self.signal = number
        signal.signal(number, self._former[number])
        log.info(f"{self.name}: saving after this step")

    def _end_if_stuck(self, number):
        """End this process once the signal has come, and then no step.

        Python's handlers run between the main thread's instructions, and it may be within a collective for
        ever; JAX's tell nobody. faulthandler writes on a signal at once, and then calls the handler that was
        there before.
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
        os.kill(os.getpid(), signal.SIGTERM)
