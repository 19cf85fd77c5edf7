"""Checkpoints of a workdir. No other module uses Orbax.

checkpoints/STEP/ holds `params` (all that evaluation needs), `rest` (the other fields of TrainState) and,
after validation, `metrics`. Writing is asynchronous; a folder has its final name only once it is complete.
The latest `checkpoint.keep` are kept, and the best: lowest validation top-1 error, the later one of equals.
The previous best is deleted when the next checkpoint is saved.

If there are several processes, each saves and restores the arrays of its own devices, in a shared workdir.
Process 0 decides which step is read.
"""

import asyncio
import contextlib
import json
import logging
import math
import operator
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax.runtime import files, processes
from alexnet_jax.runtime.errors import InputError, Unavailable, os_errors, reason, remedy
from alexnet_jax.runtime.files import StrPath, write_text
from alexnet_jax.runtime.stop import hold_signals

log = logging.getLogger("alexnet_jax")

State = Any  # a flax.struct.PyTreeNode with fields `step` and `params`

METRIC = "val_top1_error"
ASIDE = "damaged-"  # prefix of the folder of a checkpoint that cannot be read
_LARGEST = 1 << 20  # bytes of a checkpoint's metrics
_PATIENCE = 20  # seconds; processes that read a checkpoint wait in Orbax for one that could not


def has_checkpoints(workdir: StrPath) -> bool:
    """Return whether the workdir has a checkpoint, readable or not."""
    return any(name.isdigit() or name.startswith(ASIDE) for name in _names(workdir))


def _names(workdir: StrPath) -> list[str]:
    return files.list_folder(os.path.join(workdir, "checkpoints"))


@contextlib.contextmanager
def resumable(workdir: StrPath) -> Iterator[None]:
    """Raise Unavailable for an OSError in the block, with the step that the same command resumes from."""
    try:
        yield
    except OSError as error:
        path, steps = error.filename or workdir, [int(name) for name in _names(workdir) if name.isdigit()]
        then = f"the same command {f'resumes from step {max(steps)}' if steps else 'starts again'}"
        todo = remedy(error, then) or f"; {then}"
        raise Unavailable(f"{path}: cannot be written ({reason(error)}){todo}") from None


