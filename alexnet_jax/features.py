"""python -m alexnet_jax.features --workdir=DIR --layers=LAYER,... --out=FOLDER SOURCE...
                                [--column=I] [--config.FIELD=VALUE ...]

Writes the activations of the best checkpoint of a workdir for the central view of each image, a row each:

    FOLDER/fc7.npy          float32 [images, units] or [images, height, width, maps], column 0's maps first;
                            conv5/pool is conv5-pool.npy
    FOLDER/labels.npy       int32 [images], the data set's own; -1 without a class
    FOLDER/index.csv        row, image, label and class
    FOLDER/features.json    of which network, checkpoint and images they are; it comes last

SOURCE is one of
    train_split, val_split, test_split    of the run's data set
    a folder      with pictures, or with folders of them, which are the classes
    a .txt file   with the path of a picture on each line
    pictures

--mode=describe of alexnet_jax.main lists the layers. The same command goes on where it was stopped.
"""

import contextlib
import csv
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.datasets import pictures
from alexnet_jax.datasets.source import Source, check_content, open_source
from alexnet_jax.runtime import command_line, progress
from alexnet_jax.runtime.errors import InputError, input_errors, os_errors, printable
from alexnet_jax.runtime.files import atomic_write, folder_lock, read_json, write_text

if TYPE_CHECKING:
    from alexnet_jax.trained import Trained

BATCH = 32  # images
SPLITS = "train_split", "val_split", "test_split"
_RECORD, _UNFINISHED = "features.json", "features.json.part"
_LARGEST = 16 << 20  # bytes of them
_FIELDS = {"run", "step", "images", "classes", "fingerprint", "column", "layers"}

log = logging.getLogger("alexnet_jax")


class Rows:
    """An .npy file that grows by rows, and has its name once all are there: PATH.part before."""

    def __init__(self, path: str, dtype: Any, shape: Sequence[int]):
        """`shape` is that of the whole array."""
        self.path, self.part, self.total = path, f"{path}.part", shape[0]
        self._dtype, self._row_bytes = np.dtype(dtype), math.prod(shape[1:]) * np.dtype(dtype).itemsize
        head = io.BytesIO()
        fields = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, fields)
        self._header = head.getvalue()

    def written(self) -> int:
        """Return how many rows are there."""
        if os.path.exists(self.path):
            return self.total
        with contextlib.suppress(FileNotFoundError):
            return max(os.path.getsize(self.part) - len(self._header), 0) // self._row_bytes
        return 0

    @contextlib.contextmanager
    def after(self, first: int) -> Iterator[Callable[[np.ndarray], Any]]:
        """Yield a function that appends rows to the `first` ones; the file is whole after the block."""
        if os.path.exists(self.path):
            os.replace(self.path, self.part)
        with os_errors(self.path), open(self.part, "r+b" if first else "wb") as file:
            if not first:
                file.write(self._header)
            file.truncate(len(self._header) + first * self._row_bytes)
            file.seek(0, os.SEEK_END)
            yield lambda rows: file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.part, self.path)


def extract(
    network: "Trained", source: Source, layers: Sequence[str], folder: str, column: int | None = None
) -> None:
    """Write the activations of every image of `source` into `folder`, as this module's head has it.

    `layers` and `column` are those of `Trained.activations`. What a call that was stopped has written is
    kept. Raises InputError for what is not there, and if the folder has something else.
    """
    names = network.check_layers(layers, column)
    check_content(source)
    sample = network.activations(source.read([0])[0], names, column)
    shapes = {name: rows.shape[1:] for name, rows in sample.items()}
    os.makedirs(folder, exist_ok=True)
    with folder_lock(folder, "another program writes", "only one program writes"):
        if _begin(folder, _record(network, source, shapes, column)):
            log.info(f"{printable(folder)}: has these features already")
            return
        arrays = {
            name: Rows(file_of(folder, name), np.float32, (len(source), *shape))
            for name, shape in shapes.items()
        }
        arrays["labels"] = Rows(file_of(folder, "labels"), np.int32, (len(source),))
        first = min(array.written() for array in arrays.values()) // BATCH * BATCH
        with contextlib.ExitStack() as stack:
            append = {name: stack.enter_context(array.after(first)) for name, array in arrays.items()}
            for images, labels in _batches(source, first):
                append["labels"](labels)
                for name, rows in network.activations(images, list(shapes), column).items():
                    append[name](rows)
        _write_index(folder, source)
        os.replace(os.path.join(folder, _UNFINISHED), os.path.join(folder, _RECORD))
    log.info(f"{len(source):,} rows of {', '.join(shapes)} are in {printable(folder)}")


