"""alexnet_jax/datasets/labels.py: which label of a data set is which class of a network."""

import pathlib

import numpy as np
import pytest

from alexnet_jax.datasets import labels
from alexnet_jax.datasets.labels import check_labels, with_labels_of
from alexnet_jax.runtime.errors import InputError
from configs import quickstart


class Labels:
    """A source whose example i has label i."""

    folder, split = pathlib.Path("data"), "train"

    def __init__(self, label_names):
        self.label_names = label_names

    def __len__(self):
        return len(self.label_names)

    def read(self, indices):
        return "images", np.array(indices, np.int32)


IMAGENET = [
    line
    for line in pathlib.Path(labels.__file__).with_name("imagenet_classes.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(
    "network, data, wanted",
    [
        (IMAGENET, ["n02099601", "n01440764 tench, Tinca tinca"], [207, 0]),
        (IMAGENET, ["n02099601", "dog"], [0, 1]),
        (["class 0", "class 1"], ["n02099601", "n01440764"], [0, 1]),
        (["n02099601x", "n01440764"], ["n01440764"], [0]),
        ([], ["n01440764"], [0]),
        (np.array(["n02099601", "n01440764"]), ("n01440764", "n02099601"), [1, 0]),
    ],
)
def test_labels_are_found_by_wordnet_id_where_both_have_them(network, data, wanted):
    source = with_labels_of(network, Labels(data))
    assert len(source) == len(data)
    images, found = source.read(range(len(data)))
    assert images == "images" and found.tolist() == wanted
    assert (source.folder, source.split) == (pathlib.Path("data"), "train")


def test_names_are_those_of_the_labels_that_are_read():
    source = with_labels_of(np.array(["n02099601 b", "n01440764 a"]), Labels(["n01440764"]))
    assert source.read([0])[1].tolist() == [1] and source.label_names == ("n02099601 b", "n01440764 a")


def test_a_class_that_the_network_has_not_is_told():
    with pytest.raises(InputError, match="lacks 1 classes.*n99999999"):
        with_labels_of(IMAGENET, Labels(["n02099601", "n99999999"]))


def test_a_network_has_at_least_the_classes_of_the_data_set():
    config = quickstart.get_config()
    check_labels(config, Labels("0123456789"))
    with pytest.raises(InputError, match="model.num_classes: 10, but .* has 11 classes; give 11"):
        check_labels(config, Labels("0123456789a"))
