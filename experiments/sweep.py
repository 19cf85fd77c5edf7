"""python -m experiments.sweep --config=configs/NAME.py[:ARG] --sweep=experiments/SWEEP.py[:ARG] --workdir=DIR
                            [--seeds=3] [--launcher=local|slurm] [--jobs=N] [--slurm=KEY=VALUE,...]
                            [--config.FIELD=VALUE ...]

Trains every variant of a sweep with seeds 0, 1, …, each in a workdir of its own, DIR/VARIANT/seed-N, by the
command of main.py. What is finished is not run again, what was interrupted goes on, what fails is reported
and stops nothing else. DIR/results.csv and DIR/results.md are written anew whenever a run ends. The exit code
is 1 if a run failed, 2 for a mistake in what was given.

--sweep      ablations, table1, table2, figure1 are in experiments/; variants.py says what such a file has
--seeds      results of each line of the table
--jobs       how many run at a time, each on its share of the CPUs: 1 if left out, and all under SLURM
--slurm      parameters of submitit: gpus_per_node=2,timeout_min=600,slurm_partition=NAME
"""

import concurrent.futures
import csv
import datetime
import fcntl
import io
import logging
import math
import os
import shlex
import signal
import statistics
import sys
import time

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError, first_line
from alexnet_jax.runtime.files import write_text
from experiments import launchers
from experiments.plan import Plan, Run, as_flags, variants_of

log = logging.getLogger("alexnet_jax")


class Sweep:
    """Runs what is planned and keeps the table."""

    def __init__(self, plan: Plan, workdir: str, title: str):
        self.plan, self.workdir, self.title = plan, workdir, title
        self.results = {run.name: run.result() for run in plan.runs}
        self.failed, self.stopped = set(), 0

    def go(self, launcher, jobs: int) -> None:
        """Returns when all runs have ended, or those that were running when SIGTERM or SIGINT came."""
        waiting = [run for run in self.plan.runs if not self.results[run.name]]
        runs = len(self.plan.runs)
        log.info(f"{runs} runs, {runs - len(waiting)} finished; {jobs} at a time")
        self.write()
        self._stop_on_signals(launcher)
        progress, running = _Progress(self), {}
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            while running or waiting:
                if self.stopped:
                    waiting.clear()
                for run in list(waiting):
                    if any(need.name in self.failed for need in run.needs):
                        waiting.remove(run)
                        self._fail(run, "what it is made of failed")
                    elif all(self.results[need.name] for need in run.needs) and len(running) < jobs:
                        waiting.remove(run)
                        running[pool.submit(_start, launcher, run)] = run
                ended, _ = concurrent.futures.wait(running, 1, concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    self._end(running.pop(future), future)
                progress.tell(running.values(), bool(ended))

    def _stop_on_signals(self, launcher) -> None:
        def stop(number, frame):
            del frame
            self.stopped = number
            signal.signal(number, signal.SIG_DFL)  # a second one ends the sweep, and with it its runs
            log.info(f"{signal.Signals(number).name}: {launcher.stop()}")

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

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

    def rows(self) -> list[dict]:
        """One a line of the table: errors over its seeds, as fractions, and differences to the first's."""
        rows = []
        for variant in self.plan.variants:
            runs = self.plan.of_line(variant.name)
            results = [self.results[run.name] for run in runs if self.results[run.name]]
            row = {
                "variant": variant.name,
                "overrides": self.plan.overrides[variant.name],
                "seeds": len(results),
                "failed": sum(run.name in self.failed for run in runs),
            }
            for name in ("top1", "top5"):
                errors = [result[f"{name}_error"] for result in results]
                row[f"{name}_error"] = statistics.mean(errors) if errors else math.nan
                row[f"{name}_std"] = statistics.stdev(errors) if len(errors) > 1 else math.nan
                found = self._differences(runs, f"{name}_error")
                error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
                row[f"{name}_difference"] = statistics.mean(found) if found else math.nan
                row[f"{name}_difference_error"] = error
            rows.append({**row, "paper": variant.paper})
        return rows

    def _differences(self, runs: list[Run], error: str) -> list[float]:
        """Of each run of a line to the first line's; none for the first itself, or another task.

        A run is compared with those of the first line that it is made of, or with that of its seed, which had
        the same order of images: so the differences of a line are independent of each other.
        """
        first = self.plan.of_line(self.plan.variants[0].name)
        if runs == first or self.plan.task[runs[0].line] != self.plan.task[first[0].line]:
            return []
        found = []
        for run in runs:
            others = [need for need in run.needs if need in first]
            others = others or [other for other in first if other.seed == run.seed]
            results = [self.results[each.name] for each in (run, *others)]
            if others and all(results):
                own, *theirs = (result[error] for result in results)
                found.append(own - statistics.mean(theirs))
        return found

    def write(self) -> None:
        """results.csv and results.md."""
        rows, table = self.rows(), io.StringIO()
        writer = csv.DictWriter(table, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _rounded(value) for key, value in row.items()})
        write_text(os.path.join(self.workdir, "results.csv"), table.getvalue())
        write_text(os.path.join(self.workdir, "results.md"), self._markdown(rows))

    def _markdown(self, rows: list[dict]) -> str:
        finished = sum(bool(result) for result in self.results.values())
        lines = [
            f"    {self.title}\n",
            f"{finished} of {len(self.plan.runs)} runs finished, {len(self.failed)} failed. Percent: mean ±"
            " standard deviation over seeds; difference to the first line, seed by seed, ± its standard"
            " error.\n",
            "| variant | seeds | top-1 error | top-5 error | top-1 difference | top-5 difference | paper |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            seeds = f"{row['seeds']}" + (f", {row['failed']} failed" if row["failed"] else "")
            errors = [_percent(row[f"{name}_error"], row[f"{name}_std"]) for name in ("top1", "top5")]
            differences = [
                _percent(row[f"{name}_difference"], row[f"{name}_difference_error"], "+")
                for name in ("top1", "top5")
            ]
            cells = [row["variant"], seeds, *errors, *differences, str(row["paper"])]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines) + "\n"


