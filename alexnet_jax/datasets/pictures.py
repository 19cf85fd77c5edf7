"""Pictures outside a data set, from a folder, a list or a command line, as a `Source`."""

import functools
import itertools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from alexnet_jax.datasets import fingerprints, images
from alexnet_jax.runtime import progress
from alexnet_jax.runtime.errors import InputError, UnreadableFiles, input_errors, printable, reason
from alexnet_jax.runtime.files import read_file

_CHUNK = 64  # files
_LARGEST_LIST = 1 << 30  # bytes


class Pictures:
    """Pictures by their paths, in the given order, turned upright by their EXIF.

    paths          the paths of the pictures
    split          a name for all of them
    label_names    the folders of the pictures inside the folder `root`
    labels         the index of each picture's folder in label_names, -1 outside any
    """

    def __init__(self, paths: Sequence[str], size: int, channels: int, split: str, root: str | None = None):
        """Take the paths; `fingerprint` and `read` open them. Raises InputError if there are none."""
        self.paths, self.split, self.folder = list(paths), split, pathlib.Path(root or ".")
        self._size, self._channels = size, channels
        if not self.paths:
            raise InputError(f"{printable(split)}: has no pictures; give another")
        folders = [os.path.relpath(os.path.dirname(path), root) if root else "." for path in self.paths]
        self.label_names = tuple(sorted(set(folders) - {"."}))
        labels = {name: label for label, name in enumerate(self.label_names)}
        self.labels = np.array([labels.get(folder, -1) for folder in folders], np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """Decode every file, and return the fingerprint of their contents and labels in this order.

        Raises UnreadableFiles for all that are not pictures.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digests = list(
            itertools.chain.from_iterable(progress.over(self, self._digests, "checking pictures", _CHUNK))
        )
        bad = {
            printable(path): digest
            for path, digest in zip(self.paths, digests, strict=True)
            if isinstance(digest, str)
        }
        if bad:
            raise UnreadableFiles(bad)
        return fingerprints.combined(b"".join(digests), "\0".join(self.label_names), self.labels.tobytes())

    def read(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Return (images uint8 [n, size, size, channels], labels int32 [n]). Raises UnreadableFiles."""
        paths = [self.paths[index] for index in indices]
        return images.read_all(paths, self._size, self._channels), self.labels[list(indices)]

    def _digests(self, indices) -> list[bytes | str]:
        return [self._digest(self.paths[index]) for index in indices]

    def _digest(self, path: str) -> bytes | str:
        """Return a file's digest, or why it is not a picture (an exception would keep its content)."""
        try:
            return images.digest(path)
        except (OSError, ValueError) as error:
            return reason(error)


def paths_in(folder: str) -> list[str]:
    """Return the files in a folder and its subfolders, sorted, without hidden ones. Raises InputError."""

    def failed(error: OSError):
        raise error

    paths: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    with input_errors(f"{printable(folder)}: cannot be read", "check its permissions"):
        for place, folders, files in os.walk(folder, onerror=failed, followlinks=True):
            status = os.stat(place)
            former = seen.setdefault((status.st_dev, status.st_ino), place)
            if former != place:  # a link may lead to a folder above it, and so recur without end
                raise InputError(
                    f"{printable(place)}: is {printable(former)} again, through a link; remove the link"
                )
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths += [os.path.join(place, name) for name in sorted(files) if not name.startswith(".")]
    return paths


def paths_of(file: str) -> list[str]:
    """Return the paths in a text file, one per line. Raises InputError if it cannot be read."""
    with input_errors(f"{printable(file)}: cannot be read", "give a list of pictures, one path per line"):
        lines = read_file(file, _LARGEST_LIST).decode("utf-8-sig", "surrogateescape").split("\n")
    return [line.removesuffix("\r") for line in lines if line.strip()]
