"""Run several processes, on one machine or many, as one program, with JAX's own engine (`jax.distributed`).

join               start it if it is asked for or a cluster is detected; otherwise there is one process
index, count       this process's number and how many there are; process 0 alone writes what is not a
                   checkpoint
all_processes      call a function in every process; an error in one is raised in all
process_0_first    the same, process 0 first: it prepares what the others find
on_process_0       call a function in process 0 alone
from_process_0     the same, and tell all what it returned: folders may be listed differently in each
barrier            wait for all; check_same: compare what they were given
exit_on_error      end every process, each with one line, once one is lost or fails
"""

import atexit
import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from alexnet_jax.runtime.errors import Diverged, InputError, Unavailable, first_line, one_line

HEARTBEAT_SECONDS = 30  # after which a silent process counts as lost
SHUTDOWN_SECONDS = 10  # for which a process that ends with an error waits for the others to end too
_LONG = 365 * 24 * 3600  # seconds; while process 0 prepares a data set, the others wait
_LOST = (
    "error: another process has ended, cannot be reached or was started with other flags; start all of them"
    " again, and the run goes on from its last checkpoint"
)
_rounds, _exiting = itertools.count(), threading.Lock()


def _private_jax():
    """Return JAX's state of several processes and its detection of clusters.

    No public name has a process's number before the devices are there, a key-value store, a barrier with a
    time limit, a late start of the preemption service, or a cluster's processes without joining them.
    """
    from jax._src import clusters, distributed

    return distributed.global_state, clusters.ClusterEnv


def index() -> int:
    """Return the number of this process."""
    return _private_jax()[0].process_id


def count() -> int:
    """Return the number of processes."""
    return _private_jax()[0].num_processes


def join(coordinator: str | None, processes: int | None, process: int | None, seconds: int) -> None:
    """Join the other processes, and return when all are there.

    What is not given is taken from the cluster, as JAX detects it: SLURM, Open MPI, Cloud TPU, Kubernetes.
    Without either, and with one process, nothing is started. Raises InputError; ends the process if the
    others do not join in time.
    """
    import jax

    if processes == 1:
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    coordinator, processes, process, devices = _detect(coordinator, processes, process, seconds)
    if processes == 1 or coordinator is processes is process is None:
        return
    _check(coordinator, processes, process)
    print(
        f"process {process} of {processes}: joining at {coordinator}, waiting {seconds} s at most for all",
        flush=True,
    )
    # When its own limit passes, JAX aborts the process with a page.
    timer = threading.Timer(seconds, _never_joined, (coordinator, processes, seconds))
    timer.daemon = True
    timer.start()
    # A preemption notice is of use only once there is something to save: until then SIGTERM ends a process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            local_device_ids=None if "JAX_LOCAL_DEVICE_IDS" in os.environ else devices,
            cluster_detection_method="deactivate",
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        raise InputError(f"--coordinator={coordinator}: cannot be joined ({first_line(error)})") from None
    finally:
        jax.config.update("jax_enable_preemption_service", True)
        timer.cancel()
    _watch_process_0(coordinator.rpartition(":")[0])


def _detect(coordinator: str | None, processes: int | None, process: int | None, seconds: int) -> tuple:
    """Return what is given, the rest as the cluster has it, and this process's devices (None: all)."""
    try:
        with warnings.catch_warnings():  # JAX's, in a pod of Kubernetes without the package for it
            warnings.simplefilter("ignore")
            return _private_jax()[1].auto_detect_unset_distributed_params(
                coordinator, processes, process, None, None, seconds
            )
    except Exception as error:  # Kubernetes' and the metadata servers' own
        if None not in (coordinator, processes, process):
            return coordinator, processes, process, None
        raise InputError(
            f"--processes: a cluster was detected, but not its processes ({first_line(error)});"
            " give --coordinator, --processes and --process, or --processes=1"
        ) from None


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = ", ".join(name for name, value in given.items() if value is None)
    if coordinator is None or processes is None or process is None:
        raise InputError(
            f"{missing}: missing; --coordinator=HOST:PORT, --processes and --process go together"
        )
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(
            f"--coordinator={coordinator}: expected HOST:PORT, with a free port of the host of process 0"
        )
    if not 0 <= process < processes:
        raise InputError(
            f"--process={process}: expected 0 to {processes - 1}, another for each of the {processes}"
        )


def _never_joined(coordinator: str, processes: int, seconds: int) -> None:
    _exit(
        f"error: --coordinator={coordinator}: not all of the {processes} processes joined within {seconds} s;"
        " start them all with the same --coordinator and --processes, or give --join_seconds"
    )


