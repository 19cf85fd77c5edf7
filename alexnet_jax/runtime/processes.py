"""Several processes, on one machine or many, as one program: JAX's own engine (`jax.distributed`).

    join          starts it where it is asked for or a cluster is detected; otherwise there is one process
    index, count  of this process; process 0 alone writes what is not a checkpoint
    all_processes      a function in every process: what is wrong in one is told by all
    process_0_first       the same, process 0 first: it prepares what the others find
    on_process_0      in process 0 alone
    barrier, check_same   whether it is fine in every process; whether all were given the same
    exit_on_error          a lost process ends the others, with one line each

`python -m alexnet_jax.runtime.processes` is the filter of `join`'s stderr.
"""

import atexit
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
import warnings

from alexnet_jax.runtime.errors import Diverged, InputError, first_line

HEARTBEAT_SECONDS = 30  # after which a silent process counts as lost
SHUTDOWN_SECONDS = 10  # after which one that ends alone, for bad input, ends the others
_LONG = 30 * 24 * 3600  # seconds; while process 0 prepares a data set, the others wait
_LOST = (
    "error: another process has ended, cannot be reached or was started with other flags; start all of them"
    " again, and the run goes on from its last checkpoint"
)
_rounds = itertools.count()
_filter_child = None


def _state():
    from jax._src import distributed  # the public names have no key-value store and no barrier

    return distributed.global_state


def index() -> int:
    return _state().process_id


def count() -> int:
    return _state().num_processes


def join(coordinator: str | None, processes: int | None, process: int | None, seconds: int) -> None:
    """Joins the other processes, and returns when all are there.

    What is not given is taken from the cluster, as JAX detects it: SLURM, Open MPI, Cloud TPU, Kubernetes.
    Without either, and with one process, nothing is started. Raises InputError; ends the process if the
    others do not join in time.
    """
    import jax

    if processes == 1:
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    coordinator, processes, process, devices = _detected(coordinator, processes, process, seconds)
    if processes == 1 or coordinator is processes is process is None:
        return
    _check(coordinator, processes, process)
    # A preemption notice is of use only once there is something to save: until then SIGTERM ends a process.
    jax.config.update("jax_enable_preemption_service", False)
    print(
        f"process {process} of {processes}: joining at {coordinator}, waiting {seconds} s at most for all",
        flush=True,
    )
    _filter_stderr()
    atexit.register(jax.distributed.shutdown)  # jax's own comes after the filter's end
    # When its own limit passes, JAX aborts the process with a page.
    timer = threading.Timer(seconds, _never_joined, (coordinator, processes, seconds))
    timer.daemon = True
    timer.start()
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
    timer.cancel()


