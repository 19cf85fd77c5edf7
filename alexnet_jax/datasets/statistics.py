"""The training split's mean image and colour covariance (sections 2 and 4.1), stored beside the data."""

import logging
import os
import re
import time
import zipfile
import zlib

import numpy as np

log = logging.getLogger("alexnet_jax")

# Of those that the compiled step takes; label_names goes with them in a workdir's statistics.npz.
ARRAYS = (
    "mean_image", "channel_mean", "channel_std", "covariance", "eigenvectors", "standard_deviations",
)  # fmt: skip


def compute(source, report=lambda done: None, batch: int = 256) -> dict[str, np.ndarray]:
    """One pass over `source`; float32 arrays on the scale of 0 to 255, C channels.

    mean_image [S, S, C]; channel_mean, channel_std [C]; covariance [C, C] of all pixels about the channel
    means; its eigenvectors [C, C] in columns, and the standard_deviations [C] along them, ascending.
    `report` is called with the number of images read so far.
    """
    total, squares, pixels = 0.0, 0.0, 0
    for start in range(0, len(source), batch):
        images, _ = source.read(range(start, min(start + batch, len(source))))
        total = total + images.sum(axis=0, dtype=np.int64)
        flat = images.reshape(-1, images.shape[-1]).astype(np.float64)
        squares = squares + flat.T @ flat
        pixels += len(flat)
        report(min(start + batch, len(source)))
    mean_image = total / len(source)
    channel_mean = mean_image.mean(axis=(0, 1))
    covariance = squares / pixels - np.outer(channel_mean, channel_mean)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    arrays = (
        mean_image, channel_mean, np.sqrt(np.diag(covariance)), covariance, eigenvectors,
        np.sqrt(np.maximum(eigenvalues, 0)),
    )  # fmt: skip
    return {name: array.astype(np.float32) for name, array in zip(ARRAYS, arrays, strict=True)}


def of_source(source) -> dict[str, np.ndarray]:
    """`compute`d once for each split and kept in the data set's folder."""
    size, channels = source.read([0])[0].shape[2:]
    # The checksum tells train[:20] from train[20:] and train[:20%].
    split = re.sub(r"[^0-9a-zA-Z]+", "_", source.split) + f"-{zlib.crc32(source.split.encode()):08x}"
    path = source.folder / f"statistics-{split}-{size}x{channels}.npz"
    arrays = load(path)
    if arrays is not None:
        return arrays
    start = last = time.monotonic()

    def report(done):
        nonlocal last
        now = time.monotonic()
        if now - last > 5 or done == len(source):
            last, left = now, (now - start) * (len(source) / done - 1)
            log.info(f"statistics of {source.split}: {done:,} of {len(source):,} images, {left:.0f} s left")

    arrays = compute(source, report)
    try:
        save(path, arrays)
    except OSError as error:
        log.warning(f"statistics are not kept for the next run: {error}")
    return arrays


def save(path, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all."""
    part = f"{path}.{os.getpid()}.part"
    with open(part, "wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)


def load(path) -> dict[str, np.ndarray] | None:
    """What `save` wrote, or None if there is nothing that can be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays if set(ARRAYS) <= set(arrays) else None
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None  # zipfile raises all of these for a damaged file
