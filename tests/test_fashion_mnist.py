"""alexnet_jax/datasets/fashion_mnist.py: the shipped files and the data set made of them."""

import gzip
import os
import shutil
import struct

import numpy as np
import pytest
from helpers import data_sets

from alexnet_jax.datasets import fashion_mnist
from alexnet_jax.datasets.prepared import prepared_builder
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError


def idx(name):
    """The shipped file, read by the format's own description."""
    content = gzip.decompress((fashion_mnist.FILES / name).read_bytes())
    axes = content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    return np.frombuffer(content[4 + 4 * axes :], np.uint8).reshape(shape)


@pytest.mark.parametrize("split, stem, count", [("train", "train", 60_000), ("test", "t10k", 10_000)])
def test_the_prepared_data_is_the_shipped_data(data_dir, split, stem, count):
    source = open_source(data_sets.fashion_mnist(data_dir, **{"data.test_split": split}), "test_split")
    images, labels = idx(f"{stem}-images-idx3-ubyte.gz"), idx(f"{stem}-labels-idx1-ubyte.gz")
    assert len(source) == count == len(images) == len(labels)
    assert np.bincount(labels).tolist() == [count // 10] * 10
    prepared, prepared_labels = source.read(range(0, count, 7))
    # TFDS shuffles when it writes: compare as sets of (label, image).
    shipped = {(label, image.tobytes()) for label, image in zip(labels, images, strict=True)}
    mine = {(label, image.tobytes()) for label, image in zip(prepared_labels, prepared, strict=True)}
    assert mine <= shipped and source.label_names[0] == "T-shirt/top"


def test_a_truncated_shipped_file_is_named(tmp_path):
    name = "t10k-images-idx3-ubyte.gz"
    cut = tmp_path / name
    cut.write_bytes((fashion_mnist.FILES / name).read_bytes()[:100_000])
    with pytest.raises(InputError, match=name):
        fashion_mnist.read_idx(cut, (10_000, 28, 28, 1))
    with pytest.raises(InputError, match="labels"):
        fashion_mnist.read_idx(fashion_mnist.FILES / "t10k-labels-idx1-ubyte.gz", (9_999,))


def test_a_truncated_shipped_file_leaves_no_data_set(tmp_path, monkeypatch):
    shutil.copytree(fashion_mnist.FILES, tmp_path / "files")
    os.truncate(tmp_path / "files" / "t10k-images-idx3-ubyte.gz", 1000)
    config = data_sets.fashion_mnist(tmp_path / "data")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="t10k-images"):
        patch.setattr(fashion_mnist, "FILES", tmp_path / "files")
        prepared_builder(config)
    assert not list((tmp_path / "data").rglob("*.array_record*"))
