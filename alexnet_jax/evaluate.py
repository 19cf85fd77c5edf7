"""Errors of a network on a split: one central view while training, ten views as in section 4.1 at the end."""

import json
import logging
import os
import pathlib
import re

import jax
import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax import input_pipeline, optimizer, parallel, processes
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.datasets import statistics, streams
from alexnet_jax.errors import InputError

log = logging.getLogger("alexnet_jax")


def errors(step, params, source, config, mesh, arrays) -> dict[str, float]:
    """Means over all examples of `source`: examples, loss, top1_error, top5_error (fractions in [0, 1]).

    `step` is parallel.eval_step's, `arrays` the statistics on the devices.
    """
    sharding = parallel.batch_sharding(mesh)
    batches = input_pipeline.padded(source, config.eval.batch_size, sharding, config.data.threads)
    progress = streams.Progress("evaluated", len(source), every=10)
    total = {"loss": 0.0, "top1_errors": 0.0, "top5_errors": 0.0, "examples": 0.0}
    for images, labels, real in batches:
        sums = jax.device_get(step(params, images, labels, real, arrays))
        total = {name: total[name] + float(value) for name, value in sums.items()}
        if total["examples"] < len(source):  # its last line would come with every validation
            progress(int(total["examples"]))
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
    stored = processes.everyone(_statistics_of_writable, workdir)
    mesh = parallel.make_mesh(config, ("eval.batch_size",))
    source = processes.in_turn(test_source, config, stored)
    step, params = stored_params(config, workdir, mesh)
    images = f"{len(source):,} images of {config.data.test_split}, views of each: {config.eval.views}"
    log.info(f"evaluating step {step} on {images}")
    eval_step = parallel.eval_step(config, mesh, config.eval.views)
    result = errors(eval_step, params, source, config, mesh, on_devices(stored, mesh))
    where = {"data": config.data.name, "split": config.data.test_split}
    result = {**where, "views": config.eval.views, "step": step, **result}
    if processes.index() == 0:
        text = json.dumps(result, indent=2) + "\n"
        configuration.write_atomically(os.path.join(workdir, "eval.json"), text)
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
    source = input_pipeline.open_source(config, "test_split")
    check_labels(config, source)
    return with_labels_of(stored.get("label_names", ()), source)


def stored_params(config, workdir: str, mesh) -> tuple[int, dict]:
    """(step, params) of a checkpoint of a workdir, eval.step, on the mesh. Raises InputError."""
    abstract = parallel.abstract_state(config, mesh, optimizer.make(config))
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
    return jax.device_put(arrays, parallel.replicated(mesh))


def check_labels(config, source) -> None:
    classes = len(source.label_names)
    if classes > config.model.num_classes:
        raise InputError(
            f"model.num_classes: {config.model.num_classes}, but {config.data.name} has {classes} classes;"
            f" give {classes}"
        )


def imagenet_classes() -> list[str]:
    """ImageNet's 1000 classes of ILSVRC-2012, as "n01440764 tench", in the order of their WordNet ids."""
    text = pathlib.Path(__file__).with_name("imagenet_classes.txt").read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def with_labels_of(label_names, source):
    """`source` with the network's labels, where WordNet ids (n and eight digits) say which class is which.

    Both must name every class by one: a folder with 10 of ImageNet's 1000 classes, say. In all other cases
    label i of the data set is class i of the network. Raises InputError for a class that the network has not.
    """
    network, data = (
        [match[0] for match in (re.match(r"n\d{8}(?!\S)", str(name)) for name in names) if match]
        for names in (label_names, source.label_names)
    )
    all_named = len(network) == len(label_names) > 0 and len(data) == len(source.label_names)
    if not all_named or network == data:
        return source
    unknown = [wnid for wnid in data if wnid not in network]
    if unknown:
        raise InputError(
            f"data.name: the network lacks {len(unknown)} classes of the data set, first {unknown[0]}; leave"
            " them out"
        )
    log.info(f"the {len(data)} classes of the data set are found among the network's by their WordNet ids")
    return _Relabelled(source, [network.index(wnid) for wnid in data])


class _Relabelled:
    def __init__(self, source, labels):
        self._source, self._labels = source, np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices):
        images, labels = self._source.read(indices)
        return images, self._labels[labels]
