"""The training loop (section 5): step, validate after every epoch, lower the learning rate, checkpoint.

    train          checks, opens data and checkpoints, runs the loop, evaluates the best checkpoint
    Run.loop       the loop
    Run.validate   errors on the validation split -> schedule -> metrics.jsonl -> checkpoint

The paper's sections elsewhere: 2 in images.py (`fit`) and datasets/statistics.py, 3 in model.py and
layers.py, 3.2 also in parallel.py, 4.1 in augment.py, 4.2 in layers.py, 5's update rule and schedule in
optimizer.py, all numbers in configs/paper.py. One step, and the devices that run it, are in parallel.py.

All that decides how a run goes on is in `parallel.TrainState`, and a checkpoint holds all of it: a run that
is killed anywhere and started again with the same command ends at the same parameters.

Of several processes (processes.py) all run all of this; process 0 alone writes into the workdir what is not a
checkpoint.
"""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import signal
import time

import jax
import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax import evaluate, network, optimizer
from alexnet_jax.datasets import statistics
from alexnet_jax.datasets.batches import training_batches
from alexnet_jax.datasets.labels import check_labels, with_labels_of
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime import processes, quiet_tensorflow
from alexnet_jax.runtime.errors import Diverged, InputError
from alexnet_jax.runtime.files import write_text
from alexnet_jax.runtime.mesh import batch_sharding, block_on_cpu, make_mesh, replicated
from alexnet_jax.step import abstract_state, all_finite, init_state, make_eval_step, make_train_step
from alexnet_jax.workdirs.checkpoint import METRIC, Checkpoints
from alexnet_jax.workdirs.workdir import read_config, write_config

quiet_tensorflow.load()  # before clu does
from clu import metric_writers, parameter_overview, periodic_actions  # noqa: E402

log = logging.getLogger("alexnet_jax")


def train(config, workdir: str) -> None:
    """Trains, or goes on training, the run of `workdir`, and evaluates its best checkpoint.

    Raises InputError before anything is written, and Diverged.
    """
    processes.all_processes(configuration.check_same_run, config, workdir)
    starts = not os.path.isdir(os.path.join(workdir, "checkpoints"))
    if config.eval.step != -1:
        raise InputError(
            f"eval.step: {config.eval.step} is for --mode=eval; training evaluates the best (-1)"
        )
    mesh = make_mesh(config, ("batch_size", "eval.batch_size"))
    train_source, val_source = processes.process_0_first(_open_data, config)
    if config.init_from and starts:
        _layers_of_other_run(config, mesh)
    with (
        _open_workdir(config, workdir, train_source),
        Checkpoints(workdir, config.checkpoint.keep) as checkpoints,
        processes.exit_on_error(),
    ):
        arrays = statistics.load(os.path.join(workdir, "statistics.npz"))
        # Another order than the data set's own where the workdir was made by an import of weights.
        train_source, val_source = (
            with_labels_of(arrays.get("label_names", ()), source) for source in (train_source, val_source)
        )
        run = Run(config, workdir, mesh, train_source, val_source, arrays, checkpoints)
        if run.ended:
            found = evaluate.read(workdir)
            wanted = {
                "step": checkpoints.best_step(),
                "views": config.eval.views,
                "split": config.data.test_split,
                "data": config.data.name,
            }
            if wanted.items() <= found.items():
                what = f"step {found['step']} on {found['split']}"
                log.info(f"the run in {workdir} is finished: {evaluate.in_words(found)}; {what}")
                return
        if processes.index() == 0:
            write_config(config, workdir)
        if not run.ended:
            run.loop()
        checkpoints.wait()
        evaluate.evaluate(config, workdir)


def _open_data(config) -> tuple:
    """The training and the validation split; they are prepared first where they are not yet."""
    train_source = open_source(config, "train_split")
    val_source = open_source(config, "val_split")
    open_source(config, "test_split")  # only to know now that it is there
    check_labels(config, train_source)
    return train_source, val_source


@contextlib.contextmanager
def _open_workdir(config, workdir: str, source):
    """Within the block the workdir is this run's, and holds what its checkpoints belong to."""
    with contextlib.ExitStack() as stack:
        processes.on_process_0(_take_workdir, stack, config, workdir, source)
        processes.all_processes(_find_workdir, workdir)
        yield