def _batches(source: Source, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images and labels from the `first` on, read ahead; log how far."""
    batches = [range(start, min(start + BATCH, len(source))) for start in range(first, len(source), BATCH)]
    report = progress.Progress(f"features of {printable(source.split)}", len(source) - first)
    read = progress.in_order(source.read, batches, progress.cores())
    for indices, found in zip(batches, read, strict=True):
        yield found
        report(indices.stop - first)


def _record(network: "Trained", source: Source, shapes: dict, column: int | None) -> dict[str, Any]:
    """Return what identifies features, for features.json."""
    return {
        "run": network.run,
        "step": network.step,
        "images": len(source),
        "classes": list(map(str, source.label_names)),
        "fingerprint": source.fingerprint(),
        "column": column,
        "layers": {name: list(shape) for name, shape in shapes.items()},
    }


def read_record(folder: str) -> dict[str, Any]:
    """Return features.json, by what the features are known. Raises InputError if they are not whole."""
    return _read(os.path.join(folder, _RECORD))


def _read(path: str) -> dict[str, Any]:
    with input_errors(f"{printable(path)}: cannot be read", "give another folder"):
        record = read_json(path, _LARGEST)
        if not isinstance(record, dict) or record.keys() != _FIELDS:
            raise ValueError("is not of features")
    return record


def _begin(folder: str, record: dict[str, Any]) -> bool:
    """Return whether a folder has these features already, whole. Raises InputError if it has others."""
    for name in (_RECORD, _UNFINISHED):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            there = _read(path)
            other = [key for key in record if there[key] != record[key]]
            if other:
                raise InputError(
                    f"--out={printable(folder)}: has features of another {' and '.join(other)}; give another"
                )
            return name == _RECORD
    taken = [name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    if taken:
        raise InputError(f"--out={printable(folder)}: has {taken[0]!r} in it; give a folder of its own")
    write_text(os.path.join(folder, _UNFINISHED), json.dumps(record, indent=1) + "\n")
    return False


def file_of(folder: str, name: str) -> str:
    """Return the file of a layer's activations, or of the "labels"."""
    return os.path.join(folder, name.replace("/", "-") + ".npy")


def _write_index(folder: str, source: Source) -> None:
    """Write index.csv from labels.npy and the paths, or the places in the split where there are none."""
    labels = np.load(file_of(folder, "labels")).tolist()
    paths = getattr(source, "paths", None) or [f"{source.split} {row}" for row in range(len(source))]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("row", "image", "label", "class"))
    for row, (path, label) in enumerate(zip(paths, labels, strict=True)):
        table.writerow((row, path, *((label, source.label_names[label]) if label >= 0 else ("", ""))))
    with atomic_write(os.path.join(folder, "index.csv")) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def open_images(what: Sequence[str], config) -> Source:
    """Open SOURCE, as this module's head has it. Raises InputError."""
    size, channels, first = config.data.image_size, config.data.channels, what[0]
    if first in SPLITS and len(what) > 1:
        raise InputError(f"{what[1]}: unexpected beside {first}; give one split, or pictures")
    if first in SPLITS:
        return open_source(config, first)
    if len(what) == 1 and os.path.isdir(first):
        return pictures.Pictures(pictures.paths_in(first), size, channels, first, root=first)
    if len(what) == 1 and first.endswith(".txt"):
        return pictures.Pictures(pictures.paths_of(first), size, channels, first)
    return pictures.Pictures(what, size, channels, "the pictures")


def main(arguments: list[str]) -> None:
    """Write features. Raises InputError."""
    parser = command_line.Parser(__doc__, overrides=True)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of a run")
    parser.add_argument("--layers", required=True, metavar="LAYER,...", help="names, such as fc7,conv5/pool")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder, or one to go on with")
    parser.add_argument("--column", metavar="I", type=command_line.whole(0), help="one column's maps, from 0")
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="a split, a folder, a list or pictures")
    given = parser.parse(arguments)
    command_line.check_can_be_made("--out", given.out)
    workdir = os.path.expanduser(given.workdir)
    config = configuration.of_run(workdir, given.overrides)
    source = open_images(given.source, config)
    from alexnet_jax.trained import Trained  # here, so that a mistake is reported at once

    extract(
        Trained(config, workdir), source, given.layers.split(","), os.path.expanduser(given.out), given.column
    )


if __name__ == "__main__":
    command_line.run(main)
