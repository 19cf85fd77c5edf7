"""Images per second from storage to batches on the devices, beside TensorFlow and PyTorch.

    raw, jpeg    the two stores, through training_batches as in training, with data.threads=workers
    tf.data      tf.io.read_file, tf.io.decode_jpeg, batch, prefetch, with num_parallel_calls=workers
    torch        Pillow in a DataLoader with num_workers=workers processes

All read the same images in the same order, those of the training split's first steps, and give batches of
uint8 [batch, size, size, channels] with labels: on JAX's devices for the two stores, and as the library's own
tensors in the host's memory for the baselines. The baselines read the same JPEGs as the data set, one file
each, as is usual with them. The programs take turns (program.py). Each first passes over these images without
being measured, so that everything comes from the system's cache. Then, in each round, each passes over them
for at least `seconds` while the others wait. A pass is timed from its first call to its last batch. The
result is the median of the rounds and, for the ratio to a baseline, the median of the ratios within a round.
Machines drift, but a disturbance of a round affects all programs in it.

For rates per core, a program with one worker is pinned to one CPU, and with two workers to two, with all its
threads and processes. The rate therefore includes the transfer of batches, which the main thread does in
parallel with the workers. Dividing by CPU time instead would ignore the waiting that a pipeline causes.
"""

import importlib.util
import itertools
import logging
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np

from alexnet_jax.runtime.errors import InputError
from experiments.benchmarks.program import Program

WORKERS = (1, 2)
STORES = ("raw", "jpeg")
BASELINES = {"tf.data": "tensorflow", "torch": "torch"}  # with the package that each needs

log = logging.getLogger("alexnet_jax")


def run(config, steps: int, rounds: int, seconds: float) -> list[dict]:
    """Measure and print; return a dict for each program and number of workers.

    It has `what`, `workers`, `images_per_second` (the median), `times_better_baseline` (None without
    baselines) and `rounds` (images per second of each round). Raises InputError if the data set cannot be
    read, and ChildProcessError if a program ends.
    """
    from alexnet_jax.datasets.source import open_source

    if config.data.name == "folder":
        raise InputError("data.name: a folder has no stores to compare; give a TFDS data set")
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("benchmark input: this system cannot pin a process to CPUs; use Linux")
    for store in STORES:
        open_source(_with(config, store=store), "train_split")  # prepares it if necessary
    with tempfile.TemporaryDirectory(prefix="input-benchmark-") as folder:
        files = _write_files(config, steps, folder)
        names = [*STORES, *_baselines(files, config)]
        programs = {}  # (name, workers) -> program
        try:
            for workers, name in itertools.product(WORKERS, names):
                programs[name, workers] = Program(name, start, name, workers, config, steps, files)
            return _measure(programs, rounds, seconds)
        finally:
            for program in programs.values():
                program.stop()


def _with(config, **data):
    config = config.copy_and_resolve_references()
    config.data.update(data)
    return config


def _write_files(config, steps: int, folder: str) -> list[tuple[str, int]]:
    """Return (file, label) of every example of these steps; a repeated image has one file."""
    import tensorflow_datasets as tfds

    from alexnet_jax.datasets.batches import examples_of_step
    from alexnet_jax.datasets.prepared import prepared_builder

    builder = prepared_builder(config)
    examples = builder.as_data_source(config.data.train_split, decoders={"image": tfds.decode.SkipDecoding()})
    order = [examples_of_step(config.seed, step, config.batch_size, len(examples)) for step in range(steps)]
    files = {}
    for index in np.unique(order).tolist():
        example = examples[index]
        content = example["image"]
        path = pathlib.Path(folder, str(index))
        path.write_bytes(content if isinstance(content, bytes) else b"")
        files[index] = str(path), int(example["label"])
    return [files[index] for index in np.concatenate(order).tolist()]


def _baselines(files, config) -> list[str]:
    """Return the baselines that are installed and can do the same work, and log the others."""
    from alexnet_jax.datasets import images

    wanted = (config.data.image_size, config.data.image_size, config.data.channels)
    try:
        same = all(images.decode(pathlib.Path(file).read_bytes()).shape == wanted for file, _ in set(files))
    except ValueError:
        same = False
    if not same:
        size = "x".join(map(str, wanted))
        log.info(f"{', '.join(BASELINES)}: left out, the stored images are not JPEGs or PNGs of {size}")
        return []
    there = [name for name, package in BASELINES.items() if importlib.util.find_spec(package)]
    for name in BASELINES.keys() - set(there):
        log.info(f"{name}: left out, {BASELINES[name]} is not installed")
    return there


