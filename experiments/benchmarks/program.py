"""Programs that take turns, each in its own process.

A program is a function at the top of a module, `start(*arguments)`, that returns (turn, facts).
`turn(*request)` does the measured work and returns the measurement; `facts` is a dict about the program.
"""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

from alexnet_jax.runtime.errors import InputError, first_line
from experiments.environment import environment, huge_pages

# Every program compiles again, and none takes most of a GPU's memory at its start: the others need a share.
VARIABLES = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


class Program:
    """A running program: call `facts` once, and then `turn` any number of times.

    Both raise InputError if the program does, and a one-line ChildProcessError if it fails otherwise or its
    process ends.
    """

    def __init__(self, name: str, start: Callable, *arguments):
        self.name = name
        # Spawned, not forked, so that it has nothing that this process has started, such as JAX's threads.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, start, arguments))
        with environment(VARIABLES | huge_pages()):
            self._process.start()
        theirs.close()

    def facts(self) -> dict:
        """Wait until the program is ready, and return its facts. Call this once, before `turn`."""
        return self._receive()

    def turn(self, *request) -> Any:
        """Let the program take a turn while this process waits, and return its measurement."""
        with contextlib.suppress(ConnectionError):  # the program has ended, as `_receive` reports
            self._connection.send(request)
        return self._receive()

    def stop(self) -> None:
        """End the program."""
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode or 0
            why = f"with exit code {code}"
            if code < 0:
                why = f"by signal {-code}; if memory is short, give a smaller --batch"
            raise ChildProcessError(f"{self.name}: its process ended {why}") from None
        if isinstance(answer, ChildProcessError):
            raise ChildProcessError(f"{self.name}: {answer}")
        if isinstance(answer, InputError):
            raise answer
        return answer


def _serve(connection, start: Callable, arguments: tuple) -> None:
    # Nobody listens once the benchmark has ended or has stopped this program. A Ctrl-C in the terminal is for
    # the benchmark, which then stops its programs.
    with contextlib.suppress(ConnectionError, KeyboardInterrupt):
        try:
            turn, facts = start(*arguments)
            connection.send(facts)
            for request in _requests(connection):
                connection.send(turn(*request))
        except InputError as error:
            connection.send(error)
        except Exception as error:  # baselines may raise any exception
            connection.send(ChildProcessError(f"{type(error).__name__}: {first_line(error)}"))


def _requests(connection) -> Iterator[tuple]:
    while True:
        try:
            yield connection.recv()
        except EOFError:  # the benchmark has closed it or has ended
            return
