"""Batches on the devices, from the examples of a source.

    training_batches     the examples of step n are a function of (seed, n), so a run resumes at any step
    evaluation_batches   every example once, the last batch padded and marked

The host reads and decodes on Grain's threads. Cropping, flipping and normalising belong to the compiled step
(augment.py). TensorFlow is not imported here, because only the preparation of a data set needs it.
"""

import functools
from collections.abc import Iterator

import grain
import jax
import numpy as np

from alexnet_jax.datasets.source import Source
from alexnet_jax.runtime.progress import cores

# Bounds for data.threads=0. Even with few cores, several threads hide the latency of storage. Each holds a
# batch: all of them at most this many images, 800 MB of the paper's, unless batches are very large.
LEAST_THREADS, MOST_IMAGES = 4, 4096


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    # The raw words of a counter-based generator are the same in every version of NumPy, unlike `permutation`.
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(examples), kind="stable")


def examples_of_step(
    seed: int, step: int, batch_size: int, examples: int, reshuffle: bool = True
) -> np.ndarray:
    """Return the indices [batch_size] of a step, from 0; batches continue across epochs.

    Each epoch is in a new order or, without `reshuffle`, in the order of the first epoch.
    """
    positions = step * batch_size + np.arange(batch_size)
    epochs, places = positions // examples * reshuffle, positions % examples
    orders = {epoch: _epoch_order(seed, int(epoch), examples) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])


def _local_rows(sharding, batch_size: int) -> np.ndarray:
    """Return the rows of the global batch that this process's devices hold, in order."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for (rows,) in slices]))


def _to_devices(sharding, batch_size: int, arrays):
    """Return global arrays from the rows that this process read; the devices of a pair get the same rows."""
    make = jax.make_array_from_process_local_data
    return tuple(make(sharding, array, (batch_size, *array.shape[1:])) for array in arrays)


def _read_ahead(read, first: int, last: int, threads: int, images: int):
    """Return an iterator over read(first), …, read(last - 1), in order, computed several at a time.

    Each reads as many `images`.
    """
    threads = threads or min(max(cores(), LEAST_THREADS), max(MOST_IMAGES // images, LEAST_THREADS))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2 * LEAST_THREADS))
    return iter(grain.MapDataset.range(first, last).map(read).to_iter_dataset(options))


def training_batches(
    source: Source, config, sharding, first_step: int, last_step: int
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yield (images, labels) of each step from first_step up to last_step, as global arrays.

    uint8 [batch_size, image_size, image_size, channels] and int32 [batch_size]. Raises as `source.read` does.
    """
    rows = _local_rows(sharding, config.batch_size)

    def read(step):
        examples = examples_of_step(
            config.seed, int(step), config.batch_size, len(source), config.data.reshuffle
        )
        return source.read(examples[rows])

    for local in _read_ahead(read, first_step, last_step, config.data.threads, len(rows)):
        yield _to_devices(sharding, config.batch_size, local)


def evaluation_batches(
    source: Source, batch_size: int, sharding, threads: int
) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """Yield (images, labels, real) over the whole source once, as global arrays.

    Batches have `batch_size` examples, or only as many as a smaller source has, rounded up to split evenly
    over the devices. Images and labels are as in `training_batches`; `real`, bool [batch_size], is False for
    padding, which repeats the last example. Raises as `source.read` does.
    """
    places = sharding.mesh.shape["data"]
    batch_size = min(batch_size, -(-len(source) // places) * places)
    rows = _local_rows(sharding, batch_size)

    def read(batch):
        positions = int(batch) * batch_size + rows
        real = positions < len(source)
        return *source.read(np.minimum(positions, len(source) - 1)), real

    for local in _read_ahead(read, 0, -(-len(source) // batch_size), threads, len(rows)):
        yield _to_devices(sharding, batch_size, local)
