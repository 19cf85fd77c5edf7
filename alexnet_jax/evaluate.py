"""Error rates of a network on a split (section 6): one view in training, ten at the end (4.1)."""

import logging
import os
from typing import Any

import jax

from alexnet_jax import optimizer
from alexnet_jax.datasets import statistics
from alexnet_jax.datasets.batches import evaluation_batches
from alexnet_jax.datasets.labels import check_labels, with_labels_of
from alexnet_jax.datasets.source import Source, check_content, open_source
from alexnet_jax.runtime import processes, progress
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import StrPath
from alexnet_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from alexnet_jax.step import abstract_state, make_eval_step
from alexnet_jax.workdirs import identity
from alexnet_jax.workdirs.checkpoint import Checkpoints
from alexnet_jax.workdirs.workdir import read_result, read_statistics, write_result

log = logging.getLogger("alexnet_jax")


def error_rates(
    eval_step, params, source: Source, config, mesh, statistics, after_batch=lambda: None
) -> dict[str, float]:
    """Return means over all examples of `source`: examples, loss, top1_error, top5_error (fractions).

    `eval_step` is make_eval_step's; `statistics` are on the devices; `after_batch` is called after each batch
    and may raise.
    """
    sharding = batch_sharding(mesh)
    batches = evaluation_batches(source, config.eval.batch_size, sharding, config.data.threads)
    report = progress.Progress("evaluated", len(source), every=10)
    total = {"loss": 0.0, "top1_errors": 0.0, "top5_errors": 0.0, "examples": 0.0}
    processes.progress(slow=True)  # the first batch, before which the step is compiled
    for images, labels, real in batches:
        sums = jax.device_get(eval_step(params, images, labels, real, statistics))
        processes.progress()
        total = {name: total[name] + float(value) for name, value in sums.items()}
        after_batch()
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


def evaluate(config, workdir: StrPath) -> None:
    """Evaluate a checkpoint of a workdir, eval.step, on data.test_split and write eval.json."""
    stored = processes.all_processes(_statistics_of_writable, config, workdir)
    mesh = make_mesh(config, ("eval.batch_size",))
    source = processes.process_0_first(test_source, config)
    processes.check_same({f"data.test_split {key}": text for key, text in identity.of_result(source).items()})
    step, params = stored_params(config, workdir, mesh)
    images = f"{len(source):,} images of {config.data.test_split}, views of each: {config.eval.views}"
    log.info(f"evaluating step {step} on {images}")
    eval_step = make_eval_step(config, mesh, config.eval.views)
    labelled = with_labels_of(stored.get("label_names", ()), source)
    with processes.watchdog(config.mesh.watchdog_minutes):
        rates = error_rates(eval_step, params, labelled, config, mesh, on_devices(stored, mesh))
    result = {**_task(config, workdir, source, step), **rates}
    if processes.index() == 0:
        _report_other_content(result, read_result(workdir), workdir)
        write_result(result, workdir)
    log.info(f"{in_words(result)}; written to {workdir}/eval.json")


def _report_other_content(result: dict, former: dict, workdir: StrPath) -> None:
    """Log a line if the split of the former eval.json has another content now."""
    same_name = all(result[name] == former.get(name) for name in ("data", "split"))
    there, here = former.get("fingerprint"), result["fingerprint"]
    if same_name and there not in (None, here):
        log.info(
            f"{workdir}/eval.json: was of other content of {result['split']} (fingerprint {there} there,"
            f" {here} here); it is replaced"
        )


def is_done(config, workdir: StrPath, source: Source, step: int | None) -> bool:
    """Return whether eval.json is of checkpoint `step` on the test split `source`; say so, or what is not."""
    result, wanted = read_result(workdir), _task(config, workdir, source, step)
    other = [name for name in wanted if result.get(name) != wanted[name]]
    if result and other:
        how = "is of another" if other[0] in result else "does not name its"
        log.info(f"{workdir}/eval.json: {how} {' and '.join(other)}; evaluating again")
    elif result:
        where = f"step {step} on {result['split']}"
        log.info(f"the run in {workdir} is finished: {in_words(result)}; {where}")
    return bool(result) and not other


def _task(config, workdir: StrPath, source: Source, step: int | None) -> dict[str, Any]:
    """Return what decides the error rates: the data, the views and the weights."""
    data = {"data": config.data.name, "split": config.data.test_split, **identity.of_result(source)}
    return {**data, "views": config.eval.views, "run": identity.of_workdir(workdir), "step": step}


def _statistics_of_writable(config, workdir: StrPath) -> dict:
    if not os.access(workdir, os.W_OK):
        raise InputError(f"--workdir={workdir}: cannot be written, and eval.json goes there; copy it first")
    return read_statistics(workdir, config)


def in_words(result: dict) -> str:
    """Return the error rates and the loss as one line."""
    return (
        f"top-1 error {result['top1_error']:.4f}, top-5 error {result['top5_error']:.4f}, loss"
        f" {result['loss']:.4f} ({result['examples']:,} examples)"
    )


def test_source(config) -> Source:
    """Open the test split. Raises InputError."""
    source = open_source(config, "test_split")
    check_labels(config, source)
    check_content(source)  # now, in process 0 first
    return source


def stored_params(config, workdir: StrPath, mesh) -> tuple[int, dict]:
    """Restore (step, params) of a checkpoint of a workdir, eval.step, on the mesh. Raises InputError."""
    abstract = abstract_state(config, mesh, optimizer.make(config))
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore_params(abstract.params, config.eval.step)


def on_devices(stored: dict, mesh) -> dict:
    """Put the statistics that the compiled steps take on every device of the mesh."""
    return jax.device_put({name: stored[name] for name in statistics.ARRAYS}, replicated(mesh))
