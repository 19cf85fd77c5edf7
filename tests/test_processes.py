"""alexnet_jax/runtime/processes.py: how a process among several ends; the others are only pretended here."""

import pytest
from helpers import programs

from alexnet_jax.runtime import processes
from alexnet_jax.runtime.errors import InputError

pytestmark = pytest.mark.program


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
    return programs.finish("-c", pretend + program)


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
Client.blocking_key_value_get = lambda *_: f"{server.getsockname()[1]} token"
processes._watch_each_other("127.0.0.1")
process_0, _ = server.accept()
assert process_0.recv(5) == b"token"
"""
WATCHING = """
import socket, time
Client.key_value_set = lambda _, key, value: setattr(Client, "place", value.split())
State.process_id = 0
processes._watch_each_other("127.0.0.1")
process_1 = socket.create_connection(("127.0.0.1", int(Client.place[0])))
process_1.settimeout(20)
process_1.sendall(Client.place[1].encode())
while not processes._peers: time.sleep(0.01)
"""


@pytest.mark.parametrize("end", ["process_0.close()", "process_0.sendall(b'!')"])
def test_the_end_of_process_0_is_reported_while_this_process_computes(end):
    returned, _, err = run(f"{WATCHED}{end}\ntime.sleep(60)")
    assert returned == 1
    (line,) = err.splitlines()
    assert line.startswith("error: another process has ended, ") and line.endswith("its last checkpoint")


def test_a_process_that_shows_no_sign_of_life_is_reported():
    """One that is stopped, or cut off from the network, keeps its connection."""
    signs = "for _ in range(4):\n    time.sleep(1)\n    process_0.sendall(b'-')\n"
    returned, out, err = run(f"processes.HEARTBEAT_SECONDS = 3\n{WATCHED}{signs}print('on')\ntime.sleep(60)")
    assert returned == 1 and out == "on\n"
    (line,) = err.splitlines()
    assert line.startswith("error: another process has ended, ") and line.endswith("its last checkpoint")


def test_a_process_shows_signs_of_life():
    assert run(f"processes._PULSE_SECONDS = 0.1\n{WATCHING}print(process_1.recv(1))") == (0, "b'-'\n", "")


def test_the_end_of_another_process_is_reported_by_process_0_and_only_theirs():
    passer_by = "socket.create_connection(('127.0.0.1', int(Client.place[0]))).close()\ntime.sleep(0.5)\n"
    returned, out, err = run(f"{WATCHING}{passer_by}print('on')\nprocess_1.close()\ntime.sleep(60)")
    assert returned == 1 and out == "on\n"
    assert err.startswith("error: another process has ended, ")


@pytest.mark.parametrize("program, end", [(WATCHED, "process_0"), (WATCHING, "process_1")])
def test_a_regular_end_of_another_process_is_not_reported(program, end):
    end = f"{end}.sendall(b'.')\n{end}.close()\ntime.sleep(1)\nprint('done')\nsys.exit(143)"
    assert run(program + end) == (143, "done\n", "")


def test_a_process_says_that_its_end_is_regular():
    said = "import atexit\natexit._run_exitfuncs()\n"
    assert run(f"{WATCHING}{said}print(process_1.recv(1))") == (0, "b'.'\n", "")
    assert run(f"{WATCHED}{said}print(process_0.recv(1))") == (0, "b'.'\n", "")


def test_process_0_tells_the_others_of_an_error_and_ends_after_them():
    """XLA aborts a process once process 0 is gone."""
    told = """
import threading
def other():
    print(process_1.recv(1), flush=True)
    time.sleep(1)
    print("ended", flush=True)
    process_1.close()
threading.Thread(target=other, daemon=True).start()
with processes.exit_on_error():
    raise InputError("data.dir: cannot be read")
"""
    assert run(WATCHING + told) == (2, "b'!'\nended\n", "error: data.dir: cannot be read\n")


TOGETHER = """
Client.wait_at_barrier = lambda *_: None
with processes.exit_on_error():
    with processes.exit_on_error():
        try:
            with processes.exit_on_error():
                raise InputError("data.dir: cannot be read")
        finally:
            print("completed")
