"""Run several processes, on one machine or many, as one program, with JAX's own engine (`jax.distributed`).

join               join the other processes if flags or a cluster ask for it; otherwise there is one process
index, count       return this process's number and the number of processes; only process 0 writes files,
                   except for checkpoints
all_processes      call a function in every process; an error in one is raised in all
process_0_first    call a function in process 0, which prepares files, and then in the others
on_process_0       call a function in process 0 alone
from_process_0     call a function in process 0, and return its result in all: listings of folders may differ
barrier            wait for all processes
check_same         check that all processes were given the same
exit_on_error      end every process, each with one line, once one is lost or fails
watchdog           end this process with one line if steps and batches stop coming
progress           report a step or batch to the watchdog
"""

import atexit
import contextlib
import dataclasses
import itertools
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from alexnet_jax.runtime.errors import Diverged, InputError, Stopped, Unavailable, first_line, one_line

HEARTBEAT_SECONDS = 30  # after which a silent process counts as lost
SHUTDOWN_SECONDS = 10  # a process that ends with an error waits this long for the others to end too
_LINGER_SECONDS = 5  # process 0, which the others need, lets them end first for this time
_SLOW_SECONDS = 1800  # added for a step or batch with a compilation or a checkpoint before it
_STOP_SECONDS = 8, 60  # a process told to stop waits this long for the next step, or for a slow one
_LONG = 365 * 24 * 3600  # seconds; the others wait while process 0 prepares a data set
_LOST = (
    "error: another process has ended, cannot be reached or was started with other flags; restart all of"
    " them, and the run resumes from its last checkpoint"
)
_PULSE_SECONDS = 5  # between the signs of life of a process
_ALIVE, _REGULAR, _FAILED = b"-", b".", b"!"  # messages of a process to those that watch it
# Variables of launchers: number of processes, number of this process, and its number on this machine.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),  # MPICH, Intel MPI, Cray
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)
_rounds, _exiting, _peers = itertools.count(), threading.Lock(), list[socket.socket]()
_blocks: list[None] = []  # open blocks of exit_on_error


@dataclasses.dataclass
class _Progress:
    """The steps, batches and exchanges of this process, unknown to the others."""

    count: int = 0
    last: float = 0.0  # time of the last one
    slow: bool = False  # the next one may take long
    slowest: float = 0.0  # seconds of the slowest one that was not expected to be slow


_progress = _Progress()


def _private_jax():
    """Return JAX's state of several processes and its detection of clusters.

    JAX has no public names for the number of a process before it has devices, a key-value store, a barrier
    with a time limit, a late start of the preemption service, or a cluster's processes without joining them.
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

    Arguments that are None are taken from the cluster, as JAX detects it (SLURM, Open MPI 4, Cloud TPU,
    Kubernetes), or from another launcher's environment. Such launchers, except Open MPI 5 on one machine,
    leave the coordinator to the user. Without either, or with one process, nothing is started. Raises
    InputError; ends the process if the others do not join in time.
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
        f"process {process} of {processes}: joining at {coordinator}, waiting at most {seconds} s for all",
        flush=True,
    )
    # At its own time limit JAX aborts the process with a page of output.
    timer = threading.Timer(seconds, _never_joined, (coordinator, processes, seconds))
    timer.daemon = True
    timer.start()
    # A preemption notice helps only once there is something to save; until then SIGTERM ends a process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            local_device_ids=None if "JAX_LOCAL_DEVICE_IDS" in os.environ else devices,
            cluster_detection_method="deactivate",
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=2 * HEARTBEAT_SECONDS,  # JAX aborts at it: `_watch` comes first
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        raise InputError(f"--coordinator={coordinator}: cannot be joined ({first_line(error)})") from None
    finally:
        jax.config.update("jax_enable_preemption_service", True)
        timer.cancel()
    _watch_each_other(coordinator.rpartition(":")[0])


def _detect(coordinator: str | None, processes: int | None, process: int | None, seconds: int) -> tuple:
    """Complete the arguments from the cluster, and add this process's devices (None: all)."""
    try:
        with warnings.catch_warnings():  # JAX warns in a Kubernetes pod without the package for it
            warnings.simplefilter("ignore")
            found = _private_jax()[1].auto_detect_unset_distributed_params(
                coordinator, processes, process, None, None, seconds
            )
    except Exception as error:  # Kubernetes and metadata servers have exceptions of their own
        # Newer versions of JAX detect Open MPI 5, and fail without mpi4py.
        found = _from_launcher(coordinator, processes, process, None)
        if None not in found[:3]:
            return found
        raise InputError(
            f"--processes: a cluster was detected, but not its processes ({first_line(error)});"
            " give --coordinator, --processes and --process, or --processes=1"
        ) from None
    return _from_launcher(*found)


