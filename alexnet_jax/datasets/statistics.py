"""The training split's mean image and colour covariance (sections 2 and 4.1), stored beside the data."""

import logging
import re
import zipfile
import zlib
from functools import partial
from typing import Any

import numpy as np

from alexnet_jax.runtime import progress
from alexnet_jax.runtime.files import atomic_write

log = logging.getLogger("alexnet_jax")

# Of a training split; label_names goes with them in a workdir's statistics.npz.
ARRAYS = (
    "mean_image", "channel_mean", "channel_std", "covariance", "eigenvectors", "standard_deviations",
)  # fmt: skip


def compute(source, what: str = "statistics", batch: int = 32) -> dict[str, np.ndarray]:
    """Make one pass over `source`, on all cores; float32 arrays on the scale of 0 to 255, C channels.

    mean_image [S, S, C]; channel_mean, channel_std [C]; covariance [C, C] of all pixels about the channel
    means; its eigenvectors [C, C] in columns, and the standard_deviations [C] along them, ascending.
    `what` is how the progress is logged.
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


def _sums(source, indices) -> tuple[np.ndarray, np.ndarray, int]:
    """(sum of the images [S, S, C], of the products of channels [C, C], number of pixels), all exact."""
    images, _ = source.read(indices)
    flat = (image.reshape(-1, image.shape[-1]).astype(np.float64) for image in images)
    squares = sum(pixels.T @ pixels for pixels in flat)
    return images.sum(axis=0, dtype=np.uint32).astype(np.int64), squares, images[..., 0].size


def of_source(source) -> dict[str, np.ndarray]:
    """Return a split's statistics, computed once and kept in the data set's folder."""
    size, channels = source.read([0])[0].shape[2:]
    # The checksum tells train[:20] from train[20:] and train[:20%], and the pictures in a folder from others.
    key = zlib.crc32((source.split + getattr(source, "fingerprint", "")).encode())
    split = re.sub(r"[^0-9a-zA-Z]+", "_", source.split) + f"-{key:08x}"
    path = source.folder / f"statistics-{split}-{size}x{channels}.npz"
    arrays = load(path)
    if arrays is not None:
        return arrays
    arrays = compute(source, f"statistics of {source.split}")
    try:
        save(path, arrays)
    except OSError as error:
        log.warning(f"statistics are not kept for the next run: {error}")
    return arrays


def save(path, arrays: dict[str, np.ndarray]) -> None:
    """Write statistics.npz, whole or not at all."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # of its other arguments


def load(path) -> dict[str, np.ndarray] | None:
    """Read what `save` wrote, or return None if there is nothing that can be read."""
    try:
        # Opened here: given a path, np.load leaves the file of a damaged archive open.
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays if set(ARRAYS) <= set(arrays) else None
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None  # zipfile raises all of these for a damaged file
