"""The mean image and colour covariance of the training split (sections 2 and 4.1), stored beside the data."""

import contextlib
import io
import logging
import re
import sys
import zipfile
import zlib
from functools import partial
from typing import Any

import numpy as np

from alexnet_jax.datasets import fingerprints
from alexnet_jax.datasets.source import Source
from alexnet_jax.runtime import progress
from alexnet_jax.runtime.errors import Unavailable
from alexnet_jax.runtime.files import BoundedReader, atomic_write, retry

log = logging.getLogger("alexnet_jax")

# The statistics of a training split; a workdir's statistics.npz also has label_names.
ARRAYS = (
    "mean_image", "channel_mean", "channel_std", "covariance", "eigenvectors", "standard_deviations",
)  # fmt: skip
# Most bytes of a member of the file; the other arrays have at most 3x3 numbers.
_LARGEST = {"mean_image": 64 << 20, "label_names": 64 << 20}
_LARGEST_OTHER = 4 << 10


def compute(source: Source, what: str = "statistics", batch: int = 32) -> dict[str, np.ndarray]:
    """Return the statistics of `source`, as float32 on the scale of 0 to 255, from one pass on all cores.

    With C channels: mean_image [S, S, C]; channel_mean, channel_std [C]; covariance [C, C] of all pixels
    about the channel means; its eigenvectors [C, C] in columns, and the standard_deviations [C] along them,
    ascending. `what` names the progress in the log.
    """
    total: Any = 0
    squares, pixels = 0.0, 0
    for sums in progress.over(source, partial(_sums, source), what, batch):
        total, squares, pixels = total + sums[0], squares + sums[1], pixels + sums[2]
    mean_image = total / len(source)
    channel_mean = mean_image.mean(axis=(0, 1))
    covariance = squares / pixels - np.outer(channel_mean, channel_mean)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    arrays = (
        mean_image, channel_mean, np.sqrt(np.diag(covariance)), covariance, eigenvectors,
        np.sqrt(np.maximum(eigenvalues, 0)),
    )  # fmt: skip
    return {name: array.astype(np.float32) for name, array in zip(ARRAYS, arrays, strict=True)}


def _sums(source: Source, indices) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the exact sums of images [S, S, C] and of channel products [C, C], and the number of pixels."""
    images, _ = source.read(indices)
    flat = (image.reshape(-1, image.shape[-1]).astype(np.float64) for image in images)
    squares = sum(pixels.T @ pixels for pixels in flat)
    return images.sum(axis=0, dtype=np.uint32).astype(np.int64), squares, images[..., 0].size


def of_source(source: Source) -> dict[str, np.ndarray]:
    """Return a split's statistics, computed once and kept in the data set's folder."""
    size, channels = source.read([0])[0].shape[2:]
    # The checksum distinguishes train[:20] from train[20:] and train[:20%], and these images from others.
    key = zlib.crc32((source.split + source.fingerprint()).encode())
    split = re.sub(r"[^0-9a-zA-Z]+", "_", source.split) + f"-{key:08x}"
    path = source.folder / f"statistics-{split}-{size}x{channels}.npz"
    arrays = load(path)
    if arrays is not None:
        return arrays
    arrays = compute(source, f"statistics of {source.split}")
    try:
        save(path, arrays)
    except OSError as error:
        log.warning(f"statistics cannot be saved for the next run: {error}")
    return arrays


def save(path, arrays: dict[str, np.ndarray]) -> None:
    """Write statistics.npz, completely or not at all."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # of its other arguments


def load(path) -> dict[str, np.ndarray] | None:
    """Read the arrays, and label_names if present, from a file of `save`, given by path or open.

    Return None if the file is missing or damaged, or an array does not have the type and shape of `compute`.
    Members with other names are not read. Raises Unavailable.
    """
    try:
        with contextlib.ExitStack() as stack:
            is_open = isinstance(path, io.BytesIO)
            file: Any = path if is_open else stack.enter_context(retry(path, _open, path))
            bounded = stack.enter_context(BoundedReader(file, max(_LARGEST.values())))
            archive = stack.enter_context(zipfile.ZipFile(bounded))
            arrays = {name: _member(archive, name) for name in ARRAYS}
            if "label_names.npy" in archive.namelist():
                arrays["label_names"] = _member(archive, "label_names")
    except Unavailable:
        raise
    except Exception:  # zipfile and NumPy raise nearly any exception for a damaged file
        return None
    channels = arrays["mean_image"].shape[-1:]
    shapes = {name: channels * axes for name, axes in zip(ARRAYS, (0, 1, 1, 2, 2, 1), strict=True)}
    shapes["mean_image"] = (*arrays["mean_image"].shape[:2], *channels)
    fit = all(arrays[name].dtype.kind == "f" and arrays[name].shape == shapes[name] for name in ARRAYS)
    names = arrays.get("label_names", np.array([]))
    named = names.ndim == 1 and ((names.dtype.kind == "U" and names.itemsize > 0) or len(names) == 0)
    if not (fit and named and arrays["mean_image"].ndim == 3):
        return None
    # NumPy accepts any number as a character; Python does not.
    native = np.ascontiguousarray(names, names.dtype.newbyteorder("="))
    text = not len(names) or native.view(np.uint32).max() <= sys.maxunicode
    return arrays if text else None


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """Return the fingerprint of the arrays and, if present, of label_names."""
    parts = [np.ascontiguousarray(arrays[name], "<f4").tobytes() for name in ARRAYS]
    return fingerprints.combined(*parts, fingerprints.of_names(arrays.get("label_names", ())))


def fits(stored: dict[str, np.ndarray], data) -> bool:
    """Return whether statistics are finite and fit the images of a configuration's `data`."""
    shape = data.image_size, data.image_size, data.channels
    finite = all(np.isfinite(stored[name]).all() for name in ARRAYS)
    return stored["mean_image"].shape == shape and finite


def _open(path) -> Any:
    """Open a file and read from it, because zipfile would report a system error as damage."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", buffering=0))
        file.read(1)
        file.seek(0)
        stack.pop_all()
    return file


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read an array of an .npz. Raises ValueError if it is larger than its name allows."""
    member = archive.getinfo(f"{name}.npy")
    stored = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others expand without bound
    if member.file_size > _LARGEST.get(name, _LARGEST_OTHER) or not stored:
        raise ValueError(f"{name} is too large")
    with archive.open(member) as file:
        content = file.read(member.file_size)
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
