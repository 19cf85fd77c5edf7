"""TFDS data sets in ArrayRecord: prepared if necessary, and read in any order.

TensorFlow is not imported here, because only TFDS's preparation needs it.
"""

import contextlib
import functools
import logging
import os
import pathlib
import shutil

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.datasets import (
    fashion_mnist,
    fingerprints,
    ilsvrc,
    images,
    remote,
)
from alexnet_jax.runtime import quiet_tensorflow
from alexnet_jax.runtime.errors import InputError, Unavailable, first_line, input_errors, nearest
from alexnet_jax.runtime.files import file_lock, retry
from alexnet_jax.runtime.object_store import is_url

# TFDS keeps 1 GiB of examples in memory before it shuffles them on disk; a quarter of that works as well.
_SHUFFLE_BUFFER = 256 << 20
_RECORDS = 256  # read at a time for a fingerprint
# TFDS finds these because they are imported here. They give it encoded files instead of arrays to encode.
_WITHOUT_TENSORFLOW = fashion_mnist.FashionMnistShipped, ilsvrc.Ilsvrc
_REBUILD = "delete the folder, and it is rebuilt"
log = logging.getLogger("alexnet_jax")


def prepared_builder(config) -> tfds.core.DatasetBuilder:
    """Return the TFDS builder of `config.data.name`, after preparing the data set if necessary."""
    name, data_dir = config.data.name, os.path.expanduser(config.data.dir) or None
    if data_dir and is_url(data_dir):
        data_dir = remote.data_folder(data_dir, name.partition(":")[0])
    if data_dir and os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise InputError(f"data.dir: {data_dir!r} is not a folder; give one")
    builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        if config.data.store == "raw":
            builder.raw_bytes = config.data.image_size**2 * config.data.channels
        _prepare(builder, name, config.data.manual_dir)
        builder = _builder(name, data_dir)  # another process may have prepared it
        if not _is_prepared(builder):
            raise InputError(f"{builder.data_path}: damaged, or not a data set; {_REBUILD}")
    return builder


def _is_prepared(builder) -> bool:
    """Return whether the data set is there. Unlike TFDS, raise Unavailable if it is unreadable now."""
    folder = os.fspath(builder.data_path)
    return os.path.isdir(folder) and "dataset_info.json" in retry(folder, os.listdir, folder)


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    where = data_dir or "TFDS's folder"
    try:
        builder = retry(where, lambda: tfds.builder(name, data_dir=data_dir, file_format="array_record"))
        features = builder.info.features
    except Unavailable:
        raise
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise InputError(
            f"data.name: {name!r} is not a data set of this project or of TFDS{nearest(name, known)}"
        ) from None
    except Exception as error:  # TFDS passes on any exception from a damaged or foreign data set
        base, _, wanted = name.partition("/")
        there = _configs(base)
        if wanted and there and wanted not in there:
            known = ", ".join(f"{base}/{config}" for config in there[:10])
            raise InputError(f"data.name: {name!r} does not exist; there are {known}") from None
        raise InputError(f"data.name: {name!r} cannot be opened in {where}: {first_line(error)}") from None
    named = isinstance(features, dict | tfds.features.FeaturesDict) and {"image", "label"} <= set(features)
    if not named or not isinstance(features["label"], tfds.features.ClassLabel):
        raise InputError(f"data.name: {name!r} has no image and label; choose a classification data set")
    return builder


def _configs(name: str) -> list[str]:
    try:
        return list(tfds.builder_cls(name).builder_configs)
    except Exception:  # as above
        return []


def _prepare(builder, name: str, manual_dir: str) -> None:
    final = pathlib.Path(builder.data_path)
    if isinstance(builder, ilsvrc.Ilsvrc):  # before TFDS and TensorFlow print their own lines
        builder.check_archives(os.path.expanduser(manual_dir))
    if not isinstance(builder, _WITHOUT_TENSORFLOW):
        quiet_tensorflow.load(f"data.name: {name!r}")
    with contextlib.ExitStack() as stack:
        with input_errors(f"data.dir: {final.parent} cannot be written", "give another"):
            final.parent.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(file_lock(final.parent / f".{final.name}.lock"))
        if alone:  # otherwise another process may be writing one of these
            for leftover in final.parent.glob(f"incomplete.*_{final.name}"):
                log.info(f"deleting {leftover}, left by an interrupted preparation")
                shutil.rmtree(leftover, ignore_errors=True)
        stack.enter_context(_small_shuffle_buffer())
        download = tfds.download.DownloadConfig(manual_dir=os.path.expanduser(manual_dir) or None)
        try:
            builder.download_and_prepare(download_config=download, file_format="array_record")
        except InputError:
            raise
        except Exception as error:  # builders and the network may raise any exception
            where = final.parent
            raise InputError(
                f"data.name: {name!r} cannot be prepared in {where}: {first_line(error)}"
            ) from None


@contextlib.contextmanager
def _small_shuffle_buffer():
    from tensorflow_datasets.core import shuffle

    former, shuffle.MAX_MEM_BUFFER_SIZE = shuffle.MAX_MEM_BUFFER_SIZE, _SHUFFLE_BUFFER
    try:
        yield
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = former


