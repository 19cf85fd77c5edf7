"""alexnet_jax/datasets/source.py: splits of every kind of data set are opened as one kind of object."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import data_sets
from helpers import small_archives as small

from alexnet_jax.datasets.labels import with_labels_of
from alexnet_jax.datasets.source import open_source


@pytest.fixture
def folder(tmp_path):
    """Two classes of two pictures each."""
    for number in range(4):
        path = tmp_path / "train" / ["n00000001", "n00000002"][number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(small.file_of(small.photograph(number)))
    return data_sets.fashion_mnist(tmp_path, **{"data.name": "folder", "data.train_split": "train"})


@pytest.mark.parametrize("kind", ["folder", "relabelled", "jpeg", "raw"])
def test_every_kind_of_source_is_as_the_protocol_says(kind, folder, data_dir):
    config = folder
    if kind in ("jpeg", "raw"):
        changes = {"data.store": kind, "data.train_split": "train[:10]"}
        config = data_sets.fashion_mnist(data_dir, **changes)
    source = open_source(config, "train_split")
    if kind == "relabelled":
        source = with_labels_of(["n00000003", "n00000002", "n00000001"], source)
    images, labels = source.read([3, 0, 3])
    assert len(source) == (10 if kind in ("jpeg", "raw") else 4)
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    assert images.shape == (3, 28, 28, 1) and labels.shape == (3,)
    again, labels_again = source.read(np.array([0, 3]))
    np.testing.assert_array_equal(images, again[[1, 0, 1]])
    np.testing.assert_array_equal(labels, labels_again[[1, 0, 1]])
    assert all(isinstance(source.label_names[label], str) for label in labels)
    assert source.split == config.data.train_split and source.folder.is_dir()


def loaded(code, modules):
    """Those of `modules` that `code` loads."""
    code += f"\nimport sys; print(*({set(modules)!r} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


OPEN = """
from alexnet_jax import step
from alexnet_jax.datasets import batches
from configs import quickstart
from alexnet_jax.datasets.source import open_source
config = quickstart.get_config()
config.data.update({data!r})
open_source(config, "test_split").read([0, 1])
"""


@pytest.mark.program
def test_reading_does_not_import_tensorflow(data_dir):
    assert not loaded(OPEN.format(data={"dir": str(data_dir)}), {"tensorflow"})


@pytest.mark.program
def test_a_folder_is_read_without_tfds(folder):
    data = {"name": "folder", "dir": folder.data.dir, "test_split": "train"}
    modules = {"tensorflow", "tensorflow_datasets", "alexnet_jax.datasets.prepared"}
    assert not loaded(OPEN.format(data=data), modules)


@pytest.mark.program
def test_training_is_imported_without_tfds():
    assert not loaded("import alexnet_jax.train", {"tensorflow", "tensorflow_datasets"})
