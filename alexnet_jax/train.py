"""The training loop (section 5): step, validate after every epoch, lower the learning rate, checkpoint.

    train          check, open data and checkpoints, run the loop, evaluate the best checkpoint
    due            decide whether a checkpoint and a validation, a checkpoint or nothing follows a step
    _loop          the loop
    Run.validate   error rates of the validation split -> a row of metrics -> the schedule's next rate

`step.TrainState` has all that decides how a run continues, and a checkpoint holds all of it: a run that is
killed anywhere and started again with the same command ends at the same parameters.

At the end of an epoch the state is saved before it is validated, so that a kill during a validation loses
nothing. The validation adds its row to metrics.jsonl, then its error to the checkpoint (`Checkpoints.rate`),
and changes the state by that error alone (`Run.after_validation`). A run that resumes from a checkpoint with
an error repeats that change; without an error it validates first.

If there are several processes (runtime/processes.py), each runs all of this, but only process 0 writes into
the workdir, except for checkpoints.
"""

import dataclasses
import logging
import os
import sys
import types
from typing import Any, NoReturn

import jax
import ml_collections
import numpy as np
import optax

from alexnet_jax import config as configuration
from alexnet_jax import evaluate, optimizer, table
from alexnet_jax.datasets.batches import training_batches
from alexnet_jax.datasets.labels import with_labels_of
from alexnet_jax.datasets.source import Source, open_splits
from alexnet_jax.runtime import command_line, processes
from alexnet_jax.runtime.errors import Diverged, InputError
from alexnet_jax.runtime.files import StrPath
from alexnet_jax.runtime.mesh import batch_sharding, block_on_cpu, make_mesh, replicated
from alexnet_jax.runtime.object_store import is_url
from alexnet_jax.runtime.stop import StopRequest, StopRequested
from alexnet_jax.step import (
    TrainState,
    abstract_state,
    all_finite,
    init_state,
    make_eval_step,
    make_train_step,
    training_means,
)
from alexnet_jax.transfer import first_layers
from alexnet_jax.workdirs import identity, metrics, remote
from alexnet_jax.workdirs.checkpoint import METRIC, Checkpoints, resumable
from alexnet_jax.workdirs.workdir import is_evaluated, read_statistics, take, write_config

log = logging.getLogger("alexnet_jax")


def train(config, workdir: str) -> None:
    """Train the run of `workdir`, or resume it, and evaluate its best checkpoint.

    Raises InputError before anything is written, Diverged, and Unavailable for a full disk.
    """
    if is_url(workdir):
        with remote.run_folder(workdir) as folder:
            train(config, folder)
        return
    former_config = processes.all_processes(configuration.check_same_run, config, workdir)
    # Before the data is prepared, which may take an hour.
    processes.on_process_0(command_line.check_can_be_made, "--workdir", workdir)
    if config.eval.step != -1:
        raise InputError(
            f"eval.step: {config.eval.step} is for --mode=eval; training evaluates the best checkpoint (-1)"
        )
    mesh = make_mesh(config, ("batch_size", "eval.batch_size"))
    splits = "train_split", "val_split", "test_split"
    sources = processes.process_0_first(open_splits, config, *splits)
    processes.check_same({f"the content of {source.split}": source.fingerprint() for source in sources})
    train_source, val_source, test_source = sources
    former = processes.all_processes(lambda: identity.read(workdir) if former_config else None)
    taken, origin = first_layers(config, workdir, mesh, former_config, former)
    of_run = identity.of_run(configuration.run_fields(config), train_source, val_source, origin)
    processes.all_processes(identity.check, workdir, former, of_run)
    with (
        take(config, workdir, train_source, of_run),
        Checkpoints(workdir, config.checkpoint.keep) as checkpoints,
        processes.exit_on_error(),
        resumable(workdir),
    ):
        stored = read_statistics(workdir, config)
        # In a workdir with imported weights, the network's classes may be in another order.
        label_names = stored.get("label_names", ())
        tx = optimizer.make(config, len(train_source))
        run = Run(
            config, workdir, mesh, tx, checkpoints, evaluate.on_devices(stored, mesh),
            with_labels_of(label_names, train_source), with_labels_of(label_names, val_source),
        )  # fmt: skip
        state = run.restore_or_init(taken)
        ended, best = run.has_ended(state), checkpoints.best_step()
        if ended and processes.from_process_0(is_evaluated, config, workdir, test_source, best):
            return
        if processes.index() == 0:
            write_config(config, workdir)
        if not ended:
            _loop(run, state)
        checkpoints.wait()
        evaluate.evaluate(config, workdir)