class TfdsSource:
    """One split of a TFDS data set in ArrayRecord, as [n, image_size, image_size, channels] uint8."""

    def __init__(self, builder, split: str, size: int, channels: int, field: str):
        """Open the split that the configuration gives in `field`. Raises InputError if it cannot be read."""
        self.builder, self.split, self.size, self.channels = builder, split, size, channels
        feature = builder.info.features["image"]
        self._encoded = type(feature) is tfds.features.Image and feature.np_dtype == np.uint8
        methods = tfds.decode.DeserializeMethod
        method = methods.RAW_BYTES if self._encoded else methods.DESERIALIZE_AND_DECODE
        try:
            self.parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
            # TFDS gives train[5:4] a wrong length or wrong examples.
            backwards = any(part.to is not None and part.to < (part.from_ or 0) for part in self.parts)
            if backwards or not builder.info.splits[split].num_examples:
                raise InputError(f"{field}: {split!r} is empty or backwards; give a split with examples")
            instructions = builder.info.splits[split].file_instructions
            self._records = builder.as_data_source(split, deserialize_method=method)
            self._length = len(self._records)
        except (ValueError, KeyError, AssertionError) as error:
            known = ", ".join(f"{name} ({info.num_examples:,})" for name, info in builder.info.splits.items())
            raise InputError(
                f"{field}: {split!r} cannot be read ({first_line(error)}); there are {known}"
            ) from None
        except NotImplementedError:
            raise InputError(
                f"data.dir: {builder.info.name} is there in a format other than ArrayRecord; give another"
                " folder, and it is prepared there"
            ) from None
        for instruction in instructions:
            _check_shard(instruction.filename, instruction.examples_in_shard)
        self.folder = pathlib.Path(builder.data_path)
        if not builder.info.features["label"].num_classes:
            raise InputError(f"{self.folder}: the names of its labels are missing; {_REBUILD}")
        self.label_names = tuple(builder.info.features["label"].names)
        with self._reporting_damage():
            _, label = self._example(0)
        if label < 0:  # TFDS's label for unlabelled examples
            raise InputError(f"{field}: {split!r} has no labels; give another split")

    def __len__(self) -> int:
        return self._length

    def fingerprint(self) -> str:
        """Return the fingerprint of the records, in their order."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        texts = []
        for part in self.parts:
            info = self.builder.info.splits[part.splitname]
            first, last = part.from_ or 0, info.num_examples if part.to is None else part.to
            shards = [
                (name, fingerprints.stamp(os.stat(self.folder / name))) for name in sorted(info.filenames)
            ]
            what = f"fingerprint of {part.splitname}"
            found = fingerprints.digests(self.folder, shards, self._digest, what)
            texts.append(fingerprints.combined(b"".join(found), f"{first} to {last}"))
        return texts[0] if len(texts) == 1 else fingerprints.combined(*texts)

    def _digest(self, name: str) -> bytes:
        # The digest is of the records: a file's bytes depend on the version of the library that wrote it.
        reader = array_record_module.ArrayRecordReader(str(self.folder / name))
        records = []
        with self._reporting_damage():
            for start in range(0, reader.num_records(), _RECORDS):
                places = list(range(start, min(start + _RECORDS, reader.num_records())))
                for record in reader.read(places):
                    feature = tf_example_pb2.Example.FromString(record).features.feature
                    parts = (key.encode() + feature[key].SerializeToString() for key in sorted(feature))
                    records.append(fingerprints.of_bytes(*parts))
        return fingerprints.of_bytes(*records)

    def read(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Return (images uint8 [n, image_size, image_size, channels], labels int32 [n]).

        Raises InputError if the files turn out to be damaged.
        """
        batch, labels = images.empty_batch(len(indices), self.size, self.channels), []
        with self._reporting_damage():
            # One by one: for many at once the reader of records starts threads, which is slower.
            for row, index in enumerate(indices):
                image, label = self._example(int(index))
                labels.append(label)
                if self._encoded:
                    images.decode_into(batch[row], image)
                else:
                    batch[row] = images.fit(image, self.size, self.channels)
        return batch, np.array(labels, np.int32)

    def _example(self, index: int) -> tuple:
        """Return (image, label), with an encoded image as the content of its file."""
        example = self._records[index]
        if not self._encoded:
            return example["image"], example["label"]
        # In TFDS these lines would take an eighth of the decoding time, and hold the interpreter's lock.
        feature = tf_example_pb2.Example.FromString(example).features.feature
        return feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0]

    def _reporting_damage(self):
        kinds = RuntimeError, ValueError, LookupError, DecodeError  # from the reader and from decoding
        return input_errors(f"{self.folder}: {self.split} is damaged", _REBUILD, kinds)


def _check_shard(path: str, examples: int) -> None:
    try:
        found = array_record_module.ArrayRecordReader(str(path)).num_records()
    except (RuntimeError, ValueError, OSError):
        found = None
    if found != examples:
        raise InputError(
            f"{path}: missing, truncated or damaged ({examples:,} examples expected, {found or 0:,} found);"
            f" {_REBUILD}"
        )
