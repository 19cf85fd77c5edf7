"""What a process among several writes to stderr, and how it ends; the others are only pretended here."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from alexnet_jax.runtime import processes

ROOT = pathlib.Path(__file__).parent.parent
LOST = f"{processes._LOST}\n"
# As XLA writes them, shortened.
WARNING = """\
W1122 08:20:39.978360    8865 preemption_sync_manager.cc:147] Failed to retrieve preemption notice from coor
Additional GRPC error information from remote target coordination_service while calling /xla.coordination
:UNKNOWN:Error received from peer  {grpc_message:"Socket closed", grpc_status:14}. Check the logs for the
"""
ERROR = """\
E1122 08:20:29.636388    8730 coordination_service.cc:1549] Use error polling to propagate the following error
1
The tasks have crashed. Check the task logs for an earlier error, or scheduler events to debug further.
"""
FATAL = """\
F1122 08:20:29.662304    8741 client.h:80] Terminating process because the JAX distributed service detected

RPC: /xla.coordination.CoordinationService/PollForError [type.googleapis.com/tensorflow.CoordinationService]
*** Check failure stack trace: ***
    @     0x7f2498240634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
OTHER = "E1122 08:20:29.636388    8730 cuda_driver.cc:12] failed call to cuInit\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nKeyError: 1\n'


@pytest.mark.parametrize(
    "written, passed",
    [
        ("a warning\n\r50%\r100%\n", "a warning\n\r50%\r100%\n"),
        (WARNING + ERROR + FATAL + TRACEBACK, LOST),
        (OTHER + FATAL, OTHER + LOST),
        ("error: the field\n" + ERROR + FATAL, "error: the field\n"),
        (WARNING + "error: the field\n" + ERROR, "error: the field\n"),
        # It did not end this process: nothing is lost, the errors that follow least of all.
        (WARNING, WARNING),
        (WARNING + TRACEBACK, WARNING + TRACEBACK),
        (WARNING + OTHER + ERROR + OTHER, WARNING + OTHER + ERROR + OTHER),
    ],
)
def test_pages_on_a_lost_process_are_one_line_and_all_else_is_kept(written, passed):
    command = [sys.executable, "-m", "alexnet_jax.runtime.processes"]
    done = subprocess.run(command, input=written.encode(), capture_output=True, cwd=ROOT, check=True)
    assert done.stderr.decode() == passed


def test_a_record_that_is_held_back_is_out_with_the_next_line():
    """Not only at the end, which may be days away."""
    command = [sys.executable, "-m", "alexnet_jax.runtime.processes"]
    pipes = dict(stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, text=True, bufsize=1, **pipes) as child:
        child.stdin.write(WARNING + OTHER)
        assert [child.stderr.readline() for _ in range(4)] == (WARNING + OTHER).splitlines(keepends=True)


def run(tmp_path, program):
    """(exit code, stderr's file) of `program`, which runs as one of two processes in a group of its own."""
    program = (
        "import os, signal, sys\nfrom alexnet_jax.runtime import processes\n"
        "processes.count = lambda: 2\nprocesses._filter_stderr()\n" + program
    )
    with open(tmp_path / "err", "w") as err:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, stderr=err, start_new_session=True)
    return done.returncode, tmp_path / "err"


@pytest.mark.parametrize(
    "end, code",
    [
        ("sys.exit(2)", 2),
        (
            "with processes.exit_on_error():\n    raise ValueError('Gloo AllGather failed: closed by peer')",
            1,
        ),
        ("processes._never_joined('here:1', 2, 3)", 1),
    ],
)
def test_the_last_line_is_out_before_a_process_ends(tmp_path, end, code):
    """Where the filter has much to write, too: what reads it may be gone as soon as the process is."""
    much = "print('x\\n' * 10000, end='', file=sys.stderr)\n"
    returned, err = run(tmp_path, f"{much}print('error: one', file=sys.stderr)\n{end}")
    lines = err.read_text().splitlines()
    assert returned == code
    assert lines.count("x") == 10000 and lines[-1].startswith("error: ")


def test_the_last_line_is_out_where_the_process_group_is_killed(tmp_path):
    program = f"os.write(2, {FATAL.encode()!r})\nos.killpg(0, signal.SIGKILL)"
    code, err = run(tmp_path, program)
    assert code == -signal.SIGKILL
    limit = time.monotonic() + 60
    while err.read_text() != LOST:
        assert time.monotonic() < limit
        time.sleep(0.01)