def _take_workdir(stack, config, workdir: str, source) -> None:
    path = os.path.join(workdir, "statistics.npz")
    try:
        os.makedirs(workdir, exist_ok=True)
        lock = stack.enter_context(open(os.path.join(workdir, ".lock"), "a"))  # noqa: SIM115
        handler = logging.FileHandler(os.path.join(workdir, "train.log"))
        stack.enter_context(contextlib.closing(handler))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however the process ends
        except BlockingIOError:
            raise InputError(
                f"--workdir={workdir}: another process trains there; wait, or give another"
            ) from None
        except OSError:
            log.warning(f"{workdir}: this file system has no locks; see that one program trains there")
        if read_config(workdir) is None or statistics.load(path) is None:
            label_names = np.array(source.label_names)
            statistics.save(path, {**statistics.of_source(source), "label_names": label_names})
        if read_config(workdir) is None:
            write_config(config, workdir)
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be written ({error}); give another") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    stack.callback(log.removeHandler, handler)


def _find_workdir(workdir: str) -> None:
    if statistics.load(os.path.join(workdir, "statistics.npz")) is None:
        raise InputError(
            f"--workdir={workdir}: what process 0 wrote there is not found; give a folder that all share"
        )


def _layers_of_other_run(config, mesh) -> dict:
    """Parameters of `init_layers` in the best checkpoint of the workdir `init_from` (section 7, table 2).

    Raises InputError where it has none, or layers of other shapes.
    """
    workdir = os.path.expanduser(config.init_from)
    other = read_config(workdir)
    if other is None:
        raise InputError(f"init_from: {workdir} has no config.json; give the workdir of another run")
    configuration.check(other)
    ours, theirs = (
        abstract_state(network, mesh, optimizer.make(network)).params for network in (config, other)
    )
    for layer in config.init_layers:
        for params, whose in ((ours, "this network"), (theirs, workdir)):
            if layer not in params:
                raise InputError(f"init_layers: {layer!r} is not in {whose}, which has {', '.join(params)}")
        shapes = [[x.shape for x in jax.tree.leaves(params[layer])] for params in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"init_layers: {layer} is {shapes[0]} in {workdir} and {shapes[1]} here; leave it out"
            )
    step, params = evaluate.stored_params(other, workdir, mesh)
    log.info(f"starting from step {step} of {workdir}: {', '.join(config.init_layers)}")
    return {layer: params[layer] for layer in config.init_layers}


