"""A folder of pictures as a data set: train/CLASS/* and val/CLASS/*, resized as they are read."""

import contextlib
import functools
import os
import pathlib
import stat
import zlib

import numpy as np

from alexnet_jax.datasets import fingerprints, images, layouts, splits
from alexnet_jax.runtime.errors import InputError, input_errors, printable, reason, some


class FolderSource:
    """One split, in the syntax of TFDS: `train` or `val`, slices such as `train[:90%]`, sums with +.

    A class is a folder in `folder`/train, and its label is the position of its name in sorted order. Each of
    its files is read as a picture, whatever its name, and turned upright by its EXIF. Names that begin with a
    dot are ignored. A folder inside a class, or anything else that is not a file, is rejected.
    """

    def __init__(self, folder: str, split: str, size: int, channels: int, field: str):
        """Open the split that the configuration gives in `field`. Raises InputError if it cannot be read."""
        self.folder, self.split = pathlib.Path(folder).expanduser(), split
        self._size, self._channels = size, channels
        if not folder or not self.folder.is_dir():
            raise InputError(
                f"data.dir: {folder!r} is not a folder; give the one that contains train and val"
            )
        self.label_names = tuple(_subfolders(self.folder / "train"))
        if not self.label_names:
            raise _without_classes(self.folder)
        if layouts.tiny_imagenet(self.folder) is not None:
            raise InputError(
                f"data.dir: {printable(self.folder)} has the layout of Tiny ImageNet; give a copy with"
                " train/CLASS and val/CLASS, made by `python -m experiments.shrink"
                f" {printable(self.folder)} COPY 64`"
            )
        there = _subfolders(self.folder)
        try:
            parts = splits.parse(split)
            # List only the splits that are used: a listing of a million files takes seconds.
            files = {name: self._list(name) for name in there if name in {part.name for part in parts}}
            slices = [files[part.name][part.places(len(files[part.name]))] for part in parts]
        except (ValueError, KeyError) as error:
            why = f" ({error})" if isinstance(error, ValueError) else ""
            raise InputError(
                f"{field}: {split!r} cannot be read{why}; {folder} has {' and '.join(there)}, and slices such"
                " as train[:90%]"
            ) from None
        self._files = [file for part in slices for file in part]
        if not self._files:
            raise InputError(f"{field}: {split!r} is empty; give a split with pictures")

    def fingerprint(self) -> str:
        """Return the fingerprint of the files' names and contents, in their order.

        New files are also decoded. Raises UnreadableFiles for all that are not pictures.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        files = [(name, stamp) for name, _, stamp in self._files]
        what = f"checking the pictures of {self.split}"
        digests = fingerprints.digests(self.folder, files, self._digest, what)
        return fingerprints.combined("\0".join(name for name, _ in files), b"".join(digests))

    def _digest(self, name: str) -> bytes:
        return images.digest(os.path.join(self.folder, name))

    @functools.cached_property
    def paths(self) -> list[str]:
        """The paths of the examples within the folder."""
        return [name for name, _, _ in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Return (images uint8 [n, image_size, image_size, channels], labels int32 [n]).

        Raises InputError for a file that is not a picture.
        """
        files = [self._files[index] for index in indices]
        paths = [self.folder / name for name, _, _ in files]
        labels = np.array([label for _, label, _ in files], np.int32)
        return images.read_all(paths, self._size, self._channels), labels

    def _list(self, split: str) -> list[tuple[str, int, fingerprints.Stamp]]:
        """Return (path within the folder, label, stamp) of every picture of a split, the classes mixed.

        The order depends on the names alone, so that a slice of a split is a sample of it.
        """
        labels = {name: label for label, name in enumerate(self.label_names)}
        found, names = [], _subfolders(self.folder / split)
        unknown = [name for name in names if name not in labels]
        if unknown:
            raise InputError(
                f"{self.folder / split}: has {len(unknown):,} of its {len(names):,} classes that train lacks,"
                f" {some(unknown)}; name them as in train, or move them elsewhere"
            )
        if not names and (flat := len(_entries(self.folder / split))):
            raise InputError(
                f"{self.folder / split}: has {flat:,} files and no folders of classes; move its pictures into"
                f" {split}/CLASS, with the classes of train"
            )
        for name in names:
            place = self.folder / split / name
            files = [(entry.name, _stamp(entry)) for entry in _entries(place)]
            if not files and split == "train":
                raise InputError(
                    f"{self.folder / split / name}: is a class without pictures; add some, or remove it"
                )
            found += [(f"{split}/{name}/{file}", labels[name], stamp) for file, stamp in files]
        return sorted(found, key=lambda file: (zlib.crc32(os.fsencode(file[0])), file[0]))


def _without_classes(folder: pathlib.Path) -> InputError:
    """Return the error for a folder without train/CLASS, with the folder that has it, if any."""
    right = layouts.right_folder(folder)
    if right is not None:
        return InputError(
            f"data.dir: {printable(folder)} has no train/CLASS/*; give {printable(right)}, which has"
        )
    if not (folder / "train").exists() and layouts.has_classes(folder):
        return InputError(
            f"data.dir: {printable(folder)} has no train/CLASS/*; move its classes into a folder train"
        )
    return InputError(f"{folder / 'train'}: has no folders of classes; put pictures into train/CLASS")


def _subfolders(folder: pathlib.Path) -> list[str]:
    """Return the names of the subfolders, sorted; none if there is no such folder."""
    return [entry.name for entry in _entries(folder) if os.path.isdir(entry)]


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    """Return the entries that are not hidden, sorted by name; none if there is no such folder."""
    with (
        input_errors(f"{printable(folder)}: cannot be read", "check its permissions"),
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
    ):
        found = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        return sorted(found, key=lambda entry: entry.name)
    return []


def _stamp(entry: os.DirEntry) -> fingerprints.Stamp:
    """Return the stamp of a file in a class. Raises InputError for anything else."""
    # Make the file's name printable only for an error: there may be a million files.
    try:
        status = entry.stat()
    except OSError as error:
        raise InputError(
            f"{printable(entry.path)}: cannot be read as a picture ({reason(error)}); remove it"
        ) from None
    if stat.S_ISDIR(status.st_mode):
        path, place = printable(entry.path), printable(os.path.dirname(entry.path))
        raise InputError(f"{path}: pictures in a folder inside a class are not read; move them into {place}")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            f"{printable(entry.path)}: is a pipe, a socket or a device, not a picture; remove it"
        )
    return fingerprints.stamp(status)