class Checkpoints:
    """The checkpoints of one workdir. Leaving the `with` block waits for unfinished writes."""

    def __init__(self, workdir: StrPath, keep: int | None = None):
        """Keep the `keep` latest and the best; None opens for reading only, even beside an active run."""
        self._folder = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._keep = keep

    def __enter__(self):
        if self._keep is not None:
            processes.on_process_0(self._put_aside_unrated)
        with contextlib.ExitStack() as quiet:
            quiet.enter_context(_orbax_is_quiet())
            with hold_signals():
                self._manager = files.retry(self._folder, self._open, waits=_waits())
            self._quiet = quiet.pop_all()
        return self

    def _open(self) -> ocp.CheckpointManager:
        if self._keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True, lightweight_initialize=True)
        else:
            policies = ocp.checkpoint_managers
            error = operator.itemgetter(METRIC)
            best = policies.BestN(
                get_metric_fn=error, reverse=True, n=1, keep_checkpoints_without_metrics=False
            )
            options = ocp.CheckpointManagerOptions(
                best_fn=error,  # the policy overrides it, but without it Orbax writes no metrics
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
                cleanup_tmp_directories=True,  # left by a killed run
            )
        try:
            return ocp.CheckpointManager(self._folder, item_names=("params", "rest"), options=options)
        except Exception:
            _join_orbax()  # its threads may still remove folders, which would fail another attempt
            raise

    def __exit__(self, kind, error, traceback):
        with self._quiet:
            try:
                with os_errors(self._folder):
                    self._manager.close()
            except OSError:
                if error is None:  # otherwise it was reported
                    raise

    def save(self, state: State, metrics: dict[str, float] | None = None) -> None:
        """Start writing a checkpoint, unless its step is saved already.

        Raises OSError if it, or the checkpoint before it, cannot be written.
        """
        step = int(state.step)
        processes.progress(slow=True)
        if step in self._steps():
            return
        items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
        with os_errors(self._folder):
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def rate(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a validation to a checkpoint once it is written, completely or not at all."""
        self.wait()
        processes.on_process_0(self._write_metrics, step, metrics)
        self._manager.reload()  # Orbax decides by metrics which to keep, and has read them before

    def _write_metrics(self, step: int, metrics: dict[str, float]) -> None:
        path = pathlib.Path(self._folder, str(step), "metrics", "metrics")  # as Orbax writes and reads it
        path.parent.mkdir(exist_ok=True)
        write_text(str(path), json.dumps(metrics))

    def error(self, step: int) -> float | None:
        """Return the validation error of a checkpoint, or None if it has none."""
        error = processes.from_process_0(self._error, step)
        return None if error is None or math.isinf(error) else error

    def restore_latest(self, abstract_state: State) -> State | None:
        """Return the latest readable state, placed as in `abstract_state`, or None if there is none.

        A field that an earlier version did not write is 0. Later checkpoints that cannot be read are reported
        and put aside, so that their steps can be saved again. If there are checkpoints but none can be read,
        raises InputError and changes nothing: the cause may pass, and the run must not start over.
        """
        steps = sorted(self._steps(), reverse=True)
        for number, step in enumerate(steps):
            items, written = _items(abstract_state), processes.from_process_0(self._fields, step)
            absent = {} if written is None else {n: x for n, x in items["rest"].items() if n not in written}
            items["rest"] = {name: x for name, x in items["rest"].items() if name not in absent}
            restored = self._try_restore(step, items)
            if restored is not None:
                processes.on_process_0(self._put_aside, *steps[:number])
                self._manager.reload()
                zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), absent)
                return abstract_state.replace(params=restored["params"], **restored["rest"], **zeros)
        if steps or any(name.startswith(ASIDE) for name in files.list_folder(self._folder)):
            raise InputError(f"{self._folder}: none of its checkpoints can be read; give another --workdir")
        return None

    def restore_params(self, abstract_params, step: int = -1) -> tuple[int, dict]:
        """Return (step, params) of a checkpoint.

        Step -1 is the best readable one, or the latest if none is rated. Raises InputError if there is no
        such checkpoint, or it cannot be read.
        """
        steps = self._steps()
        if step == -1:
            candidates = processes.from_process_0(self._best_first)
        elif step in steps:
            candidates = [step]
        else:
            there = ", ".join(map(str, sorted(steps))) or "no checkpoint"
            raise InputError(f"eval.step: {step} is not in {self._folder}, which has {there}")
        for candidate in candidates:
            restored = self._try_restore(candidate, {"params": abstract_params})
            if restored is not None:
                return candidate, restored["params"]
        raise InputError(f"{self._folder}: has no checkpoint that can be read; train first")

    def wait(self) -> None:
        """Wait until all writes are complete. Raises OSError if one fails."""
        with os_errors(self._folder):
            self._manager.wait_until_finished()
        processes.barrier(True)

    def best_step(self) -> int | None:
        return next(iter(processes.from_process_0(self._best_first)), None)

    def latest_step(self, before: float = math.inf) -> int | None:
        """Return the latest step, or the latest one below `before`."""
        return max((step for step in self._manager.all_steps() if step < before), default=None)

    def _steps(self) -> list[int]:
        """Return the steps that process 0 finds; other processes may see new folders late."""
        return processes.from_process_0(lambda: list(self._manager.all_steps()))

    def _fields(self, step: int) -> list[str] | None:
        """Return the fields of a checkpoint's `rest`, or None if its index cannot be read."""
        try:
            with open(os.path.join(self._folder, str(step), "rest", "_METADATA")) as file:
                leaves = json.load(file)["tree_metadata"].values()
            return sorted({leaf["key_metadata"][0]["key"] for leaf in leaves})
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # restoring reports it

    def _best_first(self) -> list[int]:
        errors = {step: self._error(step) for step in self._manager.all_steps()}
        return sorted(errors, key=lambda step: (math.inf if errors[step] is None else errors[step], -step))

    def _error(self, step: int) -> float | None:
        """Return a checkpoint's validation error: infinite without validation, None if unreadable."""
        try:
            path = os.path.join(self._folder, str(step), "metrics", "metrics")
            return files.read_json(path, _LARGEST)[METRIC] + 0.0
        except FileNotFoundError:
            return math.inf
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._warn(step, error)
            return None

    def _put_aside_unrated(self) -> None:
        """Put checkpoints with truncated metrics aside; Orbax does not open a folder with one."""
        for step in (int(name) for name in files.list_folder(self._folder) if name.isdigit()):
            if self._error(step) is None:
                self._put_aside(step)

    def _put_aside(self, *steps: int) -> None:
        for step in steps:
            target, number = os.path.join(self._folder, f"{ASIDE}{step}"), 0
            while os.path.exists(target):
                number += 1
                target = os.path.join(self._folder, f"{ASIDE}{step}.{number}")
            os.rename(os.path.join(self._folder, str(step)), target)

    def _try_restore(self, step: int, items: dict) -> dict | None:
        """Restore items of a checkpoint; warn and return None if it is damaged.

        Raises InputError in all processes if the checkpoint is there but one process cannot read it.
        """
        arguments = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        path, restored, unavailable = os.path.join(self._folder, str(step)), None, None

        def restore():
            return dict(self._manager.restore(step, args=ocp.args.Composite(**arguments)))

        try:
            with hold_signals():
                restored = files.retry(path, restore, waits=_waits())
        except Unavailable as error:
            unavailable = error
        except Exception as error:  # Orbax, tensorstore and the file system have no common exception
            self._warn(step, error)

        def pass_on():
            if unavailable is not None:
                raise unavailable

        try:
            if processes.barrier(restored is not None, _PATIENCE):
                return restored
            processes.all_processes(pass_on)
            return None
        except TimeoutError:
            raise InputError(
                f"{self._folder}/{step}: not every process can read it; make sure that all can, or rename it"
                f" to {ASIDE}{step} to resume from an earlier one, and restart all of them"
            ) from None

    def _warn(self, step: int, error: Exception) -> None:
        reason = (str(error).splitlines() or [""])[0][:120]
        log.warning(
            f"warning: checkpoint {self._folder}/{step} cannot be read ({type(error).__name__}: {reason});"
            " it is skipped"
        )


class _AwaitingLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for all its tasks before it closes."""

    def close(self) -> None:
        while not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _AwaitingLoops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _AwaitingLoop()


@contextlib.contextmanager
def _orbax_is_quiet() -> Iterator[None]:
    """Let Orbax finish every read and write within the block, and silence its log and asyncio's.

    It also raises what it logs. If one array cannot be read or written, Orbax closes its event loop before
    the others are done. Each of them would then print a traceback, at once or at some later time, and so
    would each thread that fails. A manager that cannot be opened leaves such a thread, too.
    """
    former = asyncio.get_event_loop_policy()
    levels = {library: library.level for library in map(logging.getLogger, ("absl", "asyncio"))}
    for library in levels:
        library.setLevel(logging.CRITICAL)
    asyncio.set_event_loop_policy(_AwaitingLoops())
    try:
        yield
    finally:
        try:
            _join_orbax()
        finally:
            asyncio.set_event_loop_policy(former)
            for library, level in levels.items():
                library.setLevel(level)


def _join_orbax() -> None:
    """Wait for Orbax's threads, at most _PATIENCE seconds for each."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            with contextlib.suppress(Exception):  # Orbax raises the thread's own failure here
                thread.join(_PATIENCE)


def _waits() -> tuple[float, ...]:
    """Return the waits between attempts to read; none with several processes, whose Orbax would not retry."""
    return () if processes.count() > 1 else files.WAITS


def _items(state) -> dict:
    rest = {name: value for name, value in vars(state).items() if name != "params"}
    return {"params": state.params, "rest": rest}