def _detected(coordinator, processes, process, seconds: int) -> tuple:
    """What is given, the rest as the cluster has it, and which devices are this process's (None: all)."""
    from jax._src import clusters

    try:
        with warnings.catch_warnings():  # JAX's, in a pod of Kubernetes without the package for it
            warnings.simplefilter("ignore")
            return clusters.ClusterEnv.auto_detect_unset_distributed_params(
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
    if missing:
        raise InputError(
            f"{missing}: missing; --coordinator=HOST:PORT, --processes and --process go together"
        )
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator={coordinator}: is no HOST:PORT, of a free port where process 0 runs")
    if not 0 <= process < processes:
        raise InputError(f"--process={process}: give 0 to {processes - 1}, each to one of the {processes}")


def _never_joined(coordinator: str, processes: int, seconds: int) -> None:
    print(
        f"error: --coordinator={coordinator}: not all of the {processes} processes joined within {seconds} s;"
        " start them all with the same --coordinator and --processes, or give --join_seconds",
        file=sys.stderr,
    )
    _exit(1)


def _exchange(value, seconds: int = _LONG) -> list:
    """The values of all processes, in their order; waits for all. All call it in the same order."""
    if count() == 1:
        return [value]
    client, folder = _state().client, f"alexnet_jax/{next(_rounds)}"
    client.key_value_set(f"{folder}/{index():06}", json.dumps(value))
    client.wait_at_barrier(folder, 1000 * seconds)
    return [json.loads(text) for _, text in sorted(client.key_value_dir_get(folder))]


def barrier(fine: bool, seconds: int = _LONG) -> bool:
    """Whether it is fine in every process. Raises TimeoutError where not all of them ask in time."""
    import jax

    try:
        return all(_exchange(fine, seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise TimeoutError from None


def all_processes(function, *args):
    """function(*args) in every process. Raises InputError in all where it does in one."""
    result = message = None
    try:
        result = function(*args)
    except InputError as error:
        message = str(error)
    for process, theirs in enumerate(_exchange(message)):
        if theirs is not None:
            raise InputError(message or f"process {process}: {theirs}")
    return result


def on_process_0(function, *args):
    """function(*args) in process 0; the others wait, and get None. Raises InputError as `all_processes`."""
    return all_processes(lambda: function(*args) if index() == 0 else None)


def process_0_first(function, *args):
    """function(*args) in process 0, and then in the others. Raises InputError as `all_processes`."""
    first = on_process_0(function, *args)
    others = all_processes(lambda: function(*args) if index() > 0 else None)
    return first if index() == 0 else others


def check_same(what: dict) -> None:
    """Raises InputError where the processes differ in `what`, naming the first that does."""
    first, *others = _exchange(what)
    for process, other in enumerate(others, 1):
        for field in sorted(first.keys() | other.keys()):
            if first.get(field) != other.get(field):
                raise InputError(
                    f"{field}: the processes disagree: {first.get(field)!r} in process 0,"
                    f" {other.get(field)!r} in process {process}; start all with the same command"
                )


def watch_preemption(step: int) -> None:
    """From now on SIGTERM is a preemption notice, which `preempted` tells. All have done `step` steps."""
    import jax

    jax.config.update("jax_enable_preemption_service", True)
    _state().initialize_preemption_sync_manager()
    preempted(step)


def preempted(step: int) -> bool:
    """Whether any process has been told to stop, and this is the step at which all do; called at every step.

    It costs nothing: JAX's processes speak of it only when there is a notice.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def exit_on_error():
    """Within the block an exception ends this process at once: the usual end waits for the others.

    These may be waiting for it, and notice only that it is gone.
    """
    try:
        yield
    except (InputError, Diverged):
        raise
    except Exception as error:
        if count() == 1:
            raise
        import jax

        lost = r"gloo|nccl|unavailable|deadline|connection|coordination|heartbeat|barrier"
        kinds = jax.errors.JaxRuntimeError | ValueError  # of a collective, as it is dispatched or later
        if isinstance(error, kinds) and re.search(lost, str(error), re.IGNORECASE):
            print(f"{_LOST} ({first_line(error)})", file=sys.stderr)
        else:
            traceback.print_exc()
        _exit(1)


def _filter_stderr() -> None:
    """Has a child read this process's stderr along: `_filter`.

    When a process is lost, XLA aborts the others with pages of its own, in C++, before Python hears of it.
    """
    global _filter_child
    # In a session of its own it outlives this process where a whole process group is killed.
    _filter_child = subprocess.Popen(
        [sys.executable, "-m", "alexnet_jax.runtime.processes"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.dup2(_filter_child.stdin.fileno(), 2)
    _filter_child.stdin.close()
    atexit.register(_close_stderr)


def _close_stderr() -> None:
    """Returns when all that was written there is out: launchers kill what is left when a process ends."""
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a child of ours may have it open still
        _filter_child.wait(5)


def _exit(code: int) -> None:
    """Ends this process at once: what Python does at the end would wait for the others."""
    sys.stdout.flush()
    _close_stderr()
    os._exit(code)


def _filter() -> None:
    """Copies stdin to stderr, but holds back XLA's records on other processes, which are pages.

    Where the last of them ends this process, one line takes their place. Where it goes on, they come out
    before what is written next, or at the end. Where an error of ours tells what is wrong, they do not.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # a cluster sends these to children too
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.reconfigure(errors="replace", newline="")  # a progress bar's lines end in \r
    held, told = [], False
    for line in sys.stdin:
        record = re.match(r"[WEF]\d{4} .*(coordination|preemption_sync|distributed)", line)
        if record and line[0] == "F":
            held = [_LOST + "\n"]
            break
        if record or held and not re.match(r"[IWEF]\d{4} |Traceback |error: ", line):
            held.append(line)  # with the lines that a record goes on for
            continue
        told = told or line.startswith("error: ")
        print(*([] if told else held), line, sep="", end="", file=sys.stderr, flush=True)
        held = []
    if not told:
        print(*held, sep="", end="", file=sys.stderr, flush=True)
    for _ in sys.stdin:  # to the end: the writer would be killed by a closed pipe
        pass


if __name__ == "__main__":
    _filter()
