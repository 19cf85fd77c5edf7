"""A run's metrics: metrics.jsonl, the clock of its loop and TensorBoard's event files; the only user of clu.

metrics.jsonl has one JSON object per validation. A resumed run drops the rows after its checkpoint, whose
validations are made again.
"""

import contextlib
import datetime
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from alexnet_jax.runtime import processes, quiet_tensorflow
from alexnet_jax.runtime.errors import InputError, reason, system_error
from alexnet_jax.runtime.files import is_number, parse_json, read_bytes, write_text

log = logging.getLogger("alexnet_jax")

FIELDS = frozenset({
    "step", "epoch", "learning_rate", "train_loss", "val_loss", "val_top1_error", "val_top5_error",
    "images_per_second",
})  # fmt: skip
REPORT_SECONDS = 10


def read_rows(workdir: str) -> list[dict]:
    """Read metrics.jsonl, one dict per validation. Raises InputError if it is damaged or has no row."""
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        lines = read_bytes(path).splitlines(keepends=True)
        rows = [parse_json(line) for line in lines if line.endswith(b"\n")]
    except FileNotFoundError:
        rows = []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); give the workdir of a run") from None
    for number, row in enumerate(rows, 1):
        if not (isinstance(row, dict) and all(is_number(row.get(name)) for name in FIELDS)):
            raise InputError(f"{path}: line {number} is no validation; delete it, or give another workdir")
    if not rows:
        raise InputError(f"{path}: has no validation yet; let the run come to its first")
    return rows


def append_row(workdir: str, row: dict) -> None:
    """Add a validation to metrics.jsonl. Raises OSError, which names it."""
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def drop_rows_after(workdir: str, step: int) -> None:
    """Drop the rows of metrics.jsonl after `step`, and the line that a killed run was writing."""
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        lines = read_bytes(path).splitlines()
    except FileNotFoundError:
        return
    rows = [row for row in map(_parse, lines) if row is not None and row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _parse(line: bytes) -> dict | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and is_number(row.get("step")) else None


class Writer:
    """Tell of a run in metrics.jsonl, in event files and in the log; process 0 alone writes.

    Leaving the `with` block waits for the event files. All raise OSError, which names the file or the folder.
    """

    def __init__(self, workdir: str, step: int, fields: dict):
        """Go on after `step`; `fields` of the configuration are TensorBoard's hyperparameters."""
        self._workdir, self._fields, self._events = workdir, fields, None
        if processes.index() == 0:
            drop_rows_after(workdir, step)
            self._events = _event_files(workdir)
            with self._os_errors():
                self._events.write_hparams(fields)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self._events:
            try:
                with self._os_errors():
                    self._events.close()
            except OSError:
                if error is None:  # else it has been told
                    raise

    def write_row(self, row: dict) -> None:
        """Write the row of a validation."""
        if self._events:
            append_row(self._workdir, row)
        self._write_event(row["step"], {name: value for name, value in row.items() if name != "step"})
        log.info(
            f"epoch {row['epoch']}/{self._fields['num_epochs']}: validation top-1 error"
            f" {row['val_top1_error']:.4f}, top-5 error {row['val_top5_error']:.4f},"
            f" loss {row['val_loss']:.4f} (training loss {row['train_loss']:.4f})"
        )

    def write_progress(self, step: int, last_step: int, epochs: int, loss: float, clock: "Clock") -> None:
        """Write how far the run is: `epochs` are complete, `loss` is the mean since then."""
        rate = clock.images_per_second()
        if not rate:
            return
        seconds = round((last_step - step) * self._fields["batch_size"] / rate)
        log.info(
            f"epoch {epochs + 1}/{self._fields['num_epochs']}  step {step}/{last_step}  loss {loss:.4f}"
            f"  {rate:,.0f} images/s  {datetime.timedelta(seconds=seconds)} left"
        )
        self._write_event(step, {"images_per_second": rate})

    def _write_event(self, step: int, scalars: dict[str, float]) -> None:
        if self._events:
            with self._os_errors():
                self._events.write_scalars(step, scalars)

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Raise OSError where clu's thread fails because the system does."""
        try:
            yield
        except Exception as error:  # clu, TensorFlow and the file system have no common one
            cause = system_error(error)
            if cause is None:
                raise
            events = os.path.join(self._workdir, "events.out.tfevents.*")
            raise OSError(cause.errno, cause.strerror, events) from None


def _event_files(workdir: str):
    quiet_tensorflow.load()  # before clu does, which takes seconds: rows are read without it
    from clu import metric_writers

    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(workdir))


def parameter_table(params) -> str:
    """Return the shape, size, mean and standard deviation of every parameter, as a table."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(params, include_stats="global")


class Clock:
    """Measure the speed since `restart`; the first step of a run, which compiles, is not counted."""

    def __init__(self, batch_size: int):
        self._start: Any = None  # a time, once the first step is done
        self._batch_size, self._images, self._waited = batch_size, 0, 0.0
        self._reported = time.monotonic()

    def tick(self, loss) -> None:
        """Count a step, whose loss may still be computed."""
        if self._start is None:
            import jax  # here: rows are read without it

            jax.block_until_ready(loss)
            self.restart()
        else:
            self._images += self._batch_size

    def restart(self) -> None:
        self._start, self._images, self._waited = time.monotonic(), 0, 0.0

    def waiting_for(self, batches: Iterable) -> Iterator:
        """Yield the batches; the time until each is there counts as waiting."""
        asked = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def images_per_second(self) -> float:
        return self._images / (time.monotonic() - self._start)

    def input_wait(self) -> float:
        """Return the fraction of the time that was spent waiting for batches."""
        return self._waited / (time.monotonic() - self._start)

    def report_is_due(self) -> bool:
        """Return whether REPORT_SECONDS have passed since this was last true."""
        due = time.monotonic() - self._reported >= REPORT_SECONDS
        if due:
            self._reported = time.monotonic()
        return due
