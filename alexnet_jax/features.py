"""python -m alexnet_jax.features --workdir=DIR --layers=LAYER,... --out=FOLDER SOURCE...
                                [--column=I] [--config.FIELD=VALUE ...]

Write the activations of a checkpoint for the central view of each image, one row per image. The best
checkpoint is used unless --config.eval.step=N names another.

    FOLDER/fc7.npy          float32 [images, units] or [images, height, width, maps], column 0's maps first;
                            conv5/pool is conv5-pool.npy
    FOLDER/labels.npy       int32 [images], the labels of the data set; -1 for an image without a class
    FOLDER/index.csv        row, image, label and class
    FOLDER/features.json    the network, the checkpoint and the images; it is written last

SOURCE is one of
    train_split, val_split, test_split    a split of the run's data set
    a folder      with pictures, or with subfolders of pictures, which are the classes
    a .txt file   with one path per line
    pictures

--mode=describe of alexnet_jax.main lists the layers. The same command resumes where it was stopped.
"""

import contextlib
import csv
import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.datasets.source import Source, check_content, open_source
from alexnet_jax.runtime import command_line, progress
from alexnet_jax.runtime.errors import InputError, input_errors, os_errors, printable
from alexnet_jax.runtime.files import atomic_write, folder_lock, read_json, write_text
from alexnet_jax.workdirs import identity, remote

if TYPE_CHECKING:
    from alexnet_jax.trained import Trained

BATCH = 32  # images
SPLITS = "train_split", "val_split", "test_split"
LABELS = "labels"
_RECORD, _UNFINISHED = "features.json", "features.json.part"
_LARGEST = 16 << 20  # bytes of them
_FIELDS = {
    "run": str | None, "step": int, "weights": str, "examples": int, "classes": list, "fingerprint": str,
    "column": int | None, "layers": dict,
}  # fmt: skip

log = logging.getLogger("alexnet_jax")


