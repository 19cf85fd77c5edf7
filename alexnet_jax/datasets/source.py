"""Open a split of any data set as a `Source` with `open_source`, or several with `open_splits`."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from alexnet_jax.datasets import remote
from alexnet_jax.runtime.errors import InputError, UnreadableFiles
from alexnet_jax.runtime.object_store import is_url

SHOWN = 10  # bad files that are listed, one per line


@runtime_checkable  # for the tests, which check annotations
class Source(Protocol):
    """A split of a data set: images of one shape with their labels, read in any order and from any thread."""

    @property
    def label_names(self) -> Sequence[str]:
        """The names of the classes; label i is the i-th."""

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the data set, which also keeps the statistics of the split."""

    @property
    def split(self) -> str:
        """The split as the configuration gives it, such as `train[:90%]`."""

    def fingerprint(self) -> str:
        """Return a text that changes with the content, the order and the labels of the examples.

        The first call may read all of the data. Raises InputError as `read` does, and UnreadableFiles for all
        bad files of a split at once.
        """

    def __len__(self) -> int:
        """Return the number of examples, at least one."""

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples at `indices` [n], each in [0, len), in their order; an index may repeat.

        The images are uint8 [n, image_size, image_size, channels] on the scale of 0 to 255, the labels int32
        [n] in [0, len(label_names)). Raises InputError if a file is missing, damaged or not a picture.
        """


def open_source(config, split_field: str) -> Source:
    """Open a split of the data set of `config.data`; `split_field` is train_split, val_split or test_split.

    A data set that is not prepared yet is prepared first. Raises InputError if it cannot be prepared or read,
    or if the split is unknown, empty or without labels.
    """
    # Each kind is imported when it is opened: importing TFDS takes longer than opening a folder.
    data, field = config.data, f"data.{split_field}"
    what = data[split_field], data.image_size, data.channels, field
    if data.name == "folder":
        from alexnet_jax.datasets.folder import FolderSource

        folder = remote.data_folder(data.dir) if is_url(data.dir) else data.dir
        return FolderSource(folder, *what)
    from alexnet_jax.datasets.prepared import TfdsSource, prepared_builder

    source = TfdsSource(prepared_builder(config), *what)
    if data.store != "raw":
        return source
    from alexnet_jax.datasets.raw import RawSource

    return RawSource(source)


def open_splits(config, *split_fields: str) -> list[Source]:
    """Open splits as `open_source` does, and check their labels and content. Raises InputError."""
    sources = [open_source(config, field) for field in split_fields]
    check_labels(config, sources[0])
    check_content(*sources)
    return sources


def check_labels(config, source: Source) -> None:
    """Raise InputError if the data set has more classes than the network."""
    classes = len(source.label_names)
    if classes > config.model.num_classes:
        raise InputError(
            f"model.num_classes: {config.model.num_classes}, but {config.data.name} has {classes} classes;"
            f" give {classes}"
        )


def check_content(*sources: Source) -> None:
    """Read the new files of some splits, and compute the fingerprints.

    Raises UnreadableFiles for the bad files of all splits, after one line on stderr for each of the first 10.
    """
    reasons: dict[str, str] = {}
    for source in sources:
        try:
            source.fingerprint()
        except UnreadableFiles as error:
            reasons |= error.reasons
    if not reasons:
        return
    if len(reasons) > 1:
        for path, why in list(reasons.items())[:SHOWN]:
            print(f"{path}: cannot be read as a picture ({why})", file=sys.stderr)
        if len(reasons) > SHOWN:
            print(f"... and {len(reasons) - SHOWN:,} more", file=sys.stderr)
    raise UnreadableFiles(reasons)
