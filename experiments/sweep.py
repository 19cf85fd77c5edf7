"""python -m experiments.sweep --config=configs/NAME.py[:ARG] --sweep=FILE[:ARG] --workdir=DIR
                            [--seeds=3] [--first_seed=0] [--launcher=local|slurm] [--jobs=N]
                            [--slurm=KEY=VALUE,...] [--config.FIELD=VALUE ...]

Train every variant of a sweep with seeds 0, 1, …, each in its own workdir, DIR/VARIANT/seed-N, with
alexnet_jax.main. The same command skips finished runs and resumes interrupted ones. A failed run is
reported and does not stop the others. Whenever a run ends, DIR/results.csv and DIR/results.md are rewritten.
The exit code is 1 if a run failed, and 2 for a mistake in the arguments.

experiments/sweeps/ has the files ablations, claims, table1, table2, figure1 and precision; variants.py there
defines the format of such a file.
"""

import concurrent.futures
import contextlib
import datetime
import logging
import os
import shlex
import signal
import time
from collections.abc import Iterator

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError, first_line
from alexnet_jax.runtime.files import folder_lock
from experiments.sweeps import launchers, table
from experiments.sweeps.plan import Plan, Run, as_flags, data_of, load_variants

log = logging.getLogger("alexnet_jax")


