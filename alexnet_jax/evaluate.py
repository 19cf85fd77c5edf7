"""Error rates of a network on a split (section 6), with one view in training and ten at the end (4.1)."""

import logging
import os
from collections.abc import Iterable, Iterator

import jax

from alexnet_jax import optimizer
from alexnet_jax.datasets import statistics
from alexnet_jax.datasets.batches import evaluation_batches
from alexnet_jax.datasets.labels import with_labels_of
from alexnet_jax.datasets.source import Source, open_splits
from alexnet_jax.runtime import processes, progress
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import StrPath
from alexnet_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from alexnet_jax.step import abstract_state, make_eval_step
from alexnet_jax.workdirs import identity
from alexnet_jax.workdirs.checkpoint import Checkpoints
from alexnet_jax.workdirs.workdir import evaluation, in_words, read_result, read_statistics, write_result

log = logging.getLogger("alexnet_jax")


def error_rates(
    eval_step, params, source: Source, config, mesh, statistics, after_batch=lambda: None
) -> dict[str, float]:
    """Return the number of examples of `source` and their mean loss, top1_error and top5_error (fractions).

    `eval_step` comes from make_eval_step, `statistics` are on the devices, and `after_batch` is called as
    soon as each batch has been started, and may raise.
    """
    sharding = batch_sharding(mesh)
    batches = evaluation_batches(source, config.eval.batch_size, sharding, config.data.threads)
    report = progress.Progress("evaluated", len(source), every=10)
    total = {"loss": 0.0, "top1_errors": 0.0, "top5_errors": 0.0, "examples": 0.0}
    processes.progress(slow=True)  # the first batch waits for the step to be compiled

    def evaluated():
        for images, labels, real in batches:
            yield eval_step(params, images, labels, real, statistics)
            after_batch()

    for sums in _one_behind(evaluated()):
        sums = jax.device_get(sums)
        processes.progress()
        total = {name: total[name] + float(value) for name, value in sums.items()}
        if total["examples"] < len(source):  # without the last line, which every validation would print
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


def _one_behind(items: Iterable) -> Iterator:
    """Yield each item once there is a next one: an accelerator has a batch while we wait for another."""
    held: list = []
    for item in items:
        yield from held
        held = [item]
    yield from held


def evaluate(config, workdir: StrPath) -> None:
    """Evaluate the checkpoint eval.step of a workdir on data.test_split, and write eval.json."""
    stored = processes.all_processes(_statistics_of_writable, config, workdir)
    mesh = make_mesh(config, ("eval.batch_size",))
    (source,) = processes.process_0_first(open_splits, config, "test_split")
    processes.check_same({f"data.test_split {key}": text for key, text in identity.of_result(source).items()})
    step, params = stored_params(config, workdir, mesh)
    views = config.eval.views
    images = f"{len(source):,} images of {config.data.test_split}, with {views} view{'s' * (views > 1)} each"
    log.info(f"evaluating step {step} on {images}")
    eval_step = make_eval_step(config, mesh, views)
    labelled = with_labels_of(stored.get("label_names", ()), source)
    with processes.watchdog(config.mesh.watchdog_minutes):
        rates = error_rates(eval_step, params, labelled, config, mesh, on_devices(stored, mesh))
    result = {**evaluation(config, workdir, source, step), **rates}
    if processes.index() == 0:
        _report_other_content(result, read_result(workdir), workdir)
        write_result(result, workdir)
    log.info(f"{in_words(result)}; written to {workdir}/eval.json")


def _report_other_content(result: dict, former: dict, workdir: StrPath) -> None:
    """Log a line if the content of the split has changed since the former eval.json."""
    same_name = all(result[name] == former.get(name) for name in ("data", "split"))
    there, here = former.get("fingerprint"), result["fingerprint"]
    if same_name and there not in (None, here):
        log.info(
            f"{workdir}/eval.json: the content of {result['split']} has changed (fingerprint {there} there,"
            f" {here} here); replacing it"
        )


def _statistics_of_writable(config, workdir: StrPath) -> dict:
    if not os.access(workdir, os.W_OK):
        raise InputError(f"--workdir={workdir}: cannot be written, but eval.json goes there; copy it first")
    return read_statistics(workdir, config)


def stored_params(config, workdir: StrPath, mesh) -> tuple[int, dict]:
    """Restore (step, params) of the checkpoint eval.step of a workdir onto the mesh. Raises InputError."""
    abstract = abstract_state(config, mesh, optimizer.make(config))
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore_params(abstract.params, config.eval.step)


def on_devices(stored: dict, mesh) -> dict:
    """Put the statistics that the compiled steps need on every device of the mesh."""
    return jax.device_put({name: stored[name] for name in statistics.ARRAYS}, replicated(mesh))
