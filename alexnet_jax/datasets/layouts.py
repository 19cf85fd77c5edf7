"""Advice on folders of pictures that are laid out otherwise than FOLDER/SPLIT/CLASS/*.

tiny_imagenet   the classes of validation pictures in the layout of Tiny ImageNet, or None
right_folder    the folder near by that has the layout, or None
"""

import itertools
import os
import pathlib
from collections.abc import Iterator

from alexnet_jax.runtime.errors import input_errors, printable
from alexnet_jax.runtime.files import read_file

_ANNOTATIONS = 64 << 20  # bytes; Tiny ImageNet's 10,000 lines are 0.3 MB
_MANY = 1000  # entries of a folder that are looked at


def tiny_imagenet(folder: pathlib.Path) -> dict[str, str] | None:
    """Return {file name: class} of the validation pictures of a data set in Tiny ImageNet's layout, or None.

    There training pictures are train/CLASS/images/*, validation pictures val/images/*, and
    val/val_annotations.txt has a line for each of the latter: name, class and a box, with tabs between.
    Raises InputError if that file cannot be read.
    """
    path = folder / "val" / "val_annotations.txt"
    nested = any((label / "images").is_dir() for label in itertools.islice(_folders(folder / "train"), 1))
    if not nested or not path.is_file():
        return None
    with input_errors(f"{printable(path)}: is not Tiny ImageNet's list of classes", "get it again"):
        lines = read_file(path, _ANNOTATIONS).decode().splitlines()
        return {name: label for name, label, *_ in (line.split("\t") for line in lines if line)}


def right_folder(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the folder with train/CLASS/* that lies up to two levels above or below `folder`, or None."""
    folder = folder.absolute()
    below = list(_folders(folder))
    near = itertools.chain(below, itertools.chain.from_iterable(map(_folders, below)), folder.parents[:2])
    return next((place for place in near if has_classes(place / "train")), None)


def has_classes(split: pathlib.Path) -> bool:
    """Return whether a folder has folders with files in them, and no folders in these."""
    return any(_is_class(label) for label in itertools.islice(_folders(split), 3))


def _is_class(folder: pathlib.Path) -> bool:
    return any(entry.is_file() for entry in _entries(folder)) and not any(_folders(folder))


def _folders(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield folders in a folder, not hidden; none if it cannot be read."""
    return (pathlib.Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _entries(folder: pathlib.Path) -> Iterator[os.DirEntry]:
    """Yield what is in a folder and not hidden, of its first entries; nothing if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in itertools.islice(entries, _MANY) if entry.name[0] != ".")
    except OSError:
        return