"""


def test_an_error_of_all_processes_ends_them_once_what_was_begun_is_complete():
    assert run(TOGETHER) == (2, "completed\n", "error: data.dir: cannot be read\n")


def test_processes_that_never_joined_are_named():
    returned, _, err = run("processes._never_joined('here:1', 2, 3)")
    assert returned == 1
    (line,) = err.splitlines()
    assert line.startswith("error: --coordinator=here:1: not all of the 2 processes joined within 3 s; ")


OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-here-13941@1",
}  # fmt: skip
MPICH = {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}


def detected(monkeypatch, environment, *given):
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    return processes._detect(*given, 1)


def test_open_mpi_5_on_one_machine_needs_no_flags(monkeypatch):
    coordinator, *rest = detected(monkeypatch, OPEN_MPI_5, None, None, None)
    assert rest == [2, 1, [1]]
    host, port = coordinator.split(":")
    assert host == "127.0.0.1" and 61440 <= int(port) < 65536
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert detected(monkeypatch, {}, None, None, None)[:3] == (coordinator, 2, 0)
    assert detected(monkeypatch, {"PMIX_NAMESPACE": "prterun-here-99@1"}, None, None, None)[0] != coordinator
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    assert detected(monkeypatch, {}, None, None, None)[0] == "127.0.0.1:1234"


@pytest.mark.parametrize(
    "environment, size, process, device",
    [(OPEN_MPI_5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, 2, 1, 1), (MPICH, 4, 3, 1), (SLURM, 3, 2, 0)],
)
def test_launched_processes_that_jax_does_not_detect_never_run_alone(
    monkeypatch, environment, size, process, device
):
    with pytest.raises(InputError, match=f"--coordinator: missing; .*={size}, {size} processes were"):
        detected(monkeypatch, environment, None, None, None)
    assert detected(monkeypatch, {}, "here:1", None, None) == ("here:1", size, process, [device])
    assert detected(monkeypatch, {}, "here:1", 9, 8) == ("here:1", 9, 8, None)
    processes.join(None, 1, None, 1)  # --processes=1: alone, as told
    assert processes.count() == 1


def test_a_single_launched_process_runs_alone(monkeypatch):
    environment = {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMI_SIZE": "1", "PMI_RANK": "0"}
    assert detected(monkeypatch, environment, None, None, None) == (None, None, None, None)


def test_the_watchdog_ends_a_process_that_makes_no_progress():
    slow = "processes._SLOW_SECONDS = 4\nimport time\n"
    steps = "for _ in range(3):\n        processes.progress()\n        time.sleep(1)\n    print('on')"
    program = f"{slow}with processes.watchdog(2 / 60):\n    time.sleep(4)\n    {steps}\n    time.sleep(60)"
    returned, out, err = run(program)
    assert returned == 1 and out == "on\n"  # neither while the first step is compiled nor between steps
    (line,) = err.splitlines()
    assert line.startswith("error: no step or batch for 0.0333333 minutes (mesh.watchdog_minutes): ")
    assert "last checkpoint" in line


def test_the_first_step_may_take_long_after_the_notices_of_preemption_are_asked_for():
    program = """
from jax.experimental import multihost_utils
State.initialize_preemption_sync_manager = staticmethod(lambda: None)
multihost_utils.reached_preemption_sync_point = lambda step: False
with processes.watchdog(1):
    processes.watch_preemption()
    print(processes._progress.slow, processes._progress.slowest < 1)
    processes.preempted(4)
    print(processes._progress.slow)
"""
    assert run(program) == (0, "True True\nFalse\n", "")


def test_the_watchdog_is_gone_after_its_block_and_0_is_never():
    wait = "import time\nprocesses._SLOW_SECONDS = 0\n"
    after = "with processes.watchdog(1 / 60):\n    pass\nwith processes.watchdog(0):\n    time.sleep(4)"
    assert run(f"{wait}{after}\nprint('done')") == (0, "done\n", "")