def _from_launcher(coordinator: str | None, processes: int | None, process: int | None, devices) -> tuple:
    """Complete the arguments from the environment of a launcher that JAX does not detect.

    Raises InputError if several processes were launched and the address of process 0 is unknown: each would
    run alone.
    """
    if None not in (coordinator, processes, process):
        return coordinator, processes, process, devices
    environment = os.environ
    for names in _LAUNCHERS:
        size, rank, local = (environment.get(name, "") for name in names)
        if size.isdigit() and rank.isdigit() and int(size) > 1:
            break
    else:
        return coordinator, processes, process, devices
    job = environment.get("PMIX_NAMESPACE")
    if not coordinator and job and environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == size:
        port = environment.get("JAX_COORDINATOR_PORT") or 61440 + zlib.crc32(job.encode()) % 4096  # as JAX
        coordinator = f"127.0.0.1:{port}"
    if not coordinator:
        raise InputError(
            f"--coordinator: missing; by {names[0]}={size}, {size} processes were started, but the address"
            " of process 0 is unknown; give all --coordinator=HOST:PORT, a free port of its host, or"
            " --processes=1"
        )
    if devices is None and local.isdigit():
        devices = [int(local)]
    return (
        coordinator,
        int(size) if processes is None else processes,
        int(rank) if process is None else process,
        devices,
    )


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
            f"--process={process}: expected 0 to {processes - 1}, a different one for each of the {processes}"
        )


def _never_joined(coordinator: str, processes: int, seconds: int) -> None:
    _exit(
        f"error: --coordinator={coordinator}: not all of the {processes} processes joined within {seconds} s;"
        " start them all with the same --coordinator and --processes, or give --join_seconds"
    )


