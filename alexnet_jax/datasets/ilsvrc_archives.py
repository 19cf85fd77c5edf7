"""The official archives of ILSVRC-2010 and 2012 as downloaded: their images and labels.

    Archives(folder, year)      checks everything that can be checked without reading the images
    Archives.images(split)      yields every image of a split, with its label, in the archive's order

Nothing is extracted to disk. The name of a member is compared with the expected one, and never used as a
path. Every InputError names the file (and the member) on one line.
"""

import contextlib
import dataclasses
import gzip
import io
import pathlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from alexnet_jax.runtime.errors import InputError, input_errors
from alexnet_jax.runtime.files import BoundedReader, read_file, stand_in

FILES = {
    "2010": {
        "train": "ILSVRC2010_images_train.tar",
        "validation": "ILSVRC2010_images_val.tar",
        "test": "ILSVRC2010_images_test.tar",
        "devkit": "ILSVRC2010_devkit-1.0.tar.gz",
        "test_labels": "ILSVRC2010_test_ground_truth.txt",
        "patches": "patch_images.tar",
    },
    "2012": {
        "train": "ILSVRC2012_img_train.tar",
        "validation": "ILSVRC2012_img_val.tar",
        "devkit": "ILSVRC2012_devkit_t12.tar.gz",
    },
}
# Far above any picture or table in the real archives. Larger ones are rejected, not read into memory.
LARGEST = 256 << 20
_LARGEST_KIT = 128 << 20  # bytes of a development kit, or of a table of its meta.mat, unpacked
_LARGEST_PART = 64 << 20  # bytes of a development kit, which has 2.5 MB, and of a member of it
_LARGEST_LABELS = 4 << 20  # bytes of a ground truth, which has 0.7 MB for 150,000 images
_AGAIN = "download it again"
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture as stored in an archive."""

    split: str
    archive: str  # path of the archive
    member: str  # name of the member, for messages only
    name: str  # last part of the member's name, such as n01440764_18.JPEG
    label: int
    content: bytes  # the file of the picture or of its replacement; may still be gzipped

    def unpacked(self) -> bytes:
        """Return the picture's file. Raises ValueError if it is gzipped and damaged."""
        if not self.content.startswith(b"\x1f\x8b"):
            return self.content
        try:
            with gzip.open(io.BytesIO(self.content)) as file:
                content = file.read(LARGEST)
        except _DAMAGE as error:
            raise ValueError(f"gzipped and damaged: {error}") from None
        return content


@dataclasses.dataclass(frozen=True)
class Devkit:
    """The development kit. Labels 0, 1, … are the leaf classes in the order of their WordNet ids."""

    label_names: tuple[str, ...]  # "n01440764 tench, Tinca tinca"
    label_of_wnid: dict[str, int]
    label_of_number: dict[bytes, int]  # by ILSVRC2012_ID or ILSVRC2010_ID, as in the ground truth
    train_counts: dict[str, int]  # images per WordNet id
    validation_labels: list[int]  # in the order of the images' names


