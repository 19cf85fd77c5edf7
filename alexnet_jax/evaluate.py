"""Errors of a network on a split: one central view while training, ten views as in section 4.1 at the end."""

import json
import logging
import os

import jax

from alexnet_jax import optimizer
from alexnet_jax.datasets import statistics
from alexnet_jax.datasets.batches import evaluation_batches
from alexnet_jax.datasets.labels import check_labels, with_labels_of
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime import processes, progress
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text
from alexnet_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from alexnet_jax.step import abstract_state, make_eval_step
from alexnet_jax.workdirs.checkpoint import Checkpoints

log = logging.getLogger("alexnet_jax")


def error_rates(step, params, source, config, mesh, arrays) -> dict[str, float]:
    """Means over all examples of `source`: examples, loss, top1_error, top5_error (fractions in [0, 1]).

    `step` is make_eval_step's, `arrays` the statistics on the devices.
    """
    sharding = batch_sharding(mesh)
    batches = evaluation_batches(source, config.eval.batch_size, sharding, config.data.threads)
    report = progress.Progress("evaluated", len(source), every=10)
    total = {"loss": 0.0, "top1_errors": 0.0, "top5_errors": 0.0, "examples": 0.0}
    for images, labels, real in batches:
        sums = jax.device_get(step(params, images, labels, real, arrays))
        total = {name: total[name] + float(value) for name, value in sums.items()}
        if total["examples"] < len(source):  # its last line would come with every validation
            report(int(total["examples"]))
    examples = int(total["examples"])
    if examples != len(source):
        raise RuntimeError(f"evaluated {examples} examples of {len(source)}")
    return {
        "examples": examples,
        "loss": total["loss"] / examples,
        "top1_error": total["top1_errors"] / examples,
        "top5_error": total["top5_errors"] / examples,
    }


def evaluate(config, workdir: str) -> None:
    """Evaluates a checkpoint of a workdir, eval.step, on data.test_split and writes eval.json."""
    stored = processes.all_processes(_statistics_of_writable, workdir)
    mesh = make_mesh(config, ("eval.batch_size",))
    source = processes.process_0_first(test_source, config, stored)
    step, params = stored_params(config, workdir, mesh)
    images = f"{len(source):,} images of {config.data.test_split}, views of each: {config.eval.views}"
    log.info(f"evaluating step {step} on {images}")
    eval_step = make_eval_step(config, mesh, config.eval.views)
    result = error_rates(eval_step, params, source, config, mesh, on_devices(stored, mesh))
    where = {"data": config.data.name, "split": config.data.test_split}
    result = {**where, "views": config.eval.views, "step": step, **result}
    if processes.index() == 0:
        text = json.dumps(result, indent=2) + "\n"
        write_text(os.path.join(workdir, "eval.json"), text)
    log.info(f"{in_words(result)}; written to {workdir}/eval.json")


def in_words(result: dict) -> str:
    return (
        f"top-1 error {result['top1_error']:.4f}, top-5 error {result['top5_error']:.4f}, loss"
        f" {result['loss']:.4f} ({result['examples']:,} examples)"
    )


def stored_statistics(workdir: str) -> dict:
    """statistics.npz of a workdir. Raises InputError."""
    path = os.path.join(workdir, "statistics.npz")
    stored = statistics.load(path)
    if stored is None:
        raise InputError(f"{path}: missing or damaged; the workdir cannot be evaluated without it")
    return stored


def _statistics_of_writable(workdir: str) -> dict:
    if not os.access(workdir, os.W_OK):
        raise InputError(f"--workdir={workdir}: cannot be written, and eval.json goes there; copy it first")
    return stored_statistics(workdir)


def test_source(config, stored: dict):
    """The test split with the labels of the network whose statistics.npz is `stored`. Raises InputError."""
    source = open_source(config, "test_split")
    check_labels(config, source)
    return with_labels_of(stored.get("label_names", ()), source)


def stored_params(config, workdir: str, mesh) -> tuple[int, dict]:
    """(step, params) of a checkpoint of a workdir, eval.step, on the mesh. Raises InputError."""
    abstract = abstract_state(config, mesh, optimizer.make(config))
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore_params(abstract.params, config.eval.step)


def read(workdir: str) -> dict:
    """eval.json, or {} where there is none that can be read."""
    try:
        with open(os.path.join(workdir, "eval.json")) as file:
            result = json.load(file)
    except (OSError, ValueError):
        return {}
    wanted = {"split", "views", "step", "examples", "loss", "top1_error", "top5_error"}
    return result if isinstance(result, dict) and wanted <= result.keys() else {}


def on_devices(stored: dict, mesh) -> dict:
    """The statistics that the compiled steps take, on every device of the mesh."""
    arrays = {name: stored[name] for name in statistics.ARRAYS}
    return jax.device_put(arrays, replicated(mesh))
