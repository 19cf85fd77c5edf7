"""alexnet_jax/datasets/splits.py: the syntax of splits, against TFDS."""

import itertools
import random

import pytest
import tensorflow_datasets as tfds

from alexnet_jax.datasets import splits

LENGTHS = {"train": 1003, "val": 7, "a-b_2": 100, "empty": 0}
BOUNDS = (
    "", "0", "-0", "1", "5", "-5", "7", "-7", "8", "99", "100", "101", "1003", "-1003", "1004", "-1004",
    "1_0", "1__0", "2.5", ".", "-", "--1", "+1", "1e1", "x", " 5", "5 ", "0%", "-0%", "0.05%", "0.15%", "33%",
    "33.3%", "50%", "-50%", "99.95%", "100%", "-100%", "100.1%", "-101%", "1_0%", "%", "5%%", "1shard", "٣",
)  # fmt: skip
OTHERS = (
    "", " ", "train", " train", "train ", "train[", "train]", "train[]", "train[:]", "train[5]", "train[5%]",
    "train[::]", "train[1:2:3]", "train[1:2", "train[1:2]x", "train[1:2][1:2]", "train(1:2)", "no such",
    "nosuch", "Train", "nosuch[:5]", "+", "train+", "+train", "train++val", "train+val", "train + val",
    "train  +\tval", "train-val", "train,val", "train[:10]+val[50%:]+train[-3:]", "train[:5]+val[:8]",
    "a-b_2[10:20]", "empty", "empty[:0]", "empty[:50%]", "empty[:1]", "train[0shard]", "train[:1shard]",
    "train[:50 %]", "träin", "val+no", "9" * 5000, f"train[:{'9' * 5000}]", f"train[:{'9' * 400}%]",
)  # fmt: skip


def of_tfds(split):
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[length], num_bytes=0)
        for name, length in LENGTHS.items()
    }
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    return [(part.splitname, list(range(LENGTHS[part.splitname]))[part.from_ : part.to]) for part in parts]


def ours(split):
    return [
        (part.name, list(range(LENGTHS[part.name]))[part.places(LENGTHS[part.name])])
        for part in splits.parse(split)
    ]


def outcome(function, split):
    try:
        return function(split)
    except (ValueError, KeyError) as error:  # KeyError is a split that is not there
        return "refused" if isinstance(error, ValueError) or error.args[0] in split else repr(error)


def assert_as_tfds(split):
    if "shard" in split:  # a folder has none
        assert outcome(ours, split) == "refused"
    else:
        assert outcome(ours, split) == outcome(of_tfds, split), split


@pytest.mark.parametrize("split", OTHERS)
def test_a_split_is_that_of_tfds(split):
    assert_as_tfds(split)


@pytest.mark.parametrize("name", ["train", "val"])
def test_every_pair_of_bounds_is_that_of_tfds(name):
    for first, last in itertools.product(BOUNDS, BOUNDS):
        assert_as_tfds(f"{name}[{first}:{last}]")


def test_random_splits_are_those_of_tfds():
    draw = random.Random(0)

    def bound(length):
        number = draw.choice([draw.randint(-length - 2, length + 2), round(draw.uniform(-101, 101), 2)])
        return draw.choice(["", str(number), f"{number}%"])

    refused = 0
    for _ in range(4000):
        names = draw.choices(list(LENGTHS), k=draw.randint(1, 3))
        split = draw.choice(["+", " + "]).join(
            draw.choice([name, f"{name}[{bound(LENGTHS[name])}:{bound(LENGTHS[name])}]"]) for name in names
        )
        assert_as_tfds(split)
        refused += outcome(ours, split) == "refused"
    assert 500 < refused < 3500


def test_bounds_are_within_the_split():
    assert splits.Part("train", -3).places(10) == slice(7, 10)
    assert splits.Part("train", 25.0, -25.0, percent=True).places(10) == slice(2, 8)
    assert splits.Part("train", 5, 4).places(10) == slice(5, 4)