def epochs(config, examples: int, step: int) -> int:
    """Return the number of epochs that `step` updates complete; batches continue across epochs."""
    return step * config.batch_size // examples


def last_step(config, examples: int) -> int:
    """Return the step that completes the last epoch."""
    return -(-config.num_epochs * examples // config.batch_size)


def due(config, examples: int, step: int) -> str:
    """Return the action due after `step`: "validate" (after a checkpoint), "save" (a checkpoint), or ""."""
    if epochs(config, examples, step) > epochs(config, examples, step - 1):
        return "validate"
    every = config.checkpoint.every_steps
    return "save" if every and step % every == 0 else ""


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that no step changes; TrainState has the others."""

    config: ml_collections.ConfigDict
    workdir: str
    mesh: jax.sharding.Mesh
    tx: optax.GradientTransformation
    checkpoints: Checkpoints
    statistics: dict  # on the devices
    train_source: Source
    val_source: Source

    def restore_or_init(self, taken: dict | None) -> TrainState:
        """Restore the latest state or, if there is none, draw the first one, with the layers `taken`."""
        state = self.checkpoints.restore_latest(abstract_state(self.config, self.mesh, self.tx))
        if state is None:
            state = init_state(self.config, self.mesh, self.tx)
            if taken:
                state = state.replace(params=state.params | taken)
        if self.awaits_validation(state):
            error = self.checkpoints.error(int(state.step))
            if error is not None:
                return self.after_validation(state, error)
        return state

    def awaits_validation(self, state: TrainState) -> bool:
        """Return whether the state's epoch is complete but not validated yet."""
        completes = due(self.config, len(self.train_source), int(state.step)) == "validate"
        return int(state.loss_count) > 0 and completes

    def has_ended(self, state: TrainState) -> bool:
        """Return whether all epochs are done and validated, or the schedule has ended the training."""
        if self.awaits_validation(state):
            return False
        done = int(state.step) >= last_step(self.config, len(self.train_source))
        return done or optimizer.ended(self.config, state.opt_state["learning_rate"])

    def validate(
        self, state: TrainState, eval_step, clock: metrics.Clock, writer: metrics.Writer, stop: StopRequest
    ) -> TrainState:
        """Save and validate a state, and return the state that the next epoch starts from.

        Raises StopRequested between two batches; the validation then follows when the run resumes.
        """
        config, step = self.config, int(state.step)
        train_loss, train_error = training_means(state)
        images_per_second, input_wait = clock.images_per_second(), clock.input_wait()
        self.save(state)
        rates = evaluate.error_rates(
            eval_step, state.params, self.val_source, config, self.mesh, self.statistics, stop.check
        )
        row: dict[str, Any] = {
            "step": step,
            "epoch": epochs(config, len(self.train_source), step),
            "learning_rate": self.learning_rate(state),
            "train_loss": train_loss,
            "train_top1_error": train_error,
            "val_loss": rates["loss"],
            "val_top1_error": rates["top1_error"],
            "val_top5_error": rates["top5_error"],
            "images_per_second": images_per_second and round(images_per_second, 1),
            "input_wait": input_wait and round(input_wait, 4),
        }
        self.check_finite(step, row["val_loss"], "the validation loss")
        writer.write_row(row)
        self.checkpoints.rate(step, {METRIC: row[METRIC]})  # after the row: an error implies a row
        remote.push(self.workdir, self.checkpoints.wait)
        state = self.after_validation(state, row[METRIC])
        _log_rate(config, row, self.learning_rate(state), state)
        return state

    def learning_rate(self, state: TrainState) -> float:
        """Return the learning rate of the last update, with the drops that `state` has by now."""
        drops, step = int(state.opt_state["learning_rate"].drops), max(int(state.step) - 1, 0)
        factor = optimizer.rate_factor(self.config, len(self.train_source), step)
        return optimizer.learning_rate(self.config, drops) * float(factor)

    def after_validation(self, state: TrainState, error: float) -> TrainState:
        """Return the state with the schedule's next rate and the epoch's sums at 0."""
        config = self.config
        plateau = jax.device_get(state.opt_state["learning_rate"])
        completed = epochs(config, len(self.train_source), int(state.step))
        plateau = optimizer.after_validation(config, plateau, error, completed)
        sums = "loss_sum", "error_sum", "loss_count", "low_sums"
        zero = {name: np.zeros_like(jax.device_get(getattr(state, name))) for name in sums}
        plateau, zero = jax.device_put((plateau, zero), replicated(self.mesh))
        return state.replace(opt_state=state.opt_state | {"learning_rate": plateau}, **zero)

    def save(self, state: TrainState) -> None:
        """Start writing a checkpoint. Raises Diverged if a parameter is not a finite number."""
        if not all_finite(state.params):
            self._diverged(int(state.step), "a parameter is not a finite number")
        self.checkpoints.save(state)
        remote.push(self.workdir, self.checkpoints.wait)  # does nothing for a local folder

    def check_finite(self, step: int, loss, what: str = "the loss") -> None:
        """Raise Diverged if a loss is not a finite number."""
        if not np.isfinite(loss):
            self._diverged(step, f"{what} is {float(loss)}")

    def _diverged(self, step: int, what: str) -> NoReturn:
        self.checkpoints.wait()
        good = self.checkpoints.latest_step(before=step)
        where = "there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}"
        raise Diverged(
            f"step {step}: {what}; {where} ({self.workdir}/checkpoints); lower optimizer.learning_rate"
        )


def _loop(run: Run, state: TrainState) -> None:
    """Train to the last step, or until the schedule ends. Raises Diverged, or exits on SIGTERM."""
    config, mesh, source, first = run.config, run.mesh, run.train_source, int(state.step)
    last = last_step(config, len(source))
    # If a validation is to be repeated, its row is dropped too.
    writer = metrics.Writer(
        run.workdir, first - run.awaits_validation(state), dict(configuration.flatten(config))
    )
    _announce(run, state)
    train_step, eval_step = make_train_step(config, mesh, run.tx), make_eval_step(config, mesh, views=1)
    clock, loss = metrics.Clock(config.batch_size), 0.0
    with processes.watchdog(config.mesh.watchdog_minutes), StopRequest() as stop:
        try:
            if run.awaits_validation(state):
                state = run.validate(state, eval_step, clock, writer, stop)
                if run.has_ended(state):
                    return
            batches = training_batches(source, config, batch_sharding(mesh), first, last)
            for step, (images, labels) in enumerate(clock.waiting_for(batches), first + 1):
                state, before = block_on_cpu(mesh, state), loss
                state, loss = train_step(state, images, labels, run.statistics)
                # One step late: an accelerator gets its next step before we wait for the last one.
                run.check_finite(step - 1, before)
                clock.tick(loss)
                then = due(config, len(source), step)
                if then:
                    run.check_finite(step, loss)
                if then == "save":
                    run.save(state)
                elif then == "validate":
                    state = run.validate(state, eval_step, clock, writer, stop)
                    clock.restart()
                if clock.report_is_due():
                    mean, _ = training_means(state)
                    writer.write_progress(step, last, epochs(config, len(source), step), mean, clock)
                stop.check()
                if then == "validate" and run.has_ended(state):
                    break
        except StopRequested as stopped:
            run.check_finite(int(state.step), loss)
            run.save(state)  # does nothing if it was saved before a validation
            run.checkpoints.wait()
            log.info(f"{stopped}; step {int(state.step)} is saved, the same command resumes")
            raise SystemExit(128 + stopped.signal) from None


def _announce(run: Run, state: TrainState) -> None:
    config, step = run.config, int(state.step)
    log.info(f"{table.describe(config)}\n")
    log.debug(f"parameters\n{metrics.parameter_table(state.params)}")  # in train.log only
    shape = " x ".join(f"{size} ({name})" for name, size in run.mesh.shape.items())
    last = last_step(config, len(run.train_source))
    steps = f"steps {step + 1} to {last}" if step < last else "no step"
    length = f"{config.num_epochs} epoch{'s' * (config.num_epochs != 1)}"
    validation = f"the validation of step {step}, then " if run.awaits_validation(state) else ""
    log.info(
        f"{'resuming' if step else 'training'} {run.workdir} on a mesh of {shape} {jax.default_backend()}"
        f" devices: {validation}{steps}, {length}"
        f" of {len(run.train_source):,} images, batches of {config.batch_size}"
    )


def _log_rate(config, row: dict[str, Any], rate: float, state: TrainState) -> None:
    if optimizer.ended(config, state.opt_state["learning_rate"]):
        log.info("the validation error no longer improves at the lowest learning rate: training ends")
    elif rate != row["learning_rate"] and row["epoch"] < config.num_epochs:
        scheduled = config.optimizer.drop_epochs
        why = "as optimizer.drop_epochs says" if scheduled else "the validation error stopped improving"
        log.info(f"{why}: learning rate {rate:g}")


class _Module(types.ModuleType):
    """The module `alexnet_jax.train`, which trains when it is called."""

    def __call__(self, config, workdir: StrPath) -> None:
        """Check the configuration, and call `train`. Raises InputError."""
        configuration.check(config)
        train(config, os.path.expanduser(os.fspath(workdir)))


sys.modules[__name__].__class__ = _Module