def _watch_each_other(host: str) -> None:
    """Exit with one line once another process is gone or silent, even within a long computation.

    XLA would then abort the process with a page of output, but later. Each process has a connection to
    process 0, on `host`. It carries signs of life, then one byte before a regular end, and nothing or another
    byte before any other end.
    """
    client, key = _private_jax()[0].client, "alexnet_jax/watch"
    if index() == 0:
        server, token = socket.create_server(("", 0), backlog=count()), secrets.token_hex(16)

        def meet(peer):
            peer.settimeout(SHUTDOWN_SECONDS)
            with contextlib.suppress(OSError):
                if peer.recv(len(token), socket.MSG_WAITALL) == token.encode():  # a process of this program
                    _peers.append(peer)
                    _watch(peer)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    threading.Thread(target=meet, args=(peer,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        client.key_value_set(key, f"{server.getsockname()[1]} {token}")
    else:
        port, token = client.blocking_key_value_get(key, 1000 * HEARTBEAT_SECONDS).split()
        with contextlib.suppress(OSError):  # if a firewall blocks the port, XLA still reports a loss
            peer = socket.create_connection((host, int(port)), timeout=SHUTDOWN_SECONDS)
            peer.sendall(token.encode())
            _peers.append(peer)
            threading.Thread(target=_watch, args=(peer,), daemon=True).start()
    threading.Thread(target=_live, daemon=True).start()
    atexit.register(_tell, _REGULAR)


def _watch(peer: socket.socket) -> None:
    """Wait for the regular end of the process at the other end, and exit with one line on any other end.

    Silence for HEARTBEAT_SECONDS is such an end: the process is stopped, or its host is cut off. Only seconds
    in which this process is awake count, so that no process ends after a pause of all.
    """
    peer.settimeout(1)
    silent = 0
    with contextlib.suppress(OSError):
        while silent < HEARTBEAT_SECONDS:
            try:
                word = peer.recv(1)
            except TimeoutError:
                silent += 1
                continue
            if word == _REGULAR:
                return
            if word != _ALIVE:
                break
            silent = 0
    _exit(_LOST)


def _live() -> NoReturn:
    while True:
        time.sleep(_PULSE_SECONDS)
        _tell(_ALIVE)


def _tell(word: bytes) -> None:
    for peer in _peers:
        with contextlib.suppress(OSError):
            peer.sendall(word)


def _exchange(value: Any, seconds: int = _LONG) -> list:
    """Return the values of all processes, in their order. All must make these calls in the same order."""
    if count() == 1:
        return [value]
    progress(_progress.slow)
    client, folder = _private_jax()[0].client, f"alexnet_jax/{next(_rounds)}"
    client.key_value_set(f"{folder}/{index():06}", json.dumps(value))
    client.wait_at_barrier(folder, 1000 * seconds)
    return [json.loads(text) for _, text in sorted(client.key_value_dir_get(folder))]


def barrier(fine: bool, seconds: int = _LONG) -> bool:
    """Wait for all processes, and return whether all are `fine`. Raises TimeoutError if some do not come."""
    import jax

    try:
        return all(_exchange(fine, seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise TimeoutError from None


def all_processes(function: Callable, *args) -> Any:
    """Return function(*args), called in every process. An InputError in one is raised in all."""
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
    """Return the result of function(*args) in process 0 in all processes, as JSON."""
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


def watch_preemption() -> None:
    """Treat SIGTERM as a preemption notice from now on."""
    _private_jax()[0].initialize_preemption_sync_manager()
    preempted(0)
    progress(slow=True)  # no step is done yet, and the first is compiled


def preempted(check: int) -> bool:
    """Return whether a process was told to stop, and all must stop at check number `check`.

    Call it with 1, 2, … in every process, at the same points. It costs nothing, because JAX's processes
    communicate only when there is a notice.
    """
    from jax.experimental import multihost_utils

    progress()
    return multihost_utils.reached_preemption_sync_point(check)


def progress(slow: bool = False) -> None:
    """Note that a step or batch is done; the next is `slow` if it includes a compilation or a checkpoint."""
    now = time.monotonic()
    if _progress.count and not _progress.slow:
        _progress.slowest = max(_progress.slowest, now - _progress.last)
    _progress.count, _progress.last, _progress.slow = _progress.count + 1, now, slow


@contextlib.contextmanager
def watchdog(minutes: float) -> Iterator[None]:
    """End this process with one line if there are others and the block makes no progress for some minutes.

    A process that is alive but stuck keeps all others waiting in a collective. 0 minutes: wait for ever.
    """
    left = threading.Event()
    if minutes and count() > 1:
        progress(slow=True)
        message = (
            f"error: no step or batch for {minutes:g} minutes (mesh.watchdog_minutes): a process is stuck;"
            " end and restart all of them, and the run resumes from its last checkpoint"
        )
        limits = 60 * minutes, 60 * minutes + _SLOW_SECONDS
        threading.Thread(target=_end_without_progress, args=(limits, message, left), daemon=True).start()
    try:
        yield
    finally:
        left.set()


def end_unless_progress(name: str, stopping: threading.Event) -> None:
    """End this process, which was told to stop by the signal `name`, if it reaches no further step.

    It waits longer if steps take long, and no longer once `stopping` is set.
    """
    seconds = max(_STOP_SECONDS[0], 2 * _progress.slowest)
    message = (
        f"error: {name}, and no further step for {seconds:.0f} s: another process is stuck; restart all of"
        " them, and the run resumes from its last checkpoint"
    )
    _end_without_progress((seconds, max(seconds, _STOP_SECONDS[1])), message, stopping)


def _end_without_progress(limits: tuple[float, float], message: str, left: threading.Event) -> None:
    """Exit after the first number of seconds without progress, or the second if the next step may be slow.

    Only seconds in which this process is awake count, so that no process ends after a pause of all.
    """
    seen, idle = _progress.count, 0
    while not left.wait(1):
        idle = idle + 1 if seen == _progress.count else 0
        seen = _progress.count
        if idle >= limits[_progress.slow]:
            _exit(message)


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End this process at once if the block raises and there are others: a normal exit would wait for them.

    They may be waiting for this one in a collective, and notice only that it is gone. An InputError or
    Diverged that all processes raise passes through inner blocks, so that started work is completed, and ends
    all processes at the outermost block.
    """
    _blocks.append(None)
    try:
        yield
    except Stopped as error:
        if count() > 1:
            _exit(f"error: {error}", 128 + error.signal)
        raise
    except (InputError, Diverged) as error:
        if count() == 1:
            raise
        together = _all_fail(len(_blocks))
        if together and len(_blocks) > 1:
            raise
        _exit(f"error: {error}", error.exit_code, _REGULAR if together else _FAILED)
    except Exception as error:
        if count() == 1:
            raise
        import jax

        lost = r"gloo|nccl|unavailable|deadline|connection|coordination|heartbeat|barrier"
        kinds = jax.errors.JaxRuntimeError | ValueError  # from a collective, at its dispatch or later
        if isinstance(error, kinds) and re.search(lost, str(error), re.IGNORECASE):
            _exit(f"{_LOST} ({first_line(error)})")
        line = one_line(error)
        if line:
            _exit(f"error: {line[0]}", line[1])
        _exit(traceback.format_exc())
    finally:
        _blocks.pop()


def _all_fail(depth: int) -> bool:
    """Return whether every process arrives here soon, at this depth of blocks."""
    import jax

    try:
        _private_jax()[0].client.wait_at_barrier(f"alexnet_jax/failure/{depth}", 1000 * SHUTDOWN_SECONDS)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _exit(message: str, code: int = 1, word: bytes = _FAILED) -> NoReturn:
    """Print the message and end this process at once: a normal exit would wait for the others.

    They get `word` first. Process 0 ends last, because XLA aborts the others without it.
    """
    _exiting.acquire()  # and never released: a second thread has nothing to add
    sys.stdout.flush()
    print(message.rstrip(), file=sys.stderr, flush=True)
    _tell(word)
    limit = time.monotonic() + _LINGER_SECONDS
    for peer in _peers if count() > 1 and index() == 0 else ():
        with contextlib.suppress(OSError):
            while time.monotonic() < limit:  # signs of life may still come
                peer.settimeout(max(limit - time.monotonic(), 0.01))
                if not peer.recv(1):
                    break
    os._exit(code)
