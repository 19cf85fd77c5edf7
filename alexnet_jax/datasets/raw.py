"""The fast store: the images of a split as one flat uint8 file, which is only copied, never decoded.

It is made once from the prepared data set, in its folder, and holds the same pixels. Each split of TFDS has

    raw-SPLIT-SIZExCHANNELS.images   uint8 [n, size, size, channels], without a header
    raw-SPLIT-SIZExCHANNELS.labels   int32 [n], little-endian
    raw-SPLIT-SIZExCHANNELS.json     the fingerprint of the source split, and the digests of both files
"""

import bisect
import functools
import hashlib
import json
import math
import mmap
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from alexnet_jax.datasets import fingerprints
from alexnet_jax.datasets.images import empty_batch
from alexnet_jax.datasets.prepared import TfdsSource
from alexnet_jax.runtime import progress
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import atomic_write, file_lock, read_json, write_text

_BATCH = 16
_LARGEST = 1 << 20  # bytes of the .json, which has about a hundred


class RawSource:
    """A TfdsSource's images and labels, in its order, through np.memmap."""

    def __init__(self, source: TfdsSource):
        """Open the files, or make them first. Raises InputError if they cannot be made or read."""
        self.label_names, self.folder, self.split = source.label_names, source.folder, source.split
        self._source = source
        self._parts, labels, self._starts = [], [], [0]  # terms of a sum such as train[:90%]+validation
        for part in source.parts:
            images, all_labels = _opened(source, part.splitname)
            labels.append(all_labels[part.from_ : part.to])
            self._parts.append((images, part.from_ or 0))
            self._starts.append(self._starts[-1] + len(labels[-1]))
        self._labels = np.concatenate(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def read(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Return (images uint8 [n, image_size, image_size, channels], labels int32 [n])."""
        indices = np.asarray(indices)
        _, size, _, channels = self._parts[0][0].shape
        batch = empty_batch(len(indices), size, channels)
        # One by one: copying an image releases the interpreter's lock, unlike NumPy's fancy indexing.
        for row, index in enumerate(indices.tolist()):
            part = bisect.bisect_right(self._starts, index) - 1
            images, first = self._parts[part]
            _copy(images, first + index - self._starts[part], batch[row])
        return batch, self._labels[indices]


def _copy(images: Any, place: int, target: np.ndarray) -> None:
    target[:] = images[place]
    # Pages that were read count as memory of this process, in the end a whole split, unless they are given
    # back. They stay in the system's cache.
    start = place * target.nbytes // mmap.PAGESIZE * mmap.PAGESIZE
    mapped: Any = images._mmap  # noqa: SLF001 (no public name)
    mapped.madvise(mmap.MADV_DONTNEED, start, (place + 1) * target.nbytes - start)


def _opened(source: TfdsSource, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (images, labels) of a whole split of TFDS, with the images as a memmap."""
    shape = (source.builder.info.splits[split].num_examples, source.size, source.size, source.channels)
    stem = source.folder / f"raw-{split}-{source.size}x{source.channels}"
    images, labels, record = (stem.with_suffix(suffix) for suffix in (".images", ".labels", ".json"))
    whole = TfdsSource(source.builder, split, source.size, source.channels, "data.store")
    if not (images.exists() and record.exists()):  # copies of earlier versions have no record
        try:
            _make(whole, images, labels, record, shape)
        except OSError as error:
            raise InputError(
                f"{images}: cannot be written ({error.strerror or error}); make the folder writable, or give"
                " data.store=jpeg"
            ) from None
    for path, size in ((images, math.prod(shape)), (labels, 4 * shape[0])):
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            raise InputError(
                f"{path}: missing, truncated or of another data set ({found:,} bytes, {size:,} expected);"
                f" delete {images.name} there, and it is rebuilt"
            )
    try:
        made_of = read_json(record, _LARGEST)
    except (OSError, ValueError):
        made_of = None
    if made_of != _record(whole, images, labels):
        raise InputError(
            f"{images}: was made from other data than {source.folder} has now, or changed since; delete"
            f" {images.name} there, and it is rebuilt"
        )
    return np.memmap(images, np.uint8, "r", shape=shape), np.fromfile(labels, "<i4")


def _record(whole: TfdsSource, *paths: pathlib.Path) -> dict[str, str]:
    """Return the record that identifies a raw copy. Its files are read only if they are new or changed."""
    files = [(path.name, fingerprints.stamp(path.stat())) for path in paths]
    found = fingerprints.digests(
        whole.folder, files, functools.partial(_digest, whole.folder), f"fingerprint of the raw {whole.split}"
    )
    return {
        "made of": whole.fingerprint(),
        **{p.suffix[1:]: d.hex() for p, d in zip(paths, found, strict=True)},
    }


def _digest(folder: pathlib.Path, name: str) -> bytes:
    with open(folder / name, "rb") as file:
        new = functools.partial(hashlib.blake2b, digest_size=fingerprints.BYTES)
        return hashlib.file_digest(file, new).digest()


def _make(whole: TfdsSource, images, labels, record, shape: tuple[int, ...]) -> None:
    """Write the files completely or not at all; the record, which marks them as complete, comes last."""
    with file_lock(whole.folder / ".raw.lock") as alone:
        if images.exists() and record.exists():  # another process made it while we waited
            return
        images.unlink(missing_ok=True)  # before the free space is measured
        if alone:  # otherwise another process may be writing one of these
            for leftover in whole.folder.glob("raw-*.part"):
                leftover.unlink()
        free = shutil.disk_usage(whole.folder).free
        if free < math.prod(shape):
            raise InputError(
                f"data.store: the raw copy of {whole.split} takes {math.prod(shape) / 1e9:,.1f} GB, but"
                f" {whole.folder} has {free / 1e9:,.1f} GB left; make room, or give data.store=jpeg"
            )
        with atomic_write(images) as image_file, atomic_write(labels) as label_file:
            for image_batch, label_batch in progress.over(
                whole, whole.read, f"raw copy of {whole.split}", _BATCH
            ):
                image_file.write(image_batch)
                label_file.write(label_batch.astype("<i4"))
            image_file.flush()
            os.fsync(image_file.fileno())
        write_text(record, json.dumps(_record(whole, images, labels)) + "\n")