def _measure(programs: dict, rounds: int, seconds: float) -> list[dict]:
    rates = {each: [] for each in programs}
    for program in programs.values():
        program.facts()
        program.turn(0)  # fills the system's cache
    for number in range(1, rounds + 1):
        for (name, workers), program in programs.items():
            rate = program.turn(seconds)
            rates[name, workers].append(rate)
            each = f"{name:9}{workers} worker{'s' if workers > 1 else ' '}"
            log.info(f"round {number}/{rounds}  {each}  {rate:9,.0f} images/s")
    rows = [_row(rates, name, workers) for name, workers in rates]
    log.info(f"\n{'':9}workers   images/s   per core   times the better baseline")
    for row in rows:
        rate, ratio = row["images_per_second"], row["times_better_baseline"]
        last = f"{ratio:.2f}" if ratio is not None and row["what"] in STORES else ""
        log.info(f"{row['what']:9}{row['workers']:7}{rate:11,.0f}{rate / row['workers']:11,.0f}   {last}")
    return rows


def _row(rates: dict, name: str, workers: int) -> dict:
    own = rates[name, workers]
    others = [rates[other, workers] for other in BASELINES if (other, workers) in rates]
    ratios = [statistics.median(a / b for a, b in zip(own, other, strict=True)) for other in others]
    return {
        "what": name,
        "workers": workers,
        "images_per_second": round(statistics.median(own), 1),
        "times_better_baseline": round(min(ratios), 3) if ratios else None,
        "rounds": [round(rate, 1) for rate in own],
    }


def start(name: str, workers: int, config, steps: int, files):
    """Return (seconds -> images per second of passes over that time, facts) for the program `name`."""
    # Pin the process before any library counts the CPUs and starts its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    if name in STORES:
        one_pass = _ours(_with(config, store=name, threads=workers), steps)
    else:
        start_baseline = {"tf.data": _tf_data, "torch": _torch}[name]
        one_pass = start_baseline(files, config.batch_size, config.data.channels, workers)
    return lambda seconds: _images_per_second(one_pass, seconds), {}


def _images_per_second(one_pass, seconds: float) -> float:
    count, taken, begin = 0, 0.0, time.perf_counter()
    while not count or taken < seconds:
        for batch, _ in one_pass():
            count += len(batch)
        taken = time.perf_counter() - begin
    return count / taken


def _ours(config, steps: int):
    import jax

    from alexnet_jax.datasets.batches import training_batches
    from alexnet_jax.datasets.source import open_source
    from alexnet_jax.runtime.mesh import batch_sharding, make_mesh

    source = open_source(config, "train_split")
    sharding = batch_sharding(make_mesh(config, ("batch_size",)))
    return lambda: map(jax.block_until_ready, training_batches(source, config, sharding, 0, steps))


def _tf_data(files, batch: int, channels: int, workers: int):
    from alexnet_jax.runtime import quiet_tensorflow

    quiet_tensorflow.load("input")
    import tensorflow as tf

    def read(path, label):
        # By default TensorFlow uses the fast, inexact DCT. This function also reads PNG.
        return tf.io.decode_jpeg(tf.io.read_file(path), channels), label

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    paths, labels = zip(*files, strict=True)
    dataset = tf.data.Dataset.from_tensor_slices((list(paths), np.array(labels, np.int32)))
    dataset = dataset.map(read, num_parallel_calls=workers).batch(batch).prefetch(2)
    return lambda: iter(dataset.with_options(options))


def _torch(files, batch: int, channels: int, workers: int):
    import torch
    from PIL import Image

    mode = "RGB" if channels == 3 else "L"

    class Files:
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            path, label = files[index]
            with Image.open(path) as picture:
                picture = picture if picture.mode == mode else picture.convert(mode)
                return torch.from_numpy(np.array(picture)).reshape(*picture.size[::-1], channels), label

    loader = torch.utils.data.DataLoader(
        Files(), batch, num_workers=workers, persistent_workers=True, multiprocessing_context="fork"
    )
    return lambda: iter(loader)
