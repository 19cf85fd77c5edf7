"""alexnet_jax/datasets/labels.py: which label of a data set is which class of a network."""

import logging
import pathlib

import numpy as np
import pytest
from helpers.sources import MadeUp

from alexnet_jax.datasets import labels
from alexnet_jax.datasets.labels import with_labels_of
from alexnet_jax.datasets.source import check_labels
from alexnet_jax.runtime.errors import InputError
from configs import quickstart


def source_of(label_names):
    """A source whose example i has label i."""
    count = len(label_names)
    return MadeUp(np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1), range(count), label_names)


IMAGENET = [
    line
    for line in pathlib.Path(labels.__file__).with_name("imagenet_classes.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(
    "network, data, wanted",
    [
        (IMAGENET, ["n02099601", "n01440764 tench, Tinca tinca"], [207, 0]),
        (["n02099601x", "n01440764"], ["n01440764"], [1]),
        (np.array(["n02099601", "n01440764"]), ("n01440764", "n02099601"), [1, 0]),
        (["ant", "bee", "cow", "dog"], ["ant", "cow", "dog"], [0, 2, 3]),
        (["Ant", "BEE "], ["\ufeffbee", "ant"], [1, 0]),
        (["Polish", "polish"], ["polish", "Polish"], [1, 0]),  # capitals count where classes differ by them
        (["e\u0301cole", "n01440764 tench"], ["tench", "\u00e9cole"], [1, 0]),
        (["tench", "dog"], ["n01440764 tench"], [0]),
        ([str(n) for n in range(11)], ["1", "10", "2"], [1, 10, 2]),
        (["1", "10", "2"], ["2", "1"], [2, 0]),
    ],
)
def test_labels_are_found_by_name(network, data, wanted, caplog):
    caplog.set_level(logging.INFO, "alexnet_jax")
    source = with_labels_of(network, source_of(data))
    assert len(source) == len(data)
    images, found = source.read(range(len(data)))
    assert images.ravel().tolist() == list(range(len(data))) and found.tolist() == wanted
    assert (source.folder, source.split, source.fingerprint()) == (pathlib.Path("data"), "train", "1f")
    assert "are matched by name" in caplog.text


@pytest.mark.parametrize(
    "network, data, side",
    [
        (["class 0", "class 1"], ["n02099601", "n01440764"], "network"),
        ([], ["n01440764"], "network"),
        (["0", "1", "2"], ["ant", "bee"], "network"),
        (["ant", "bee"], ["0", "1"], "data set"),
        (["class 0", "class 1"], ["00", "01"], "network"),
    ],
)
def test_labels_go_by_position_where_one_side_has_no_names_and_a_line_says_so(network, data, side, caplog):
    caplog.set_level(logging.INFO, "alexnet_jax")
    source = source_of(data)
    assert with_labels_of(network, source) is source
    assert caplog.messages == [f"labels are matched by position: the {side} has no class names"]


@pytest.mark.parametrize("names", [["ant", "bee"], ["0", "1"], ["n01440764 tench"]])
def test_equal_names_are_not_worth_a_line(names, caplog):
    caplog.set_level(logging.INFO, "alexnet_jax")
    source = source_of(names)
    assert with_labels_of(names, source) is source and not caplog.messages


@pytest.mark.parametrize(
    "network, data, message",
    [
        (IMAGENET, ["n02099601", "n99999999"], "lacks 1 of its 2 classes, 'n99999999'"),
        (IMAGENET, ["n02099601", "hound"], "lacks 1 of its 2 classes, 'hound'"),
        (
            ["ant", "bee"],
            ["ape", "cow", "dog", "emu"],
            "lacks 4 of its 4 classes, 'ape', 'cow', 'dog' and 1 more",
        ),
        (["class 0", "class 1", "class 2"], ["1", "10", "2"], "numbers in the order of text, '1', '10', '2'"),
        (["cat", "dog"], ["Cat", "cat"], "'Cat', 'cat' are the network's 'cat'"),
        (["n02012849 crane", "n03126707 crane"], ["crane"], "'crane' may be any of .*n02012849.*n03126707"),
        (["n02012849 crane"], ["n03126707 crane"], "lacks 1 of its 1 classes"),
    ],
)
def test_names_that_the_network_lacks_or_has_twice_are_refused(network, data, message):
    with pytest.raises(InputError, match=message):
        with_labels_of(network, source_of(data))


def test_names_are_those_of_the_labels_that_are_read():
    source = with_labels_of(np.array(["n02099601 b", "n01440764 a"]), source_of(["n01440764"]))
    assert source.read([0])[1].tolist() == [1] and source.label_names == ("n02099601 b", "n01440764 a")


def test_a_network_has_at_least_the_classes_of_the_data_set():
    config = quickstart.get_config()
    check_labels(config, source_of("0123456789"))
    with pytest.raises(InputError, match="model.num_classes: 10, but .* has 11 classes; give 11"):
        check_labels(config, source_of("0123456789a"))
