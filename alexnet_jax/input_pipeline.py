"""From prepared examples to batches on the devices.

    open_source   a split of a data set: `source.read(indices)` -> uint8 images and labels, in any order
    batches       training: the examples of step n are a function of (seed, n), so a run resumes at any step
    padded        evaluation: every example once, the last batch padded and marked

The host reads and decodes (TFDS's ArrayRecord, on Grain's threads); cropping, flipping and normalizing are
part of the compiled step (augment.py). TensorFlow is not imported here: only preparing a data set needs it.
"""

import functools
import os
import pathlib
from collections.abc import Iterator

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

import alexnet_jax.datasets  # noqa: F401  (registers the builders)
from alexnet_jax import quiet_tensorflow
from alexnet_jax.config import nearest
from alexnet_jax.errors import InputError


class TfdsSource:
    """One split of a TFDS data set in ArrayRecord, as [n, image_size, image_size, channels] uint8."""

    def __init__(self, config, split_field: str):
        """`split_field` is train_split, val_split or test_split. Raises InputError if it cannot be read."""
        builder = prepared_builder(config)
        split = config.data[split_field]
        field = f"data.{split_field}"
        try:
            instructions = builder.info.splits[split].file_instructions
            self._records = builder.as_data_source(split)
            self._length = len(self._records)
        except (ValueError, KeyError, AssertionError) as error:
            known = ", ".join(f"{name} ({info.num_examples:,})" for name, info in builder.info.splits.items())
            raise InputError(
                f"{field}: {split!r} does not work ({_reason(error)}); there are {known}"
            ) from None
        except NotImplementedError:
            raise InputError(
                f"data.dir: {config.data.name} lies there in another format than ArrayRecord; give a data.dir"
                " without it, and it is prepared anew"
            ) from None
        if not self._length:
            raise InputError(f"{field}: {split!r} is empty; give a split with examples")
        for instruction in instructions:
            _check_shard(instruction.filename, instruction.examples_in_shard)
        self._size, self._channels = config.data.image_size, config.data.channels
        self.label_names = tuple(builder.info.features["label"].names)
        self.folder = pathlib.Path(builder.data_path)
        self.split = split

    def __len__(self) -> int:
        return self._length

    def read(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [n, image_size, image_size, channels], labels int32 [n])."""
        examples = self._records.__getitems__([int(index) for index in indices])
        images = np.stack([fit(example["image"], self._size, self._channels) for example in examples])
        return images, np.array([example["label"] for example in examples], np.int32)


open_source = TfdsSource


def prepared_builder(config) -> tfds.core.DatasetBuilder:
    """The TFDS builder of `config.data.name`; the data set is prepared first where it is not yet."""
    name, data_dir = config.data.name, os.path.expanduser(config.data.dir) or None
    if data_dir and os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise InputError(f"data.dir: {data_dir!r} is not a folder; give one")
    builder = _builder(name, data_dir)
    if builder.is_prepared():
        return builder
    quiet_tensorflow.load()
    download = tfds.download.DownloadConfig(manual_dir=config.data.manual_dir or None)
    try:
        builder.download_and_prepare(download_config=download, file_format="array_record")
    except InputError:
        raise
    except Exception as error:  # whatever a builder, the file system or the network may raise
        builder = _builder(name, data_dir)
        if not builder.is_prepared():  # by another process meanwhile
            where = data_dir or "TFDS's folder (data.dir gives another)"
            raise InputError(f"data.name: {name!r} cannot be prepared in {where}: {_reason(error)}") from None
    return builder


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        features = builder.info.features
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise InputError(
            f"data.name: {name!r} is no data set of this project or of TFDS{nearest(name, known)}"
        ) from None
    except Exception as error:  # TFDS lets through what reading a damaged or a foreign data set raises
        where = data_dir or "TFDS's folder"
        raise InputError(f"data.name: {name!r} cannot be opened in {where}: {_reason(error)}") from None
    if not isinstance(features, dict | tfds.features.FeaturesDict) or not {"image", "label"} <= set(features):
        raise InputError(f"data.name: {name!r} has no image and label; choose a classification data set")
    return builder


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_shard(path: str, examples: int) -> None:
    try:
        found = array_record_module.ArrayRecordReader(str(path)).num_records()
    except (RuntimeError, ValueError, OSError):
        found = None
    if found != examples:
        raise InputError(
            f"{path}: missing, cut short or damaged ({examples:,} examples expected, {found or 0:,} found);"
            " delete its folder, and it is prepared anew"
        )


def fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """The paper's preparation (section 2): shorter side to `size`, central size x size.

    image uint8 [height, width, 1 or 3]; greyscale is repeated or colour weighed to get `channels`.
    """
    if image.shape == (size, size, channels):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture = picture.convert("RGB" if channels == 3 else "L")
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, channels)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    # The raw words of a counter-based generator: the same with every version of NumPy, unlike `permutation`.
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(examples), kind="stable")


def examples_of_step(seed: int, step: int, batch_size: int, examples: int) -> np.ndarray:
    """Indices [batch_size] of step 0, 1, …: each epoch in a new order, batches running on across epochs."""
    positions = step * batch_size + np.arange(batch_size)
    epochs, places = positions // examples, positions % examples
    orders = {epoch: _epoch_order(seed, int(epoch), examples) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])


def _local_rows(sharding, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process's devices hold, in order."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for (rows,) in slices]))


def _to_devices(sharding, batch_size: int, arrays):
    return tuple(
        jax.make_array_from_process_local_data(sharding, array, (batch_size, *array.shape[1:]))
        for array in arrays
    )


def _read_ahead(read, first: int, last: int, threads: int):
    """read(first), …, read(last - 1), in order, several at a time."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(grain.MapDataset.range(first, last).map(read).to_iter_dataset(options))


def batches(source, config, sharding, first_step: int, last_step: int) -> Iterator[tuple]:
    """(images, labels) of each step from first_step up to last_step, as global arrays."""
    rows = _local_rows(sharding, config.batch_size)

    def read(step):
        return source.read(examples_of_step(config.seed, int(step), config.batch_size, len(source))[rows])

    for local in _read_ahead(read, first_step, last_step, config.data.threads):
        yield _to_devices(sharding, config.batch_size, local)


def padded(source, batch_size: int, sharding, threads: int) -> Iterator[tuple]:
    """(images, labels, real) over the whole source once, as global arrays; `real` is False for padding."""
    rows = _local_rows(sharding, batch_size)

    def read(batch):
        positions = int(batch) * batch_size + rows
        real = positions < len(source)
        return *source.read(np.minimum(positions, len(source) - 1)), real

    for local in _read_ahead(read, 0, -(-len(source) // batch_size), threads):
        yield _to_devices(sharding, batch_size, local)
