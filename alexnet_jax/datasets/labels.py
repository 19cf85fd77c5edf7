"""Which label of a data set is which class of a network."""

import logging
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from alexnet_jax.datasets.source import Source
from alexnet_jax.runtime.errors import InputError

log = logging.getLogger("alexnet_jax")


def check_labels(config, source: Source) -> None:
    """Raise InputError if the data set has more classes than the network."""
    classes = len(source.label_names)
    if classes > config.model.num_classes:
        raise InputError(
            f"model.num_classes: {config.model.num_classes}, but {config.data.name} has {classes} classes;"
            f" give {classes}"
        )


def imagenet_classes() -> list[str]:
    """ImageNet's 1000 classes of ILSVRC-2012, as "n01440764 tench", in the order of their WordNet ids."""
    text = pathlib.Path(__file__).with_name("imagenet_classes.txt").read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def with_labels_of(label_names: Sequence[str] | np.ndarray, source: Source) -> Source:
    """Return `source` with the labels of the network whose classes are `label_names`, found by WordNet id.

    A WordNet id is n and eight digits, and both must name every class by one, as a folder with 10 of
    ImageNet's 1000 classes does. Otherwise `source` is returned as it is: its label i is the network's class
    i. Raises InputError for a class that the network lacks.
    """
    network, data = (
        [match[0] for match in (re.match(r"n\d{8}(?!\S)", str(name)) for name in names) if match]
        for names in (label_names, source.label_names)
    )
    all_named = len(network) == len(label_names) > 0 and len(data) == len(source.label_names)
    if not all_named or network == data:
        return source
    unknown = [wnid for wnid in data if wnid not in network]
    if unknown:
        raise InputError(
            f"data.name: the network lacks {len(unknown)} classes of the data set, first {unknown[0]}; leave"
            " them out"
        )
    log.info(f"the {len(data)} classes of the data set are found among the network's by their WordNet ids")
    return _Relabelled(source, label_names, [network.index(wnid) for wnid in data])


class _Relabelled:
    def __init__(self, source: Source, label_names: Sequence[str] | np.ndarray, labels: list[int]):
        """`labels` has, for each label of `source`, its place among `label_names`."""
        self._source, self._labels = source, np.array(labels, np.int32)
        self.label_names = tuple(map(str, label_names))
        self.folder, self.split = source.folder, source.split

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self._source.read(indices)
        return images, self._labels[labels]
