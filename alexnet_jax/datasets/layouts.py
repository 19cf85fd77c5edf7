"""Recognise folders of pictures whose layout is not FOLDER/SPLIT/CLASS/*.

tiny_imagenet   return the classes of validation pictures in the layout of Tiny ImageNet, or None
right_folder    return a nearby folder with the layout, or None
"""

import itertools
import os
import pathlib
from collections.abc import Iterator

from alexnet_jax.runtime.errors import input_errors, printable
from alexnet_jax.runtime.files import read_file

_ANNOTATIONS = 64 << 20  # bytes; Tiny ImageNet's 10,000 lines are 0.3 MB
_MANY = 1000  # entries of a folder that are examined


def tiny_imagenet(folder: pathlib.Path) -> dict[str, str] | None:
    """Return {file name: class} of the validation pictures of a data set in Tiny ImageNet's layout, or None.

    In that layout, training pictures are train/CLASS/images/*, and validation pictures are val/images/*. For
    each of the latter val/val_annotations.txt has a line: name, class and a box, separated by tabs. Raises
    InputError if that file cannot be read.
    """
    path = folder / "val" / "val_annotations.txt"
    nested = any((label / "images").is_dir() for label in itertools.islice(_folders(folder / "train"), 1))
    if not nested or not path.is_file():
        return None
    with input_errors(f"{printable(path)}: is not Tiny ImageNet's list of classes", "get it again"):
        lines = read_file(path, _ANNOTATIONS).decode().splitlines()
        return {name: label for name, label, *_ in (line.split("\t") for line in lines if line)}


def right_folder(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the folder with train/CLASS/* up to two levels above or below `folder`, or None."""
    folder = folder.absolute()
    below = list(_folders(folder))
    near = itertools.chain(below, itertools.chain.from_iterable(map(_folders, below)), folder.parents[:2])
    return next((place for place in near if has_classes(place / "train")), None)


def has_classes(split: pathlib.Path) -> bool:
    """Return whether a folder has subfolders with files but without further subfolders."""
    return any(_is_class(label) for label in itertools.islice(_folders(split), 3))


def _is_class(folder: pathlib.Path) -> bool:
    return any(entry.is_file() for entry in _entries(folder)) and not any(_folders(folder))


def _folders(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the subfolders that are not hidden; none if the folder cannot be read."""
    return (pathlib.Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _entries(folder: pathlib.Path) -> Iterator[os.DirEntry]:
    """Yield those of a folder's first entries that are not hidden; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in itertools.islice(entries, _MANY) if entry.name[0] != ".")
    except OSError:
        return
