"""Starts programs for `helpers.programs`: it imports JAX and the project once, and forks.

Each message on stdin is JSON, with three files: stdout and stderr of the program, and a pipe for its
process number and, at its end, its exit code. All programs have the same hash seed.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys

MODULES = (
    "jax", "alexnet_jax.train", "alexnet_jax.evaluate", "alexnet_jax.datasets.prepared",
    "tensorflow_datasets", "clu.parameter_overview", "tensorboard.summary.writer.record_writer",
)  # fmt: skip


def request():
    """Return, in the new process of each program, the words that follow `python`."""
    messages = socket.socket(fileno=0)
    while True:
        message, files, *_ = socket.recv_fds(messages, 1 << 20, 3)
        if not message:
            sys.exit(0)
        out, err, told = files
        if os.fork():
            for file in (out, err, told):
                os.close(file)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process = os.fork()  # this one waits for it: the server waits for the next message
        if process:
            os.write(told, b"%d\n" % process)
            _, status = os.waitpid(process, 0)
            os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        messages.detach()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for file, number in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(file, number)
        for file in (nothing, out, err, told):
            os.close(file)
        asked = json.loads(message)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        return asked["words"]


if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    importlib.import_module("alexnet_jax.runtime.command_line").quiet_xla()
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    kind, what, *flags = request()
    if kind == "-m":
        sys.argv = [what, *flags]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *flags]
        exec(what, {"__name__": "__main__"})
