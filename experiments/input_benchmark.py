"""Images per second from storage to batches on the devices, beside what TensorFlow and PyTorch do.

    raw, jpeg    the two stores, through training_batches as in training, with data.threads=workers
    tf.data      tf.io.read_file, tf.io.decode_jpeg, batch, prefetch, with num_parallel_calls=workers
    torch        Pillow in a DataLoader with num_workers=workers processes

All read the same images in the same order, the training split's first steps, and give batches of uint8
[batch, size, size, channels] with labels: on JAX's devices for the two stores, as the library's own tensors
in the host's memory for the peers. The peers read the very JPEGs of the data set, from one file for each, as
is usual with them. The contenders take turns: each has a process of its own, in which it passes over these
images without being measured once, so everything comes from the system's cache; then, in each round, each
passes over them for `seconds` at least while the others wait. A pass is timed from its first call to its last
batch. The median of the rounds counts, and for the ratio to a peer the median of the ratios within a round:
machines drift, and what disturbs one round disturbs all contenders in it.

Per core: a contender with one worker is pinned to one CPU, with two to two, all its threads and processes.
So handing batches over, which the main thread does in parallel to the workers, is paid for as well. Dividing
by the CPU time used instead would leave out the waiting that a pipeline causes itself.
"""

import collections
import importlib.util
import logging
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.datasets import images
from alexnet_jax.datasets.batches import examples_of_step, training_batches
from alexnet_jax.datasets.prepared import prepared_builder
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.mesh import batch_sharding, make_mesh

WORKERS = (1, 2)
STORES = ("raw", "jpeg")
PEERS = {"tf.data": "tensorflow", "torch": "torch"}  # and the package that each needs

log = logging.getLogger("alexnet_jax")


def run(config, steps: int, rounds: int, seconds: float) -> list[dict]:
    """Measures and prints; a dict for each contender and number of workers.

    `what`, `workers`, `images_per_second` (median), `times_better_peer` (None without peers), `rounds` (each
    round's images per second). Raises InputError if the data set cannot be read.
    """
    if config.data.name == "folder":
        raise InputError("data.name: a folder has no stores to compare; give a TFDS data set")
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("benchmark input: this system cannot pin a process to CPUs; use Linux")
    for store in STORES:
        open_source(_with(config, store=store), "train_split")  # prepared where it is not yet
    with tempfile.TemporaryDirectory(prefix="input-benchmark-") as folder:
        files = _write_files(config, steps, folder)
        names = [*STORES, *_peers(files, config)]
        contenders = [Contender(name, n, config, steps, files) for n in WORKERS for name in names]
        try:
            return _measure(contenders, rounds, seconds)
        finally:
            for contender in contenders:
                contender.stop()


def _with(config, **data):
    config = config.copy_and_resolve_references()
    config.data.update(data)
    return config


def _write_files(config, steps: int, folder: str) -> list[tuple[str, int]]:
    """(file, label) of every example of these steps in order; an image that comes twice has one file."""
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


def _peers(files, config) -> list[str]:
    """The peers that are installed and can do the same work; a line about each of the others."""
    wanted = (config.data.image_size, config.data.image_size, config.data.channels)
    try:
        same = all(images.decode(pathlib.Path(file).read_bytes()).shape == wanted for file, _ in set(files))
    except ValueError:
        same = False
    if not same:
        size = "x".join(map(str, wanted))
        log.info(f"{', '.join(PEERS)}: left out, the stored images are not JPEGs or PNGs of {size}")
        return []
    there = [name for name, package in PEERS.items() if importlib.util.find_spec(package)]
    for name in PEERS.keys() - set(there):
        log.info(f"{name}: left out, {PEERS[name]} is not installed")
    return there


def _measure(contenders, rounds: int, seconds: float) -> list[dict]:
    rates = collections.defaultdict(list)
    for contender in contenders:
        contender.images_per_second(0)  # starts it, and fills the system's cache
    for number in range(1, rounds + 1):
        for contender in contenders:
            rate = contender.images_per_second(seconds)
            rates[contender.name, contender.workers].append(rate)
            log.info(f"round {number}/{rounds}  {contender}  {rate:9,.0f} images/s")
    rows = [_row(rates, name, workers) for name, workers in rates]
    log.info(f"\n{'':9}workers   images/s   per core   times the better peer")
    for row in rows:
        rate, ratio = row["images_per_second"], row["times_better_peer"]
        last = f"{ratio:.2f}" if ratio is not None and row["what"] in STORES else ""
        log.info(f"{row['what']:9}{row['workers']:7}{rate:11,.0f}{rate / row['workers']:11,.0f}   {last}")
    return rows


def _row(rates, name: str, workers: int) -> dict:
    own = rates[name, workers]
    peers = [rates[peer, workers] for peer in PEERS if (peer, workers) in rates]
    ratios = [statistics.median(a / b for a, b in zip(own, peer, strict=True)) for peer in peers]
    return {
        "what": name,
        "workers": workers,
        "images_per_second": round(statistics.median(own), 1),
        "times_better_peer": round(min(ratios), 3) if ratios else None,
        "rounds": [round(rate, 1) for rate in own],
    }


class Contender:
    """A process that passes over the images when it is asked to."""

    def __init__(self, name: str, workers: int, config, steps: int, files):
        self.name, self.workers = name, workers
        # Nothing that this process has started, such as JAX's threads, may be in it.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, name, workers, config, steps, files)
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        theirs.close()

    def __str__(self) -> str:
        return f"{self.name:9}{self.workers} worker{'s' if self.workers > 1 else ' '}"

    def images_per_second(self, seconds: float) -> float:
        """One pass, or as many as take that long."""
        self._connection.send(seconds)
        try:
            return self._connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} with {self.workers} workers ended: see above") from None

    def stop(self) -> None:
        self._connection.close()
        self._process.join()


def _serve(connection, name: str, workers: int, config, steps: int, files) -> None:
    """The contender's process: a measurement for each message, until the connection is closed."""
    # Before any library counts the CPUs and starts its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    if name in STORES:
        one_pass = _ours(_with(config, store=name, threads=workers), steps)
    else:
        start = {"tf.data": _tf_data, "torch": _torch}[name]
        one_pass = start(files, config.batch_size, config.data.channels, workers)
    while True:
        try:
            seconds = connection.recv()
        except EOFError:
            return
        connection.send(_images_per_second(one_pass, seconds))


def _images_per_second(one_pass, seconds: float) -> float:
    count, taken, begin = 0, 0.0, time.perf_counter()
    while not count or taken < seconds:
        for batch, _ in one_pass():
            count += len(batch)
        taken = time.perf_counter() - begin
    return count / taken


def _ours(config, steps: int):
    import jax

    source = open_source(config, "train_split")
    sharding = batch_sharding(make_mesh(config, ("batch_size",)))
    return lambda: map(jax.block_until_ready, training_batches(source, config, sharding, 0, steps))


def _tf_data(files, batch: int, channels: int, workers: int):
    from alexnet_jax.runtime import quiet_tensorflow

    quiet_tensorflow.load()
    import tensorflow as tf

    def read(path, label):
        # TensorFlow's default is the fast, inexact DCT; it reads PNG as well.
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
