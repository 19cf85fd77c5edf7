"""Match the labels of a data set with the classes of a network."""

import logging
import pathlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from alexnet_jax.datasets.source import Source
from alexnet_jax.runtime.errors import InputError, some

log = logging.getLogger("alexnet_jax")


def imagenet_classes() -> list[str]:
    """Return the 1000 classes of ILSVRC-2012, as "n01440764 tench", in the order of their WordNet ids."""
    text = pathlib.Path(__file__).with_name("imagenet_classes.txt").read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def with_labels_of(label_names: Sequence[str] | np.ndarray, source: Source) -> Source:
    """Return `source` with labels matched by name to a network's classes, `label_names`.

    If one side has no names, label i of the data set is class i of the network, and the log says so. Raises
    InputError for classes that the network lacks.
    """
    network, data = [str(name) for name in label_names], [str(name) for name in source.label_names]
    classes = classes_by_name(network, data)
    if classes is None:
        side = "network" if _has_no_names(network) else "data set"
        log.info(f"labels are matched by position: the {side} has no class names")
    if classes is None or classes == list(range(len(network))):
        return source
    log.info(f"the data set's {len(data)} classes are matched by name with the network's {len(network)}")
    return _Relabelled(source, label_names, classes)


def classes_by_name(network: Sequence[str], data: Sequence[str]) -> list[int] | None:
    """Return the network's class for each class of the data set, matched by name.

    Names match if their WordNet ids (n and eight digits at the start) are equal, or their whole texts or, if
    one side has no id, the words after it. Capitals are ignored unless two classes differ only by them.
    Return None if one side has no names, or only numbers in order. Raises InputError for names that the
    network lacks.
    """
    places: dict[tuple, list[int]] = {}
    for label, name in enumerate(network):
        for key in _keys(name):
            places.setdefault(key, []).append(label)
    found = [next((places[key] for key in _keys(name, sought=True) if key in places), []) for name in data]
    if all(len(classes) == 1 for classes in found):
        classes = [label for (label,) in found]
        for label in set(classes) if len(set(classes)) < len(classes) else ():
            same = [name for name, other in zip(data, classes, strict=True) if other == label]
            if len(same) > 1:
                raise InputError(
                    f"data.name: its classes {some(same)} are the network's {network[label]!r}; join them"
                )
        return classes
    if _has_no_names(network) or _has_no_names(data):
        if any(name.isdecimal() for name in data) and not _has_no_names(data):
            raise InputError(
                f"data.name: its classes are numbers in the order of text, {some(list(data))}, and the"
                " network has no names; rename them 00, 01, …"
            )
        return None
    lacking = [name for name, classes in zip(data, found, strict=True) if not classes]
    if lacking:
        raise InputError(
            f"data.name: the network lacks {len(lacking)} of its {len(data)} classes, {some(lacking)}; the"
            f" network has {some(list(network))}; rename them, or leave them out"
        )
    name, classes = next(both for both in zip(data, found, strict=True) if len(both[1]) > 1)
    raise InputError(
        f"data.name: its class {name!r} may be any of the network's {some([network[c] for c in classes])};"
        " rename it"
    )


def _keys(name: str, sought: bool = False) -> list[tuple]:
    """Return the keys that match a name, the strictest first; `sought` if it is the name to look up."""
    # Editors and file systems change capitals, spaces, byte-order marks and the encoding of accents.
    text = " ".join(unicodedata.normalize("NFC", name).replace("\ufeff", "").casefold().split())
    wnid = re.match(r"n\d{8}(?!\S)", text)
    words = text[wnid.end() :].strip() if wnid else text
    by_words = bool(wnid) != sought, words
    return [
        ("name", name),
        *([("id", wnid[0])] if wnid else []),
        ("text", text),
        *([by_words] if words else []),
    ]


def _has_no_names(names: Sequence[str]) -> bool:
    """Return whether there are no names, or only numbers in order, as in TFDS if a data set gives none."""
    numbers = [re.fullmatch(r"(?:class )?0*(\d+)", name) for name in names]
    return all(match and int(match[1]) == label for label, match in enumerate(numbers))


class _Relabelled:
    def __init__(self, source: Source, label_names: Sequence[str] | np.ndarray, labels: list[int]):
        """Replace label i of `source` by `labels[i]`, an index into `label_names`."""
        self._source, self._labels = source, np.array(labels, np.int32)
        self.label_names = tuple(map(str, label_names))
        self.folder, self.split = source.folder, source.split

    def __len__(self) -> int:
        return len(self._source)

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def read(self, indices) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self._source.read(indices)
        return images, self._labels[labels]
