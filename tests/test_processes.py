"""alexnet_jax/runtime/processes.py: how a process among several ends; the others are only pretended here."""

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.program
ROOT = pathlib.Path(__file__).parent.parent


def run(program):
    """(exit code, stdout, stderr) of `program`, which takes itself for one of two processes."""
    pretend = (
        "import sys\nimport jax\nfrom alexnet_jax.runtime import processes\n"
        "from alexnet_jax.runtime.errors import Diverged, InputError\n"
        "class Client:\n"
        "    def wait_at_barrier(self, *_): raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: alone')\n"
        "class State: client, process_id, num_processes = Client(), 1, 2\n"
        "processes._private_jax = lambda: (State, None)\n"
    )
    command = [sys.executable, "-c", pretend + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "error, code, line",
    [
        ("ValueError('UNKNOWN: Gloo AllGather failed: closed')", 1, "error: another process has ended, "),
        ("jax.errors.JaxRuntimeError('UNAVAILABLE: gone')", 1, "error: another process has ended, "),
        ("InputError('data.dir: cannot be read')", 2, "error: data.dir: cannot be read"),
        ("Diverged('step 3: the loss is nan')", 1, "error: step 3: the loss is nan"),
    ],
)
def test_an_error_ends_the_process_with_one_line_although_others_do_not_answer(error, code, line):
    program = f"print('before')\nwith processes.exit_on_error():\n    raise {error}\nprint('after')"
    returned, out, err = run(program)
    assert returned == code
    assert out == "before\n"  # what was printed is out, and nothing follows
    (last,) = err.splitlines()
    assert last.startswith(line)


def test_an_error_of_the_program_itself_keeps_its_traceback():
    returned, _, err = run("with processes.exit_on_error():\n    raise KeyError('a bug')")
    assert returned == 1
    assert err.startswith("Traceback ") and "KeyError: 'a bug'" in err and "another process" not in err


WATCHED = """
import socket, time
server = socket.create_server(("127.0.0.1", 0))
Client.blocking_key_value_get = lambda *_: str(server.getsockname()[1])
processes._watch_process_0("127.0.0.1")
process_0, _ = server.accept()
"""


def test_the_end_of_process_0_is_reported_while_this_process_computes():
    returned, _, err = run(f"{WATCHED}process_0.close()\ntime.sleep(60)")
    assert returned == 1
    (line,) = err.splitlines()
    assert line.startswith("error: another process has ended, ") and line.endswith("its last checkpoint")


def test_a_regular_end_of_process_0_is_not_reported():
    end = "process_0.sendall(b'.')\nprocess_0.close()\ntime.sleep(1)\nprint('done')\nsys.exit(143)"
    assert run(WATCHED + end) == (143, "done\n", "")


def test_process_0_says_that_its_end_is_regular_and_only_then():
    watch = """
import socket
Client.key_value_set = lambda _, key, port: setattr(Client, "port", int(port))
State.process_id = 0
processes._watch_process_0("127.0.0.1")
process_1 = socket.create_connection(("127.0.0.1", Client.port))
import atexit, time
time.sleep(0.5)  # until it is accepted
"""
    told = "atexit._run_exitfuncs()\nprocess_1.settimeout(1)\n"
    assert run(f"{watch}{told}print(process_1.recv(1))") == (0, "b'.'\n", "")
    silent = "process_1.settimeout(1)\nprocess_1.recv(1)"
    returned, _, err = run(watch + silent)
    assert returned == 1 and "TimeoutError" in err


def test_processes_that_never_joined_are_named():
    returned, _, err = run("processes._never_joined('here:1', 2, 3)")
    assert returned == 1
    (line,) = err.splitlines()
    assert line.startswith("error: --coordinator=here:1: not all of the 2 processes joined within 3 s; ")
