"""python -m experiments.shrink FROM TO SIZE

Copy a folder of pictures, each prepared for data.image_size=SIZE, as it would be when it is read
(alexnet_jax/datasets/images.py, `fit`). Names are kept, and the content is BMP. A run on the copy reads the
same pixels in the same order in a sixth of the time, which helps to train many small networks on photographs.

From a data set, FROM/SPLIT/CLASS/*, only the pictures of classes are copied. The layout of Tiny ImageNet
(train/CLASS/images, val/images with val_annotations.txt) is converted to this one. TO is a new folder. The
copy grows in TO.part, which is renamed once it is complete; the same command resumes an interrupted copy.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator

from alexnet_jax.datasets import layouts
from alexnet_jax.runtime import command_line, progress
from alexnet_jax.runtime.errors import InputError, printable, reason, some
from alexnet_jax.runtime.files import file_lock

log = logging.getLogger("alexnet_jax")

# Files that training leaves in FROM; hidden files, such as its fingerprints, are skipped anyway.
_LEFT_BY_TRAINING = re.compile(r"statistics-.*\.npz(\.\d+\.part)?")
_OWN = ".shrink"  # a folder in TO.part with the arguments, a lock, and unfinished pictures


def main(arguments: list[str]) -> None:
    """Copy the pictures. Raises InputError."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("source", metavar="FROM", type=pathlib.Path, help="a folder of pictures")
    parser.add_argument("target", metavar="TO", type=pathlib.Path, help="the folder of the copy")
    parser.add_argument("size", metavar="SIZE", type=command_line.whole(1), help="in pixels")
    given = parser.parse(arguments)
    shrink(given.source, given.target, given.size)


def shrink(source: pathlib.Path, target: pathlib.Path, size: int) -> None:
    """Copy the pictures of a folder into a new one. Raises InputError."""
    part = target.absolute().with_name(f"{target.absolute().name}.part")
    _check_apart(source, target, part)
    copies = _copies(source)
    if not copies:
        raise InputError(f"{printable(source)}: has no files; give a folder of pictures")
    with _part_of(part, target, {"from": os.path.realpath(source), "size": size}):
        for name, path in _files(part, "", ()):
            if name not in copies or _changed(copies[name]) >= _changed(path):
                path.unlink()
        left = {name: path for name, path in copies.items() if not (part / name).is_file()}
        if len(left) < len(copies):
            log.info(
                f"{printable(part)}: resuming after {len(copies) - len(left):,} of {len(copies):,} pictures"
            )
        for name in {os.path.dirname(name) for name in copies}:
            (part / name).mkdir(parents=True, exist_ok=True)
        unreadable = _copy(left, part, size)
        if unreadable:
            raise InputError(
                f"{printable(source)}: {unreadable:,} of {len(copies):,} files cannot be read as pictures"
                " (see above); replace or remove them, and the same command resumes"
            )
        os.rename(part, target)
        shutil.rmtree(target / _OWN)
    log.info(f"{printable(target)}: {len(copies):,} pictures of {size}x{size}")


def _check_apart(source: pathlib.Path, target: pathlib.Path, part: pathlib.Path) -> None:
    """Raise InputError unless `target` is new and neither it nor `part` overlaps `source`, links followed."""
    if not source.is_dir():
        raise InputError(f"{printable(source)}: is not a folder; give a folder of pictures")
    real = os.path.realpath(source)
    for other in map(os.path.realpath, (target, part)):
        if os.path.commonpath([real, other]) in (real, other):
            what = "is the folder of the originals, contains it or is inside it"
            raise InputError(f"{printable(target)}: {what}; give a folder beside {printable(real)}")
    _check_new(target)


def _check_new(target: pathlib.Path) -> None:
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise InputError(f"{printable(target)}: exists already; give a new folder")


@contextlib.contextmanager
def _part_of(part: pathlib.Path, target: pathlib.Path, what: dict) -> Iterator[None]:
    """Lock the folder of an unfinished copy, and check that it belongs to `what`. Raises InputError."""
    own = part / _OWN
    if part.exists() and not own.is_dir():
        raise InputError(f"{printable(part)}: is not an unfinished copy of this command; move it away")
    own.mkdir(parents=True, exist_ok=True)
    with file_lock(own / "lock"):
        _check_new(target)  # another process may have created it meanwhile
        mark = own / "copy.json"
        if not mark.exists():
            mark.write_text(json.dumps(what))
        elif mark.read_text() != json.dumps(what):
            raise InputError(f"{printable(part)}: is an unfinished copy of another folder or size; remove it")
        yield


def _copies(source: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return {name in the copy: file}. Raises InputError."""
    found = dict(_files(source, "", ()))
    names = [name for name in found if not _LEFT_BY_TRAINING.fullmatch(os.path.basename(name))]
    if (source / "train").is_dir():
        annotations = layouts.tiny_imagenet(source)
        if annotations is not None:
            places = {name: _place_of_tiny_imagenet(name, annotations) for name in names}
        else:
            places = {name: name if name.count("/") >= 2 else None for name in names}
        over = [name for name, place in places.items() if place is None]
        if over:
            log.info(f"{printable(source)}: skipping files that are not pictures of a class: {some(over)}")
        return {place: found[name] for name, place in places.items() if place is not None}
    return {name: found[name] for name in names}


def _place_of_tiny_imagenet(name: str, annotations: dict[str, str]) -> str | None:
    """Return the place of a Tiny ImageNet file in our layout, or None if it is not a picture of a class."""
    match name.split("/"):
        case ["train", label, "images", picture]:
            return f"train/{label}/{picture}"
        case ["val", "images", picture] if picture in annotations:
            return f"val/{annotations[picture]}/{picture}"
    return None


def _files(place: pathlib.Path, name: str, above: tuple[str, ...]) -> Iterator[tuple[str, pathlib.Path]]:
    """Yield (name within the source, path) of all files that are not hidden, following links."""
    real = os.path.realpath(place)
    if real in above:
        raise InputError(f"{printable(place)}: is a link to a folder above it; remove it")
    for path in sorted(place.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, f"{name}{path.name}/", (*above, real))
        else:
            yield f"{name}{path.name}", path


def _changed(path: pathlib.Path) -> int:
    """Return the time when a file was last written or moved; 0 if there is none."""
    try:
        return max(path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    except OSError:
        return 0


def _copy(left: dict[str, pathlib.Path], part: pathlib.Path, size: int) -> int:
    """Write the pictures that are missing in `part`, and return the number of unreadable ones."""
    report, unreadable = progress.Progress("copying", len(left)), 0
    jobs = (
        (path, part / name, part / _OWN / str(number), size)
        for number, (name, path) in enumerate(left.items())
    )
    for done, error in enumerate(progress.in_order(_copy_one, jobs, progress.cores()), 1):
        if error:
            print(f"error: {error}", file=sys.stderr)
            unreadable += 1
        report(done)
    return unreadable


def _copy_one(job: tuple[pathlib.Path, pathlib.Path, pathlib.Path, int]) -> str | None:
    """Write the copy of a picture, completely or not at all. Return the reason if it cannot be read."""
    from PIL import Image

    from alexnet_jax.datasets import images

    path, copy, unfinished, size = job
    try:
        if not path.is_file():
            raise ValueError("not a file")
        picture = images.fit(images.decode(images.read_file(path), oriented=True), size, 3)
    except (OSError, ValueError) as error:
        return f"{printable(path)}: cannot be read as a picture ({reason(error)})"
    Image.fromarray(picture).save(unfinished, "BMP")
    os.replace(unfinished, copy)
    return None


if __name__ == "__main__":
    command_line.run(main)