def _watch_process_0(host: str) -> None:
    """Exit with one line once process 0, on `host`, is gone, even within a long computation.

    XLA aborts the process with a page then, which takes longer to write than the line. Each process has a
    connection to process 0, on which a byte comes before a regular end and nothing before another. A host
    that is silent for HEARTBEAT_SECONDS, but keeps its connections, is left to XLA.
    """
    client, key = _private_jax()[0].client, "alexnet_jax/watch"
    if index() == 0:
        server = socket.create_server(("", 0), backlog=count())
        connections: list[socket.socket] = []

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connections.append(server.accept()[0])

        def end():
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(b".")

        threading.Thread(target=accept, daemon=True).start()
        client.key_value_set(key, str(server.getsockname()[1]))
        atexit.register(end)
        return
    port = int(client.blocking_key_value_get(key, 1000 * HEARTBEAT_SECONDS))
    with contextlib.suppress(OSError):  # closed to other ports: XLA's page tells of it
        connection = socket.create_connection((host, port), timeout=SHUTDOWN_SECONDS)
        connection.settimeout(None)

        def wait():
            with contextlib.suppress(OSError):
                if connection.recv(1):
                    return
            _exit(_LOST)

        threading.Thread(target=wait, daemon=True).start()


def _exchange(value: Any, seconds: int = _LONG) -> list:
    """Return the values of all processes, in their order, once all have called it, in the same order."""
    if count() == 1:
        return [value]
    client, folder = _private_jax()[0].client, f"alexnet_jax/{next(_rounds)}"
    client.key_value_set(f"{folder}/{index():06}", json.dumps(value))
    client.wait_at_barrier(folder, 1000 * seconds)
    return [json.loads(text) for _, text in sorted(client.key_value_dir_get(folder))]


def barrier(fine: bool, seconds: int = _LONG) -> bool:
    """Wait for all processes, and return whether all are `fine`. Raises TimeoutError if not all come."""
    import jax

    try:
        return all(_exchange(fine, seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise TimeoutError from None


def all_processes(function: Callable, *args) -> Any:
    """Return function(*args), called in every process. Raises InputError in all if it does in one."""
    result = failure = None
    try:
        result = function(*args)
    except InputError as error:
        failure = error
    outcomes = _exchange(failure and (str(failure), isinstance(failure, Unavailable)))
    for process, theirs in enumerate(outcomes):
        if theirs is not None:
            kind = Unavailable if theirs[1] else InputError
            raise failure or kind(f"process {process}: {theirs[0]}")
    return result


def on_process_0(function: Callable, *args) -> Any:
    """Return function(*args) in process 0; the others wait, and get None. Raises as `all_processes`."""
    return all_processes(lambda: function(*args) if index() == 0 else None)


def from_process_0(function: Callable, *args) -> Any:
    """Return in all processes what function(*args) returns in process 0, as JSON has it."""
    return _exchange(on_process_0(function, *args))[0]


def process_0_first(function: Callable, *args) -> Any:
    """Return function(*args), called in process 0 and then in the others. Raises as `all_processes`."""
    first = on_process_0(function, *args)
    others = all_processes(lambda: function(*args) if index() > 0 else None)
    return first if index() == 0 else others


def check_same(what: dict) -> None:
    """Raise InputError if the processes differ in `what`, naming the first that does."""
    first, *others = _exchange(what)
    for process, other in enumerate(others, 1):
        for field in sorted(first.keys() | other.keys()):
            if first.get(field) != other.get(field):
                raise InputError(
                    f"{field}: the processes disagree: {first.get(field)!r} in process 0,"
                    f" {other.get(field)!r} in process {process}; start all with the same command"
                )


def watch_preemption(step: int) -> None:
    """Take SIGTERM as a preemption notice from now on, after `step` steps in every process."""
    _private_jax()[0].initialize_preemption_sync_manager()
    preempted(step)


def preempted(step: int) -> bool:
    """Return whether any process was told to stop and all are to stop after `step`; call it at every step.

    It costs nothing: JAX's processes speak of it only when there is a notice.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End this process at once if the block raises and there are others: the usual end waits for them.

    They may be waiting for this one in a collective, and notice only that it is gone. An InputError, or
    Diverged, that all processes raise passes through.
    """
    try:
        yield
    except (InputError, Diverged) as error:
        if not _all_fail():
            _exit(f"error: {error}", error.exit_code)
        raise
    except Exception as error:
        if count() == 1:
            raise
        import jax

        lost = r"gloo|nccl|unavailable|deadline|connection|coordination|heartbeat|barrier"
        kinds = jax.errors.JaxRuntimeError | ValueError  # of a collective, as it is dispatched or later
        if isinstance(error, kinds) and re.search(lost, str(error), re.IGNORECASE):
            _exit(f"{_LOST} ({first_line(error)})")
        line = one_line(error)
        if line:
            _exit(f"error: {line[0]}", line[1])
        _exit(traceback.format_exc())


def _all_fail() -> bool:
    """Return whether every process comes here soon."""
    if count() == 1:
        return True
    import jax

    try:
        _private_jax()[0].client.wait_at_barrier("alexnet_jax/failure", 1000 * SHUTDOWN_SECONDS)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _exit(message: str, code: int = 1) -> NoReturn:
    """Print the message and end this process at once: the usual end would wait for the others."""
    _exiting.acquire()  # and never let go: the thread that comes second has nothing to add
    sys.stdout.flush()
    print(message.rstrip(), file=sys.stderr, flush=True)
    os._exit(code)