class Archives:
    """The archives of a year in a folder.

    Raises InputError if a file is missing, truncated or another one, or if the numbers of validation and test
    images, or the classes of the training archive, differ from the development kit's. Only the headers of the
    archives are read (in the training archive, those of the 1000 inner archives), which takes seconds.
    """

    def __init__(self, folder, year: str):
        self.paths = {part: pathlib.Path(folder) / name for part, name in FILES[year].items()}
        missing = [path.name for path in self.paths.values() if not path.is_file()]
        if missing:
            raise InputError(
                f"data.manual_dir: {folder} lacks {', '.join(missing)}; put the official archives of"
                f" ILSVRC-{year} there, as they were downloaded"
            )
        for path in self.paths.values():
            with _open(path) as file:
                if what := stand_in(file.read(4096)):
                    raise InputError(f"{path}: is {what}")
        self.devkit = read_devkit(self.paths["devkit"], year)
        self._classes = self._training_classes()
        truth = f"{self.paths['devkit']}, {_truth(year)}"
        self._labels = {"validation": self._match("validation", year, self.devkit.validation_labels, truth)}
        if "test" in self.paths:
            truth = self.paths["test_labels"]
            with input_errors(f"{truth}: cannot be read", _AGAIN):
                text = read_file(truth, _LARGEST_LABELS)
            labels = _labels(text, self.devkit.label_of_number, truth)
            self._labels["test"] = self._match("test", year, labels, truth)
        self._patches = self._find_patches() if "patches" in self.paths else {}
        self.counts = {"train": sum(self.devkit.train_counts.values())}
        self.counts |= {split: len(found) for split, found in self._labels.items()}

    def images(self, split: str) -> Iterator[Picture]:
        """Yield every image. Raises InputError if an archive turns out to be damaged as it is read."""
        with contextlib.ExitStack() as stack:
            patches: Any = stack.enter_context(_open(self.paths["patches"])) if self._patches else None
            found = self._train_images() if split == "train" else self._flat_images(split)
            for picture in found:
                if picture.name in self._patches:
                    info, archive = self._patches[picture.name], str(self.paths["patches"])
                    patches.seek(info.offset_data)
                    content = patches.read(info.size)
                    picture = dataclasses.replace(picture, archive=archive, member=info.name, content=content)
                yield picture

    def _training_classes(self) -> list[tuple[str, tarfile.TarInfo]]:
        """Return (WordNet id, its archive), in the order of the outer archive."""
        path, counts = self.paths["train"], self.devkit.train_counts
        classes = []
        with _open(path) as file:
            for info in _entries(file, path):
                wnid = _last_part(info).removesuffix(".tar")
                if not info.name.endswith(".tar") or wnid not in counts:
                    raise _mistaken(path, info.name, "the archive of a class of the development kit")
                classes.append((wnid, info))
        wnids = [wnid for wnid, _ in classes]
        lacking = sorted(set(counts) - set(wnids))
        twice = [wnid for wnid in counts if wnids.count(wnid) > 1]
        if lacking or twice:
            what = f"lacks {lacking[0]}.tar" if lacking else f"has {twice[0]}.tar twice"
            raise InputError(
                f"{path}: {what} (it has {len(classes)} classes, the development kit {len(counts)});"
                " it is cut short or another archive; download it again"
            )
        return classes

    def _match(self, split: str, year: str, labels: list[int], truth) -> dict[str, int]:
        """Return the label of each image name; the ground truth has one line per image, in name order."""
        path = self.paths[split]
        pattern = re.compile(rf"ILSVRC{year}_{'val' if split == 'validation' else 'test'}_\d{{8}}\.JPEG")
        names = []
        with _open(path) as file:
            for info in _entries(file, path):
                name = _last_part(info)
                if not pattern.fullmatch(name):
                    raise _mistaken(path, info.name, f"an image of the {split} split of ILSVRC-{year}")
                names.append(name)
        if len(names) != len(labels):
            raise InputError(
                f"{path}: has {len(names):,} images, but {truth} has {len(labels):,} lines; one of the two is"
                " truncated or damaged; download them again"
            )
        label_of_name = dict(zip(sorted(names), labels, strict=True))
        if len(label_of_name) != len(names):
            raise InputError(f"{path}: has images with the same name; it is damaged; download it again")
        return label_of_name

    def _find_patches(self) -> dict[str, tarfile.TarInfo]:
        """Return the replacement of each blank image, by the image's name."""
        path, patches = self.paths["patches"], {}
        pattern = re.compile(r"(n\d{8}_\d+|ILSVRC2010_(val|test)_\d{8})\.JPEG")
        with _open(path) as file:
            for info in _entries(file, path):
                name = _last_part(info)
                if pattern.fullmatch(name):
                    _check_size(info, path)
                    patches[name] = info
                elif name.endswith((".JPEG", ".tar")):
                    raise _mistaken(path, info.name, "the replacement of a blank image of ILSVRC-2010")
        for split, labels in self._labels.items():
            if labels and labels.keys() <= patches.keys():
                raise InputError(
                    f"{path}: has every image of the {split} split, not replacements of a few; it is another"
                    " archive; download it again"
                )
        return patches

    def _train_images(self) -> Iterator[Picture]:
        path = self.paths["train"]
        with _open(path) as file, tarfile.open(fileobj=file, mode="r:") as outer:
            for wnid, archive in self._classes:
                label, names = self.devkit.label_of_wnid[wnid], set()
                inner: Any = outer.extractfile(archive)
                for info, content in _contents(BoundedReader(inner.raw, LARGEST), f"{path}, {wnid}.tar"):
                    name = _last_part(info)
                    if name in names:
                        raise InputError(f"{path}, {wnid}.tar: has {name!r} twice; download it again")
                    names.add(name)
                    yield Picture("train", str(path), f"{wnid}.tar, {info.name}", name, label, content)
                if len(names) != self.devkit.train_counts[wnid]:
                    raise InputError(
                        f"{path}, {wnid}.tar: has {len(names):,} images, but the development kit says"
                        f" {self.devkit.train_counts[wnid]:,}; one of the two is damaged; download them again"
                    )

    def _flat_images(self, split: str) -> Iterator[Picture]:
        path, labels = self.paths[split], self._labels[split]
        with _open(path) as file:
            for info, content in _contents(file, path):
                name = _last_part(info)
                yield Picture(split, str(path), info.name, name, labels[name], content)