def _start(launcher, run: Run) -> int | None:
    os.makedirs(run.workdir, exist_ok=True)
    return launcher.run(run)


def _last_line(run: Run) -> str:
    """Of what it printed; main.py's is the reason."""
    path = os.path.join(run.workdir, "console.log")
    try:
        with open(path, errors="replace") as file:
            return [line.strip() for line in file if line.strip()][-1]
    except (OSError, IndexError):
        return f"{path} is empty"


class _Progress:
    """Tells how far all runs are, every half minute and when one ends."""

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


def _rounded(value):
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.8f}"


def _percent(value: float, spread: float, sign: str = "") -> str:
    if math.isnan(value):
        return ""
    return f"{100 * value:{sign}.2f}" + ("" if math.isnan(spread) else f" ± {100 * spread:.2f}")


def take(workdir: str):
    """Makes the folder; no other sweep has it while the file lives that this returns. Raises InputError."""
    if os.path.exists(os.path.join(workdir, "config.json")):
        raise InputError(f"--workdir={workdir}: is that of a run; give a folder for the sweep")
    try:
        os.makedirs(workdir, exist_ok=True)
        lock = open(os.path.join(workdir, ".lock"), "a")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be written ({error}); give another") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however the process ends
    except BlockingIOError:
        raise InputError(f"--workdir={workdir}: another sweep runs there; wait, or give another") from None
    except OSError:
        log.warning(f"{workdir}: this file system has no locks; see that one sweep runs there")
    return lock


def _slurm_parameters(text: str) -> dict:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not all(key and value for key, _, value in pairs):
        raise InputError(f"--slurm={text}: give KEY=VALUE,KEY=VALUE")
    return {key: int(value) if value.isdigit() else value for key, _, value in pairs}


def main(arguments: list[str]) -> None:
    whole = command_line.whole
    parser = command_line.Parser(__doc__, config=True)
    parser.add_argument("--sweep", metavar="FILE[:ARG]", help="the sweep's file")
    parser.add_argument("--workdir", metavar="DIR", help="a folder for the runs")
    parser.add_argument(
        "--seeds", metavar="N", type=whole(1), default=3, help="results of each line of the table"
    )
    launcher = command_line.one_of("local", "slurm")
    parser.add_argument("--launcher", metavar="NAME", type=launcher, default="local", help="where to run")
    parser.add_argument("--jobs", metavar="N", type=whole(1), help="runs at a time")
    parser.add_argument("--slurm", metavar="KEY=VALUE,...", default="", help="parameters of submitit")
    flags = parser.parse(arguments)
    for flag in ("config", "sweep", "workdir"):
        if not getattr(flags, flag):
            raise InputError(f"--{flag}: missing; see --help")
    config = configuration.load(flags.config, flags.overrides)
    given = configuration.typed(flags.overrides)
    if "seed" in given:
        raise InputError("--config.seed: every seed from 0 is run; give their number, --seeds")
    workdir = os.path.abspath(os.path.expanduser(flags.workdir))
    variants = variants_of(flags.sweep, config)
    plan = Plan(variants, config, flags.config, given, workdir, flags.seeds)
    slurm = flags.launcher == "slurm"
    if flags.slurm and not slurm:
        raise InputError(f"--slurm={flags.slurm}: comes with --launcher=slurm, which is missing")
    unfinished = sum(not run.result() for run in plan.runs)
    jobs = max(1, min(flags.jobs or (unfinished if slurm else 1), unfinished))
    parameters = _slurm_parameters(flags.slurm)
    launcher = launchers.Submitit(workdir, parameters) if slurm else launchers.Local(jobs)
    arguments = [f"--config={flags.config}", f"--sweep={flags.sweep}", *as_flags(given)]
    title = f"python -m experiments.sweep {shlex.join([*arguments, f'--seeds={flags.seeds}'])}"
    lock = take(workdir)  # noqa: F841
    sweep = Sweep(plan, workdir, title)
    try:
        sweep.go(launcher, jobs)
    except OSError as error:  # a full disk, say: what runs has ended by now, what was saved stays
        command_line.fail(f"{workdir}: {first_line(error)}; the same command goes on from there", 1)
    log.info(f"the table is in {workdir}/results.md")
    if sweep.stopped:
        sys.exit(128 + sweep.stopped)
    if sweep.failed:
        command_line.fail(f"{len(sweep.failed)} of {len(plan.runs)} runs failed", 1)


if __name__ == "__main__":
    command_line.run(main)
