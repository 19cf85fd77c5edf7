"""Run the commands of a sweep on this machine, or as jobs of a cluster through submitit.

`run` of a launcher takes a plan.Run and returns the exit code of its command once it has ended, or None if
`stop` was called meanwhile. The output of the command goes to WORKDIR/console.log.
"""

import json
import os
import queue
import subprocess
import sys
import threading

from alexnet_jax.runtime.errors import InputError
from experiments.environment import huge_pages

# Linux kills the started program when the thread that started it ends, even by SIGKILL.
_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def run_here(command: list[str], workdir: str, started=lambda _: None) -> int:
    """Run a command, whose first part is a path, and return its exit code. It ends with this process."""
    with open(os.path.join(workdir, "console.log"), "ab") as console:
        # In its own session: Ctrl-C in a terminal is for the sweep, which then asks its runs to save.
        process = subprocess.Popen(
            [sys.executable, "-c", _WITH_PARENT, *command],
            stdout=console,
            stderr=console,
            env={**os.environ, **huge_pages()},
            start_new_session=True,
        )
    started(process)
    return process.wait()


class Local:
    """Processes of this machine, `jobs` at a time, each on its share of the CPUs.

    If two small networks share two cores, they train at three quarters of their rate with one core each.
    """

    def __init__(self, jobs: int):
        # An RLock, because a signal may come while the handler of another signal is in `stop`.
        self._processes, self._lock, self._stopping = [], threading.RLock(), False
        self._shares = queue.SimpleQueue()
        for job in range(jobs):
            self._shares.put(_share(job, jobs))

    def run(self, run) -> int | None:
        """Start the command of a run as soon as CPUs are free, and wait for its end."""
        cpus = self._shares.get()
        try:
            if cpus:
                os.sched_setaffinity(0, cpus)  # on Linux for this thread and the process that it starts
            code = run_here(run.command, run.workdir, self._add)
        finally:
            self._shares.put(cpus)
        return None if self._stopping and code else code

    def _add(self, process) -> None:
        with self._lock:
            self._processes.append(process)
            if self._stopping:
                process.terminate()

    def stop(self) -> str:
        """Ask all runs to save and end; return a line for the user."""
        with self._lock:
            self._stopping = True
            for process in self._processes:
                process.terminate()  # does nothing to a process that has ended
        return "the runs are saving"


def _share(job: int, jobs: int) -> list[int]:
    """Return the CPUs of one of `jobs`, or [] for all if there are fewer CPUs or the system does not say."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cpus[job * len(cpus) // jobs : (job + 1) * len(cpus) // jobs] if jobs <= len(cpus) else []


class Submitit:
    """Jobs of SLURM, or processes here if `cluster` is "local".

    Jobs outlive the sweep. job.json keeps their numbers, and the next sweep adopts those that have not failed
    and would give the same result.
    """

    def __init__(self, folder: str, parameters: dict, cluster: str = "slurm", poll_seconds: float = 2):
        """Raise InputError if SLURM is missing or submitit does not know the parameters."""
        import submitit

        self._folder = os.path.join(folder, "submitit")
        self._job_class = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[cluster]
        self._poll_seconds, self._stop = poll_seconds, threading.Event()
        try:
            self._executor = submitit.AutoExecutor(self._folder, cluster=cluster)
            self._executor.update_parameters(**{"name": "alexnet_jax", "timeout_min": 24 * 60, **parameters})
        except Exception as error:  # submitit raises many exceptions, such as NameError and AssertionError
            raise InputError(f"--launcher=slurm: {' '.join(str(error).split())}") from None
        self._lock = threading.Lock()  # submitit's executors are not thread-safe

    def run(self, run) -> int | None:
        """Submit the command of a run, unless its job is there already, and wait for its end."""
        job = self._former_job(run)
        if job is None:
            with self._lock:
                job = self._executor.submit(run_here, run.command, run.workdir)
            with open(os.path.join(run.workdir, "job.json"), "w") as file:
                json.dump([job.job_id, run.made_by], file)
        while not job.done():
            if self._stop.wait(self._poll_seconds):
                return None
        return _exit_code(job)

    def _former_job(self, run):
        """Return the job of an earlier sweep for the same run, or None if there is none or it failed."""
        try:
            with open(os.path.join(run.workdir, "job.json")) as file:
                job_id, made_by = json.load(file)
        except (FileNotFoundError, ValueError, TypeError):
            return None
        job = self._job_class(self._folder, job_id)
        failed = made_by != run.made_by or (job.done(force_check=True) and _exit_code(job))
        return None if failed else job

    def stop(self) -> str:
        """Stop waiting for the jobs; return a line for the user."""
        self._stop.set()
        return "the jobs continue; the same command waits for them again"


def _exit_code(job) -> int:
    return 1 if job.exception() else max(job.results())  # of all of its tasks