class Sweep:
    """Run the planned runs and keep the table."""

    def __init__(self, plan: Plan, workdir: str, title: str):
        self.plan, self.workdir, self.title = plan, workdir, title
        self.results = {run.name: run.result() for run in plan.runs}
        self.failed, self.stopped = set(), 0

    def go(self, launcher, jobs: int) -> None:
        """Return when all runs have ended or, after SIGTERM or SIGINT, when the active ones have."""
        waiting = [run for run in self.plan.runs if not self.results[run.name]]
        runs = len(self.plan.runs)
        log.info(f"{runs} runs, {runs - len(waiting)} finished; {jobs} at a time")
        self.write()
        progress, running = _Progress(self), {}
        with self._stopping_on_signals(launcher), concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            while running or waiting:
                if self.stopped:
                    waiting.clear()
                for run in list(waiting):
                    if any(need.name in self.failed for need in run.needs):
                        waiting.remove(run)
                        self._fail(run, "a run that it needs failed")
                    elif all(self.results[need.name] for need in run.needs) and len(running) < jobs:
                        waiting.remove(run)
                        for line in run.set_aside_what_is_stale():
                            log.info(f"{run.name}: was made from something else; {line}")
                        running[pool.submit(_start, launcher, run)] = run
                ended, _ = concurrent.futures.wait(running, 1, concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    self._end(running.pop(future), future)
                progress.tell(running.values(), bool(ended))

    @contextlib.contextmanager
    def _stopping_on_signals(self, launcher) -> Iterator[None]:
        """Stop the launcher on SIGTERM or SIGINT; a second one ends the sweep, and with it its runs."""

        def stop(number, frame):
            del frame
            self.stopped = number
            signal.signal(number, signal.SIG_DFL)
            log.info(f"{signal.Signals(number).name}: {launcher.stop()}")

        former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _end(self, run: Run, future) -> None:
        if future.exception():
            self._fail(run, f"{type(future.exception()).__name__}: {future.exception()}")
        elif future.result() == 0 and run.keep_result():
            result = self.results[run.name] = run.result()
            log.info(f"{run.name}: top-1 error {result['top1_error']:.4f}")
        elif future.result() is not None:
            self._fail(run, f"exit code {future.result()}: {_last_line(run)}")
        self.write()

    def _fail(self, run: Run, why: str) -> None:
        self.failed.add(run.name)
        log.warning(f"{run.name}: failed ({why})")
        self.write()

    def write(self) -> None:
        """Write the table."""
        table.write(self.workdir, self.title, self.plan, self.results, self.failed)


def _start(launcher, run: Run) -> int | None:
    os.makedirs(run.workdir, exist_ok=True)
    return launcher.run(run)


def _last_line(run: Run) -> str:
    """Return the last line that the run printed; main.py ends with the reason of a failure."""
    path = os.path.join(run.workdir, "console.log")
    try:
        with open(path, errors="replace") as file:
            return [line.strip() for line in file if line.strip()][-1]
    except (OSError, IndexError):
        return f"{path} is empty"


class _Progress:
    """Report the progress of all runs, every half minute and whenever one ends."""

    def __init__(self, sweep: Sweep):
        self._sweep, self._start, self._last = sweep, time.monotonic(), time.monotonic()
        self._before = self._epochs_done()

    def _epochs_done(self) -> int:
        return sum(run.epochs_done() for run in self._sweep.plan.runs)

    def tell(self, running, now: bool) -> None:
        time_now = time.monotonic()
        if not now and time_now - self._last < 30:
            return
        self._last, sweep = time_now, self._sweep
        waited_for = [
            run for run in sweep.plan.runs if not sweep.results[run.name] and run.name not in sweep.failed
        ]
        line = f"{len(sweep.plan.runs) - len(waited_for)} of {len(sweep.plan.runs)} runs ended"
        done = self._epochs_done() - self._before
        if done > 0:
            left = sum(run.num_epochs - run.epochs_done() for run in waited_for)
            seconds = (time_now - self._start) / done * left
            line += f", about {datetime.timedelta(seconds=round(seconds))} left"
        going = [
            run.name + (f": epoch {run.epochs_done()}/{run.num_epochs}" if run.num_epochs else "")
            for run in running
        ]
        log.info("; ".join([line, *going]))


def check_workdir(workdir: str) -> None:
    """Raise InputError if a sweep cannot have the folder."""
    if os.path.exists(os.path.join(workdir, "config.json")):
        raise InputError(f"--workdir={workdir}: belongs to a run; give a folder for the sweep")
    command_line.check_can_be_made("--workdir", workdir)


@contextlib.contextmanager
def take(workdir: str) -> Iterator[None]:
    """Make the folder, and keep other sweeps out of it within the block. Raises InputError."""
    check_workdir(workdir)
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(workdir, exist_ok=True)
            stack.enter_context(folder_lock("--workdir", workdir, "another sweep runs", "one sweep runs"))
        except OSError as error:
            raise InputError(f"--workdir={workdir}: cannot be written ({error}); give another") from None
        yield


def _slurm_parameters(text: str) -> dict:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not all(key and value for key, _, value in pairs):
        raise InputError(f"--slurm={text}: give KEY=VALUE,KEY=VALUE")
    return {key: int(value) if value.isdigit() else value for key, _, value in pairs}


def _parse(arguments: list[str]):
    parser, whole = command_line.Parser(__doc__, config=True), command_line.whole
    parser.add_argument("--sweep", metavar="FILE[:ARG]", required=True, help="a list of variants")
    parser.add_argument("--workdir", metavar="DIR", required=True, help="a folder for the runs")
    parser.add_argument(
        "--seeds", metavar="N", type=whole(1), default=3, help="results per line of the table"
    )
    parser.add_argument("--first_seed", metavar="N", type=whole(0), default=0, help="the lowest seed")
    launcher = command_line.one_of("local", "slurm")
    parser.add_argument(
        "--launcher", metavar="NAME", type=launcher, default="local", help="local, on this machine, or slurm"
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=whole(1),
        help="runs at a time, each on its share of the CPUs; 1 if left out, and all under SLURM",
    )
    parser.add_argument(
        "--slurm",
        metavar="KEY=VALUE,...",
        default="",
        help="parameters of submitit: gpus_per_node=2,timeout_min=600,slurm_partition=NAME",
    )
    given = parser.parse(arguments)
    if given.slurm and given.launcher != "slurm":
        raise InputError(f"--slurm={given.slurm}: comes with --launcher=slurm, which is missing")
    return given


def main(arguments: list[str]) -> int:
    """Return the exit code: 1 if a run failed, 128 plus its number after a signal. Raises InputError."""
    given = _parse(arguments)
    config, overrides = (
        configuration.load(given.config, given.overrides),
        configuration.typed(given.overrides),
    )
    if "seed" in overrides:
        raise InputError("--config.seed: a sweep runs several; give their number, --seeds, and --first_seed")
    workdir = os.path.abspath(os.path.expanduser(given.workdir))
    check_workdir(workdir)  # before the plan, which prepares the data
    slurm = launchers.Submitit(workdir, _slurm_parameters(given.slurm)) if given.launcher == "slurm" else None
    variants = load_variants(given.sweep, config)
    plan = Plan(variants, config, given.config, overrides, workdir, given.seeds, data_of, given.first_seed)
    unfinished = sum(not run.result() for run in plan.runs)
    jobs = max(1, min(given.jobs or (unfinished if slurm else 1), unfinished))
    launcher = slurm or launchers.Local(jobs)
    flags = [f"--config={given.config}", f"--sweep={given.sweep}", *as_flags(overrides)]
    flags += [f"--seeds={given.seeds}", *[f"--first_seed={given.first_seed}"] * bool(given.first_seed)]
    title = f"python -m experiments.sweep {shlex.join(flags)}"
    with take(workdir):
        sweep = Sweep(plan, workdir, title)
        try:
            sweep.go(launcher, jobs)
        except OSError as error:  # such as a full disk; the runs have ended, and their saved files stay
            command_line.fail(f"{workdir}: {first_line(error)}; the same command resumes from there", 1)
    log.info(f"the table is in {workdir}/results.md")
    if sweep.failed and not sweep.stopped:
        command_line.fail(f"{len(sweep.failed)} of {len(plan.runs)} runs failed", 1)
    return 128 + sweep.stopped if sweep.stopped else 0


if __name__ == "__main__":
    command_line.run(main)