def read_devkit(path, year: str) -> Devkit:
    """Read a development kit. Raises InputError if it is damaged, of another year, or contradicts itself."""
    truth, contents = _truth(year), {}
    with _damage(path):
        with gzip.open(io.BytesIO(read_file(path, _LARGEST_PART))) as packed:
            unpacked = packed.read(_LARGEST_KIT + 1)
        if len(unpacked) > _LARGEST_KIT:
            raise ValueError(f"more than {_LARGEST_KIT:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            for info in tar:
                name = info.name.rpartition("/")[2]
                if name in ("meta.mat", truth) and info.isreg() and info.size <= _LARGEST_PART:
                    contents[name] = tar.extractfile(info).read()  # type: ignore[union-attr]  # a plain file
    for name in ("meta.mat", truth):
        if name not in contents:
            raise InputError(f"{path}: has no {name}; give the development kit of ILSVRC-{year}")
    try:
        # SciPy may crash on a damaged file, but reading the kit's gzip above has detected accidental damage.
        import scipy.io  # here, because it takes 0.1 s

        meta = scipy.io.loadmat(io.BytesIO(contents["meta.mat"]), squeeze_me=True)
        synsets = np.atleast_1d(meta["synsets"])
        leaves = sorted(
            (str(row["WNID"]), str(row["words"]), int(row[f"ILSVRC{year}_ID"]), int(row["num_train_images"]))
            for row in synsets
            if int(row["num_children"]) == 0
        )
    except Exception as error:  # loadmat raises nearly any exception for a damaged file
        raise InputError(
            f"{path}, meta.mat: cannot be read ({type(error).__name__}: {error}); {_AGAIN}"
        ) from None
    wnids, words, numbers, counts = zip(*leaves, strict=True) if leaves else ((), (), (), ())
    sound = all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids) and min(counts, default=0) > 0
    if not sound or len(set(wnids)) != len(wnids) or len(set(numbers)) != len(numbers):
        raise InputError(f"{path}, meta.mat: its classes are not those of ILSVRC-{year}; download it again")
    label_of_number = {b"%d" % number: label for label, number in enumerate(numbers)}
    return Devkit(
        label_names=tuple(
            f"{wnid} {' '.join(word.split())}" for wnid, word in zip(wnids, words, strict=True)
        ),
        label_of_wnid=dict(zip(wnids, range(len(wnids)), strict=True)),
        label_of_number=label_of_number,
        train_counts=dict(zip(wnids, counts, strict=True)),
        validation_labels=_labels(contents[truth], label_of_number, f"{path}, {truth}"),
    )


def _labels(text: bytes, label_of_number: dict[bytes, int], where) -> list[int]:
    """Return the labels of a ground truth, which has one class number per line."""
    if len(text) > _LARGEST_LABELS:
        raise InputError(f"{where}: has more than {_LARGEST_LABELS:,} bytes; download it again")
    words = text.split()
    for line, word in enumerate(words, 1):
        if word not in label_of_number:
            raise InputError(
                f"{where}: line {line}, {word[:40]!r}, is not a class of the development kit; download it"
                " again"
            )
    return [label_of_number[word] for word in words]


def _truth(year: str) -> str:
    return f"ILSVRC{year}_validation_ground_truth.txt"


def _open(path):
    with input_errors(f"{path}: cannot be read", "check its permissions"):
        return BoundedReader(open(path, "rb", buffering=0), LARGEST)


def _damage(where):
    return input_errors(f"{where}: truncated, damaged or not an archive", _AGAIN, _DAMAGE)


def _mistaken(path, member: str, wanted: str) -> InputError:
    return InputError(f"{path}: its member {member!r} is not {wanted}; it is another archive or damaged")


def _last_part(info: tarfile.TarInfo) -> str:
    return info.name.rpartition("/")[2]


def _entries(file, where) -> Iterator[tarfile.TarInfo]:
    """Yield every plain file in a tar, reading only its headers."""
    with (
        _damage(where),
        tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="strict") as tar,
    ):
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise InputError(f"{where}: its member {info.name!r} is not a plain file; download it again")
            yield info
        # tarfile mistakes a damaged or missing header for the end, which is a block of zeros.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"neither a header nor the end at byte {tar.offset:,}")


def _check_size(info: tarfile.TarInfo, where) -> None:
    if info.size > LARGEST:
        raise InputError(f"{where}: its member {info.name!r} has {info.size:,} bytes, too many for a picture")


def _contents(file, where) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield every plain file in a tar, with its content."""
    for info in _entries(file, where):
        _check_size(info, where)
        with input_errors(f"{where}: its member {info.name!r} cannot be read", _AGAIN):
            file.seek(info.offset_data)
            content = file.read(info.size)
        if len(content) != info.size:
            raise InputError(f"{where}: truncated in its member {info.name!r}; download it again")
        yield info, content
