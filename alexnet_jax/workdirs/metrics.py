"""A run's metrics: metrics.jsonl, event files and log lines, and the clock of the loop.

metrics.jsonl has one JSON object per validation. A speed that was not measured is null: a resumed run may
make only one step of an epoch, or none. A resumed run drops the rows after its checkpoint, and repeats their
validations.
"""

import datetime
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from alexnet_jax.runtime import processes
from alexnet_jax.runtime.errors import InputError, reason
from alexnet_jax.runtime.files import StrPath, is_number, parse_json, read_file, retry, write_text
from alexnet_jax.workdirs.events import EventFile

log = logging.getLogger("alexnet_jax")

SPEED = "images_per_second"
FIELDS = frozenset({
    "step", "epoch", "learning_rate", "train_loss", "val_loss", "val_top1_error", "val_top5_error", SPEED,
})  # fmt: skip
REPORT_SECONDS = 10
_LARGEST, _LONGEST = 256 << 20, 64 << 10  # bytes of the file, and of a line, which has about 300


def read_rows(workdir: StrPath) -> list[dict]:
    """Read metrics.jsonl, one dict per validation. Raises InputError if it is damaged or has no row."""
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        lines = _lines(path)
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); give the workdir of a run") from None
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parse(line)
        if row is None:
            raise InputError(f"{path}: line {number} is not a validation; delete it, or give another workdir")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: has no validation yet; let the run reach its first")
    return rows


def append_row(workdir: StrPath, row: dict) -> None:
    """Add a validation to metrics.jsonl. Raises OSError with the file's name."""
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def drop_rows_after(workdir: StrPath, step: int) -> None:
    """Drop the rows of metrics.jsonl after `step`, and the unfinished line of a killed run."""
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        rows = [row for row in map(_parse, _lines(path)) if row and row["step"] <= step]
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({reason(error)}); move it away, and the run resumes"
        ) from None
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _lines(path: str) -> list[bytes]:
    """Return the complete lines of a file. Raises OSError, and ValueError if it is too long."""
    return retry(path, read_file, path, _LARGEST).split(b"\n")[:-1]


def _parse(line: bytes) -> dict | None:
    """Return the row of a line, or None if it has none."""
    try:
        row = parse_json(line) if len(line) <= _LONGEST else None
    except ValueError:
        return None
    if not isinstance(row, dict) or not row.keys() >= FIELDS:
        return None
    # A speed that was not measured is null.
    right = all(is_number(row[name]) or (name == SPEED and row[name] is None) for name in FIELDS)
    return row if right else None


class Writer:
    """Report a run in metrics.jsonl, in an event file and in the log; only process 0 writes files.

    All methods raise OSError with the file's name.
    """

    def __init__(self, workdir: StrPath, step: int, fields: dict):
        """Continue after `step`; `fields` of the configuration are TensorBoard's hyperparameters."""
        self._workdir, self._fields, self._events = workdir, fields, None
        if processes.index() == 0:
            drop_rows_after(workdir, step)
            self._events = EventFile(workdir)
            self._events.write_hparams(fields)

    def write_row(self, row: dict) -> None:
        """Write the row of a validation."""
        if self._events:
            append_row(self._workdir, row)
            values = {name: value for name, value in row.items() if name != "step" and value is not None}
            self._events.write_scalars(row["step"], values)
        log.info(
            f"{self._epoch(row['epoch'])}: validation top-1 error"
            f" {row['val_top1_error']:.4f}, top-5 error {row['val_top5_error']:.4f},"
            f" loss {row['val_loss']:.4f} (training loss {row['train_loss']:.4f})"
        )

    def write_progress(self, step: int, last_step: int, epochs: int, loss: float, clock: "Clock") -> None:
        """Write the progress of the run: `epochs` are complete, and `loss` is the mean since then."""
        rate = clock.images_per_second()
        if not rate:
            return
        seconds = round((last_step - step) * self._fields["batch_size"] / rate)
        log.info(
            f"{self._epoch(min(epochs + 1, self._fields['num_epochs']))}  step {step}/{last_step}"
            f"  loss {loss:.4f}  {rate:,.0f} images/s  {datetime.timedelta(seconds=seconds)} left"
        )
        if self._events:
            self._events.write_scalars(step, {SPEED: rate})

    def _epoch(self, epoch: int) -> str:
        """Return "epoch 3/8", or "epoch 9": the last step may complete more epochs than num_epochs."""
        last = self._fields["num_epochs"]
        return f"epoch {epoch}/{last}" if epoch <= last else f"epoch {epoch}"


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
        """Count a step; its loss may still be in computation."""
        if self._start is None:
            import jax  # here, because reading rows does not need it

            jax.block_until_ready(loss)
            self.restart()
        else:
            self._images += self._batch_size

    def restart(self) -> None:
        self._start, self._images, self._waited = time.monotonic(), 0, 0.0

    def waiting_for(self, batches: Iterable) -> Iterator:
        """Yield the batches, and count the time until each arrives as waiting."""
        asked = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def images_per_second(self) -> float | None:
        """Return the speed, or None if no step was counted yet."""
        return self._images / (time.monotonic() - self._start) if self._images else None

    def input_wait(self) -> float | None:
        """Return the fraction of the time spent waiting for batches, or None if no step was counted yet."""
        return self._waited / (time.monotonic() - self._start) if self._images else None

    def report_is_due(self) -> bool:
        """Return whether REPORT_SECONDS have passed since this was last true."""
        due = time.monotonic() - self._reported >= REPORT_SECONDS
        if due:
            self._reported = time.monotonic()
        return due
