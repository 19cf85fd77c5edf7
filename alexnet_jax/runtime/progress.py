"""Long passes over many examples: on all cores, in order, in bounded memory, with the time left."""

import collections
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger("alexnet_jax")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable, items: Iterable, threads: int) -> Iterator:
    """Return an iterator over map(function, items), computed by `threads` threads, a few items ahead.

    Threads suffice: decoding, resizing, encoding and NumPy's arithmetic release the interpreter's lock.
    """
    pool, pending = ThreadPoolExecutor(threads), collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Progress:
    """Log every few seconds the progress of a pass over `total` images, and the time left."""

    def __init__(self, what: str, total: int, every: float = 5, unit: str = "images"):
        self._what, self._total, self._every, self._unit = what, total, every, unit
        self._start = self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last > self._every or done == self._total:
            self._last = now
            rate = done / max(now - self._start, 1e-9)
            left = (self._total - done) / rate
            log.info(
                f"{self._what}: {done:,} of {self._total:,} {self._unit}, {rate:,.0f} {self._unit}/s,"
                f" {left:,.0f} s left"
            )


def over(source: Sized, function: Callable, what: str, batch: int, first: int = 0) -> Iterator:
    """Yield function(indices) for every `batch` examples from `first` on, in order, on all cores; log it."""
    batches = [range(start, min(start + batch, len(source))) for start in range(first, len(source), batch)]
    progress = Progress(what, len(source) - first)
    for indices, result in zip(batches, in_order(function, batches, cores()), strict=True):
        yield result
        progress(indices.stop - first)