class Rows:
    """An .npy file that grows by rows. It is PATH.part until all rows are there."""

    def __init__(self, path: str, dtype: Any, shape: Sequence[int]):
        """Describe a file at `path` with a whole array of `shape`."""
        self.path, self.part, self.total = path, f"{path}.part", shape[0]
        self._dtype, self._row_bytes = np.dtype(dtype), math.prod(shape[1:]) * np.dtype(dtype).itemsize
        head = io.BytesIO()
        fields = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, fields)
        self._header = head.getvalue()

    def written(self) -> int:
        """Return the number of rows written so far."""
        for path in (self.path, self.part):
            if os.path.exists(path):
                rows = max(os.path.getsize(path) - len(self._header), 0) // self._row_bytes
                return min(rows, self.total)
        return 0

    @contextlib.contextmanager
    def after(self, first: int) -> Iterator[Callable[[np.ndarray], Any]]:
        """Yield a function that appends rows to the `first` ones. The file is complete after the block."""
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
    """Write the activations of every image of `source` into `folder`, as the module's docstring describes.

    `layers` and `column` are those of `Trained.activations`. Rows that an interrupted call wrote are kept.
    Raises InputError for a missing layer or column, and for a folder with other content.
    """
    shapes = network.check_layers(layers, column)
    check_content(source)
    os.makedirs(folder, exist_ok=True)
    with folder_lock("--out", folder, "another program writes", "only one program writes"):
        _begin(folder, _record(network, source, shapes, column))
        arrays = {
            name: Rows(file_of(folder, name), np.float32, (len(source), *shape))
            for name, shape in shapes.items()
        }
        arrays[LABELS] = Rows(file_of(folder, LABELS), np.int32, (len(source),))
        first = min(array.written() for array in arrays.values())
        if first == len(source) and all(os.path.exists(array.path) for array in arrays.values()):
            log.info(f"{printable(folder)}: already has these features")
        else:
            _append(network, source, arrays, first // BATCH * BATCH, column)
        _write_index(folder, source)
        with contextlib.suppress(FileNotFoundError):  # they were whole before
            os.replace(os.path.join(folder, _UNFINISHED), os.path.join(folder, _RECORD))
    log.info(f"{len(source):,} rows of {', '.join(shapes)} are in {printable(folder)}")


def _append(
    network: "Trained", source: Source, arrays: dict[str, Rows], first: int, column: int | None
) -> None:
    """Write the rows from `first` on, and log the progress."""
    layers = [name for name in arrays if name != LABELS]
    what = f"features of {printable(source.split)}"
    with contextlib.ExitStack() as stack:
        append = {name: stack.enter_context(array.after(first)) for name, array in arrays.items()}
        for images, labels in progress.over(source, source.read, what, BATCH, first):
            append[LABELS](labels)
            for name, rows in network.activations(images, layers, column).items():
                append[name](rows)


def _record(network: "Trained", source: Source, shapes: dict, column: int | None) -> dict[str, Any]:
    """Return the content of features.json, which identifies the features."""
    return {
        "run": network.run,
        "step": network.step,
        "weights": network.fingerprint,
        **identity.of_split(source),
        "column": column,
        "layers": {name: list(shape) for name, shape in shapes.items()},
    }


def read_record(folder: str) -> dict[str, Any]:
    """Return features.json, which identifies the features. Raises InputError if they are incomplete."""
    return _read(os.path.join(folder, _RECORD))


def _read(path: str) -> dict[str, Any]:
    with input_errors(f"{printable(path)}: cannot be read", "give another folder"):
        record = read_json(path, _LARGEST)
        whole = isinstance(record, dict) and record.keys() == _FIELDS.keys()
        if not whole or not all(isinstance(record[name], kind) for name, kind in _FIELDS.items()):
            raise ValueError("is not a record of features")
    return record


def read_rows(folder: str, name: str) -> np.ndarray:
    """Return a layer's activations [images, …], or the "labels" [images]. Raises InputError."""
    record, path = read_record(folder), file_of(folder, name)
    shape = record["examples"], *record["layers"].get(name, ())
    kind = np.int32 if name == LABELS else np.float32
    with input_errors(
        f"{printable(path)}: cannot be read", "write the features again", (OSError, ValueError, EOFError)
    ):
        rows = np.load(path)
        if rows.shape != shape or rows.dtype != kind:
            raise ValueError(f"is {rows.dtype} {list(rows.shape)}, not {np.dtype(kind)} {list(shape)}")
    return rows


def _begin(folder: str, record: dict[str, Any]) -> None:
    """Record which features go into a folder. Raises InputError if it has other features or other files."""
    paths = [os.path.join(folder, name) for name in (_RECORD, _UNFINISHED)]
    for path in filter(os.path.exists, paths):
        there = _read(path)
        other = [key for key in record if there[key] != record[key]]
        if other:
            raise InputError(
                f"--out={printable(folder)}: has features of another {' and '.join(other)}; give another"
            )
        return
    taken = [name for name in sorted(os.listdir(folder)) if not re.fullmatch(r"\..*|.*\.part", name)]
    if taken:
        raise InputError(f"--out={printable(folder)}: contains {taken[0]!r}; give a new folder")
    write_text(paths[1], json.dumps(record, indent=1) + "\n")


def file_of(folder: str, name: str) -> str:
    """Return the file of a layer's activations, or of the "labels"."""
    return os.path.join(folder, name.replace("/", "-") + ".npy")


def _write_index(folder: str, source: Source) -> None:
    """Write index.csv from labels.npy and the paths, or the positions in the split if there are no paths."""
    labels = np.load(file_of(folder, LABELS)).tolist()
    paths = getattr(source, "paths", None) or [f"{source.split} {row}" for row in range(len(source))]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("row", "image", "label", "class"))
    for row, (path, label) in enumerate(zip(paths, labels, strict=True)):
        table.writerow((row, path, *((label, source.label_names[label]) if label >= 0 else ("", ""))))
    with atomic_write(os.path.join(folder, "index.csv")) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def open_images(what: Sequence[str], config) -> Source:
    """Open SOURCE, as the module's docstring describes it. Raises InputError."""
    from alexnet_jax.datasets import pictures

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
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder, or one to resume")
    parser.add_argument(
        "--column", metavar="I", type=command_line.whole(0), help="the maps of column I only, from 0"
    )
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="a split, a folder, a list or pictures")
    given = parser.parse(arguments)
    out = os.path.expanduser(given.out)
    if not out:
        raise InputError("--out: give a folder")
    command_line.check_can_be_made("--out", out)
    with remote.copied(given.workdir) as workdir:
        config = configuration.of_run(workdir, given.overrides)
        source = open_images(given.source, config)
        from alexnet_jax.trained import Trained  # here, so that a mistake is reported at once

        network = Trained(config, workdir)
    extract(network, source, given.layers.split(","), out, given.column)


if __name__ == "__main__":
    command_line.run(main)
