"""Configurations of the data sets that the tests prepare, and all that one holds."""

import pytest

from alexnet_jax import config as configuration
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError
from configs import paper, quickstart


def fashion_mnist(data_dir, **changes):
    config = quickstart.get_config()
    config.data.dir = str(data_dir)
    config.update_from_flattened_dict(changes)
    return config


def ilsvrc(year, archives, data_dir, **changes):
    config = paper.get_config(year)
    config.data.manual_dir, config.data.dir, config.data.store = str(archives), str(data_dir), "jpeg"
    config.update_from_flattened_dict(changes)
    configuration.check(config)
    return config


def examples(config, split):
    """{file name: (image, label)} of all examples of an ILSVRC, as `read` gives them."""
    field = {"train": "train_split", "validation": "val_split", "test": "test_split"}[split]
    source = open_source(config, field)
    examples = source.builder.as_data_source(source.split)
    names = [example["file_name"].decode() for example in examples]
    images, labels = source.read(range(len(source)))
    assert len(set(names)) == len(names)
    return {name: (image, int(label)) for name, image, label in zip(names, images, labels, strict=True)}


def assert_refused(archives, data_dir, message):
    """The archives of ILSVRC-2010 are, in one line, and nothing is left that could pass for a data set."""
    with pytest.raises(InputError) as raised:
        open_source(ilsvrc("2010", archives, data_dir), "train_split")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not [path for path in data_dir.rglob("*") if "incomplete" in path.name]
    assert not list(data_dir.rglob("*.array_record*"))
