"""Programs that tests start: Python as a user starts it, with the slow imports done once by `fork_server`."""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent.parent
_IMPORTED = "JAX_", "XLA_", "TF_", "PYTHON"  # variables that are read when modules are imported


class Program:
    """A running program, with those methods of subprocess.Popen that the tests use."""

    def __init__(self, pipe: int):
        self._pipe = os.fdopen(pipe, "rb", buffering=0)
        self.pid, self.returncode = int(self._line()), None

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            read = self._pipe.read(1)
            assert read, "the program's parent was killed"
            line += read
        return line

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._pipe], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = int(self._line())
            self._pipe.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _variables(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_IMPORTED)}


def _environment() -> dict[str, str]:
    # JAX has set this one for this process; users have none.
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


@functools.cache
def _server() -> tuple[socket.socket, dict[str, str]]:
    """Start the server; return the socket that it listens on, and its environment."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    file, environment = pathlib.Path(__file__).with_name("fork_server.py"), _environment()
    server = subprocess.Popen([sys.executable, file], cwd=ROOT, env=environment, stdin=theirs)
    theirs.close()
    atexit.register(lambda: (ours.close(), server.wait(60)))
    return ours, environment


def start(*words, stdout, stderr, environment: dict[str, str] | None = None) -> Program | subprocess.Popen:
    """Start `python WORDS` in the project's folder; `stdout` and `stderr` are open files.

    `environment` is added to this process's. If a variable that imports depend on differs from the server's,
    Python is started directly.
    """
    server, started_with = _server()
    environment = _environment() | (environment or {})
    words = [str(word) for word in words]
    if _variables(started_with) != _variables(environment):
        return subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=stdout, stderr=stderr
        )
    message = json.dumps({"words": words, "folder": str(ROOT), "environment": environment}).encode()
    read, write = os.pipe()
    socket.send_fds(server, [message], [stdout.fileno(), stderr.fileno(), write])
    os.close(write)
    return Program(read)


def finish(*words, timeout: float = 240) -> tuple[int, str, str]:
    """Return the exit code, stdout and stderr of `python WORDS`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        program = start(*words, stdout=out, stderr=err)
        try:
            code = program.wait(timeout)
        finally:
            program.kill()
            program.wait()
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def run(*words, code: int = 0, timeout: float = 240) -> str:
    """Return stdout and stderr of `python WORDS`, which is to end with this exit code and no traceback."""
    ended, out, err = finish(*words, timeout=timeout)
    assert ended == code, out + err
    assert "Traceback" not in err
    return out + err