class Run:
    """A run of `workdir` from where its checkpoints left it."""

    def __init__(self, config, workdir, mesh, train_source, val_source, arrays, checkpoints):
        self.config, self.workdir, self.mesh, self.checkpoints = config, workdir, mesh, checkpoints
        self.train_source, self.val_source = train_source, val_source
        self.arrays = evaluate.on_devices(arrays, mesh)
        self.rule = optimizer.make(config)
        self.metrics_path = os.path.join(workdir, "metrics.jsonl")
        # The step that completes the last epoch; batches run on across epochs.
        self.last_step = -(-config.num_epochs * len(train_source) // config.batch_size)
        self.state = checkpoints.restore_latest(abstract_state(config, mesh, self.rule))
        if self.state is None:
            self.state = init_state(config, mesh, self.rule)
            if config.init_from:
                params = self.state.params | _layers_of_other_run(config, mesh)
                self.state = self.state.replace(params=params)
        self.first_step = int(self.state.step)
        plateau = self.state.opt_state["learning_rate"]
        self.ended = self.first_step >= self.last_step or optimizer.ended(config, plateau)

    def epochs(self, step: int) -> int:
        """Epochs that `step` updates complete."""
        return step * self.config.batch_size // len(self.train_source)

    def loop(self) -> None:
        """Trains to the last step, or to where the schedule ends it. Raises Diverged, or exits on SIGTERM."""
        config, mesh = self.config, self.mesh
        if processes.index() == 0:
            _keep_rows(self.metrics_path, self.first_step)
            self.writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(self.workdir))
        else:
            self.writer = metric_writers.MultiWriter([])
        self.writer.write_hparams(dict(configuration.flatten(config)))
        self._announce()
        self.eval_step = make_eval_step(config, mesh, views=1)
        step_fn = make_train_step(config, mesh, self.rule)
        sharding = batch_sharding(mesh)
        batches = training_batches(self.train_source, config, sharding, self.first_step, self.last_step)
        self.clock = _Clock(config.batch_size)
        progress = periodic_actions.PeriodicCallback(every_secs=10, callback_fn=self._progress)
        self.unchecked = None
        with _StopRequest(self.first_step) as stop, contextlib.closing(self.writer):
            for step, (images, labels) in enumerate(self.clock.waiting_for(batches), self.first_step + 1):
                state = block_on_cpu(mesh, self.state)
                self.state, loss = step_fn(state, images, labels, self.arrays)
                # One step late, so that an accelerator has its next step before we wait for the last one.
                self._check_loss()
                self.unchecked = step, loss
                self.clock.tick(loss)
                ended = False
                if self.epochs(step) > self.epochs(step - 1):
                    ended = self.validate(step)
                elif config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0:
                    self.save()
                progress(step)
                if stop.after(step):
                    self.save()
                    self.checkpoints.wait()
                    log.info(f"stopped by {stop.name}; step {step} is saved, the same command goes on")
                    raise SystemExit(128 + stop.signal)
                if ended:
                    break

    def validate(self, step: int) -> bool:
        """Validates after `step` updates; True where the schedule ends the training."""
        self._check_loss()
        images_per_second, input_wait = self.clock.images_per_second(), self.clock.input_wait()
        result = evaluate.error_rates(
            self.eval_step, self.state.params, self.val_source, self.config, self.mesh, self.arrays
        )
        opt_state = self.state.opt_state
        plateau = optimizer.after_validation(
            self.config, jax.device_get(opt_state["learning_rate"]), result["top1_error"], self.epochs(step)
        )
        ended = optimizer.ended(self.config, plateau)
        row = {
            "step": step,
            "epoch": self.epochs(step),
            "learning_rate": self._learning_rate(),
            "train_loss": float(self.state.loss_sum) / int(self.state.loss_count),
            "train_top1_error": float(self.state.error_sum) / int(self.state.loss_count),
            "val_loss": result["loss"],
            "val_top1_error": result["top1_error"],
            "val_top5_error": result["top5_error"],
            "images_per_second": round(images_per_second, 1),
            "input_wait": round(input_wait, 4),
        }
        if not np.isfinite(row["val_loss"]):
            self._diverged(step, f"the validation loss is {row['val_loss']}")
        everywhere = replicated(self.mesh)
        zero = {"loss_sum": np.float32(0), "error_sum": np.float32(0), "loss_count": np.int32(0)}
        self.state = self.state.replace(
            opt_state=opt_state | {"learning_rate": jax.device_put(plateau, everywhere)},
            **jax.device_put(zero, everywhere),
        )
        if processes.index() == 0:
            with open(self.metrics_path, "a") as file:
                file.write(json.dumps(row) + "\n")
        self.writer.write_scalars(step, {name: value for name, value in row.items() if name != "step"})
        self.save({METRIC: row[METRIC]})
        log.info(
            f"epoch {row['epoch']}/{self.config.num_epochs}: validation top-1 error"
            f" {row['val_top1_error']:.4f}, top-5 error {row['val_top5_error']:.4f},"
            f" loss {row['val_loss']:.4f} (training loss {row['train_loss']:.4f})"
        )
        if ended:
            log.info("the validation error no longer improves at the lowest learning rate: training ends")
        elif self._learning_rate() != row["learning_rate"]:
            scheduled = self.config.optimizer.drop_epochs
            why = "as optimizer.drop_epochs says" if scheduled else "the validation error stopped improving"
            log.info(f"{why}: learning rate {self._learning_rate():g}")
        self.clock.restart()
        return ended

    def save(self, metrics=None) -> None:
        self._check_loss()
        if not all_finite(self.state.params):
            self._diverged(int(self.state.step), "a parameter is not a finite number")
        self.checkpoints.save(self.state, metrics)

    def _learning_rate(self) -> float:
        return optimizer.learning_rate(self.config, int(self.state.opt_state["learning_rate"].drops))

    def _check_loss(self) -> None:
        if self.unchecked is not None:
            (step, loss), self.unchecked = self.unchecked, None
            if not np.isfinite(loss):
                self._diverged(step, f"the loss is {float(loss)}")

    def _diverged(self, step: int, what: str):
        self.checkpoints.wait()
        good = self.checkpoints.latest_step()
        where = "there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}"
        raise Diverged(
            f"step {step}: {what}; {where} ({self.workdir}/checkpoints); lower optimizer.learning_rate"
        )

    def _announce(self) -> None:
        log.info(f"{network.describe(self.config)}\n")
        overview = parameter_overview.get_parameter_overview(self.state.params, include_stats="global")
        log.debug(f"parameters\n{overview}")  # to train.log only
        shape = " x ".join(f"{size} ({name})" for name, size in self.mesh.shape.items())
        log.info(
            f"{'resuming' if self.first_step else 'training'} {self.workdir} on a mesh of {shape}"
            f" {jax.default_backend()} devices: steps {self.first_step + 1} to {self.last_step},"
            f" {self.config.num_epochs} epochs of {len(self.train_source):,} images, batches of"
            f" {self.config.batch_size}"
        )

    def _progress(self, step: int, t: float) -> None:
        del t
        rate = self.clock.images_per_second()
        if not rate:
            return
        left = datetime.timedelta(seconds=round((self.last_step - step) * self.config.batch_size / rate))
        loss = float(self.state.loss_sum) / max(int(self.state.loss_count), 1)
        log.info(
            f"epoch {self.epochs(step) + 1}/{self.config.num_epochs}  step {step}/{self.last_step}"
            f"  loss {loss:.4f}  {rate:,.0f} images/s  {left} left"
        )
        self.writer.write_scalars(step, {"images_per_second": rate})


