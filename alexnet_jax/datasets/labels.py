"""Which label of a data set is which class of a network."""

import logging
import pathlib
import re

import numpy as np

from alexnet_jax.runtime.errors import InputError

log = logging.getLogger("alexnet_jax")


def check_labels(config, source) -> None:
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


def with_labels_of(label_names, source):
    """`source` with the network's labels, where WordNet ids (n and eight digits) say which class is which.

    Both must name every class by one: a folder with 10 of ImageNet's 1000 classes, say. In all other cases
    label i of the data set is class i of the network. Raises InputError for a class that the network has not.
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
    return _Relabelled(source, [network.index(wnid) for wnid in data])


class _Relabelled:
    def __init__(self, source, labels):
        self._source, self._labels = source, np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices):
        images, labels = self._source.read(indices)
        return images, self._labels[labels]
