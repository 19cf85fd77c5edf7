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
import threading, time
ended = threading.Event()
class Watched(Client):
    def blocking_key_value_get(self, *_):
        if GONE: raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed\\na page")
        ended.wait()
    def key_value_set(self, *_): ended.set()
State.client = Watched()
processes._watch_process_0()
"""


def test_the_end_of_process_0_is_reported_while_this_process_computes():
    returned, _, err = run(f"GONE = True\n{WATCHED}time.sleep(60)")
    assert returned == 1
    (line,) = err.splitlines()
    assert line.startswith("error: another process has ended, ") and line.endswith(
        "(UNAVAILABLE: Socket closed)"
    )


def test_a_process_that_has_done_its_part_does_not_report_the_end_of_process_0():
    assert run(f"GONE = False\n{WATCHED}print('done')\nsys.exit(143)") == (143, "done\n", "")


def test_processes_that_never_joined_are_named():
    returned, _, err = run("processes._never_joined('here:1', 2, 3)")
    assert returned == 1
    (line,) = err.splitlines()
    assert line.startswith("error: --coordinator=here:1: not all of the 2 processes joined within 3 s; ")