class _Clock:
    """Speed since `restart`; the first step of a run, which compiles, is not counted."""

    def __init__(self, batch_size: int):
        self._batch_size, self._start, self._images, self._waited = batch_size, None, 0, 0.0

    def tick(self, loss) -> None:
        """After each step."""
        if self._start is None:
            jax.block_until_ready(loss)
            self.restart()
        else:
            self._images += self._batch_size

    def restart(self) -> None:
        self._start, self._images, self._waited = time.monotonic(), 0, 0.0

    def waiting_for(self, batches):
        """The batches; the time until each is there counts as waiting."""
        asked = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def images_per_second(self) -> float:
        return self._images / (time.monotonic() - self._start)

    def input_wait(self) -> float:
        """The fraction of the time that was spent waiting for batches."""
        return self._waited / (time.monotonic() - self._start)


class _StopRequest:
    """Within the block, SIGTERM and SIGINT ask for a stop after the step; a second one stops at once.

    To any of several processes, and all stop after the same step.
    """

    def __init__(self, first_step: int):
        self.signal, self._first_step, self._several = 0, first_step, processes.count() > 1

    def __enter__(self):
        self._former = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        if self._several:
            processes.watch_preemption(self._first_step)  # has a handler of its own for SIGTERM
            signal.signal(signal.SIGINT, self._pass_on)
        else:
            for number in self._former:
                signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name

    def after(self, step: int) -> bool:
        """Whether to stop after `step`; asked after every step."""
        if self._several and processes.preempted(step):
            self.signal = signal.SIGTERM
        return bool(self.signal)

    def _ask(self, number, frame):
        del frame
        self.signal = number
        signal.signal(number, self._former[number])
        log.info(f"{self.name}: saving after this step")

    def _pass_on(self, number, frame):
        del frame
        signal.signal(number, self._former[number])
        os.kill(os.getpid(), signal.SIGTERM)


def _keep_rows(path: str, last_step: int) -> None:
    """Drops the rows of metrics.jsonl after `last_step`: those validations are made again."""
    try:
        with open(path) as file:
            lines = file.readlines()
    except FileNotFoundError:
        return
    rows = [row for row in map(_parse, lines) if row is not None and row["step"] <= last_step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _parse(line: str):
    try:
        return json.loads(line)
    except ValueError:
        return None  # the line that a killed run was writing
