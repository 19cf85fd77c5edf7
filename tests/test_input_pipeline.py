"""alexnet_jax/input_pipeline.py and the shipped data set: what is read, in which order, on which device."""

import gzip
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from alexnet_jax.datasets import fashion_mnist, prepared
from alexnet_jax.datasets.batches import evaluation_batches, examples_of_step, training_batches
from alexnet_jax.datasets.images import fit
from alexnet_jax.datasets.prepared import prepared_builder
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError
from configs import quickstart


class Numbers:
    """A source whose image i is filled with i."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return self.examples

    def read(self, indices):
        indices = np.asarray(indices)
        return np.broadcast_to(indices[:, None, None, None], (len(indices), 2, 2, 1)).astype(
            np.uint8
        ), indices.astype(np.int32)


def config_for(data_dir, **changes):
    config = quickstart.get_config()
    config.data.dir = str(data_dir)
    config.update_from_flattened_dict(changes)
    return config


def sharding(devices=1):
    return NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("data",)), P("data"))


def test_every_epoch_has_every_example_once_in_a_new_order():
    examples, batch = 103, 10
    order = np.concatenate([examples_of_step(3, step, batch, examples) for step in range(42)])
    epochs = order[: 4 * examples].reshape(4, examples)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(examples), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other_seed = examples_of_step(4, 0, examples, examples)
    assert not (other_seed == epochs[0]).all()


def test_without_reshuffling_every_epoch_is_in_the_order_of_the_first():
    first, second = (examples_of_step(3, step, 10, 20, reshuffle=False) for step in (0, 2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, examples_of_step(3, 0, 10, 20))


def test_a_step_larger_than_the_data_spans_several_epochs():
    order = examples_of_step(0, 0, 25, 10)
    assert [sorted(order[:10]), sorted(order[10:20])] == [list(range(10))] * 2 and len(order) == 25


def test_the_order_is_that_of_every_other_machine():
    # Written down once, with NumPy 2.4: a run that is resumed with another version must see the same images.
    assert examples_of_step(7, 2, 12, 12).tolist() == [6, 7, 8, 4, 11, 0, 1, 5, 10, 3, 9, 2]


def test_batches_do_not_depend_on_where_the_run_started():
    config = config_for("")
    config.batch_size = 8
    source = Numbers(50)
    whole = list(training_batches(source, config, sharding(), 0, 20))
    tail = list(training_batches(source, config, sharding(), 13, 20))
    assert len(whole) == 20 and len(tail) == 7
    for (_, a), (_, b) in zip(whole[13:], tail, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole[4][1], examples_of_step(config.seed, 4, 8, 50))


def test_devices_of_the_data_axis_hold_their_rows_of_the_batch():
    config = config_for("")
    config.batch_size = 8
    images, labels = next(training_batches(Numbers(50), config, sharding(4), 0, 1))
    assert images.shape == (8, 2, 2, 1) and [len(s.data) for s in labels.addressable_shards] == [2] * 4
    order = examples_of_step(config.seed, 0, 8, 50)
    for shard in labels.addressable_shards:
        np.testing.assert_array_equal(shard.data, order[shard.index])


def test_both_columns_of_a_pair_hold_the_same_rows():
    devices = np.array(jax.devices()).reshape(2, 2)
    both = NamedSharding(Mesh(devices, ("data", "column")), P("data"))
    config = config_for("")
    config.batch_size = 8
    _, labels = next(training_batches(Numbers(50), config, both, 0, 1))
    by_device = {shard.device: np.asarray(shard.data) for shard in labels.addressable_shards}
    for first, second in devices:
        np.testing.assert_array_equal(by_device[first], by_device[second])


# How the devices of two processes (0 and 1 are the first's) are laid over the axes data and column: each
# process with half of the batch, in pieces, and each with one column of all of it.
MESHES = ([[0], [1], [2], [3]], [[0], [2], [1], [3]], [[0, 2], [1, 3]])
PART = f"""
import sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from alexnet_jax.datasets.batches import training_batches
from alexnet_jax.datasets.source import open_source
from configs import quickstart
port, process, data_dir, out = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{{port}}", 2, int(process), initialization_timeout=60)
config = quickstart.get_config()
config.data.dir, config.data.train_split, config.batch_size = data_dir, "train[:50]", 8
source, found = open_source(config, "train_split"), {{}}
for number, layout in enumerate({MESHES}):
    sharding = NamedSharding(Mesh(np.array(jax.devices())[np.array(layout)], ("data", "column")), P("data"))
    for first in (0, 5):
        for step, batch in enumerate(training_batches(source, config, sharding, first, 8), first):
            for kind, array in zip(("images", "labels"), batch):
                for shard in array.addressable_shards:
                    row = shard.index[0].start
                    found[f"{{number}} {{first}} {{step}} {{row}} {{kind}}"] = np.asarray(shard.data)
np.savez(out, **found)
"""


def test_two_processes_read_the_batches_of_one_wherever_they_start(data_dir, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = [
        [sys.executable, "-c", PART, str(port), str(process), data_dir, tmp_path / f"{process}.npz"]
        for process in (0, 1)
    ]
    processes = [subprocess.Popen(command) for command in commands]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    config = config_for(data_dir, **{"data.train_split": "train[:50]", "batch_size": 8})
    source = open_source(config, "train_split")
    # Step 6 runs on into the second epoch.
    whole = [[np.asarray(a) for a in pair] for pair in training_batches(source, config, sharding(), 0, 8)]
    of_process = [np.load(tmp_path / f"{process}.npz") for process in (0, 1)]
    for number, layout in enumerate(MESHES):
        rows = 8 // len(layout)
        for first, step in [(0, step) for step in range(8)] + [(5, step) for step in range(5, 8)]:
            for kind, expected in zip(("images", "labels"), whole[step], strict=True):
                for position, devices in enumerate(layout):
                    for device in devices:
                        start = position * rows
                        got = of_process[device // 2][f"{number} {first} {step} {start} {kind}"]
                        np.testing.assert_array_equal(got, expected[start : start + rows])


@pytest.mark.parametrize("examples", [1, 8, 9, 23])
def test_padding_marks_what_is_not_real(examples):
    seen = []
    for images, labels, real in evaluation_batches(Numbers(examples), 8, sharding(), 2):
        assert images.shape == (8, 2, 2, 1)
        seen += np.asarray(labels)[np.asarray(real)].tolist()
    assert seen == list(range(examples))


def test_fit_takes_the_central_square_of_the_shorter_side():
    rng = np.random.default_rng(0)
    for height, width in ((300, 500), (90, 120), (256, 256), (1000, 300)):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        scale = 64 / min(height, width)
        size = max(64, round(width * scale)), max(64, round(height * scale))
        resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        top, left = (resized.shape[0] - 64) // 2, (resized.shape[1] - 64) // 2
        expected = resized[top : top + 64, left : left + 64]
        np.testing.assert_array_equal(fit(image, 64, 3), expected)
    grey = rng.integers(0, 256, (64, 64, 1), np.uint8)
    np.testing.assert_array_equal(fit(grey, 64, 3), np.repeat(grey, 3, axis=2))
    np.testing.assert_array_equal(fit(np.full((64, 64, 3), 9, np.uint8), 64, 1), np.full((64, 64, 1), 9))


def idx(name):
    """The shipped file, read by the format's own description."""
    content = gzip.decompress((fashion_mnist.FILES / name).read_bytes())
    axes = content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    return np.frombuffer(content[4 + 4 * axes :], np.uint8).reshape(shape)


@pytest.mark.parametrize("split, stem, count", [("train", "train", 60_000), ("test", "t10k", 10_000)])
def test_the_prepared_data_is_the_shipped_data(data_dir, split, stem, count):
    source = open_source(config_for(data_dir, **{"data.test_split": split}), "test_split")
    images, labels = idx(f"{stem}-images-idx3-ubyte.gz"), idx(f"{stem}-labels-idx1-ubyte.gz")
    assert len(source) == count == len(images) == len(labels)
    assert np.bincount(labels).tolist() == [count // 10] * 10
    prepared, prepared_labels = source.read(range(0, count, 7))
    # TFDS shuffles when it writes: compare as sets of (label, image).
    shipped = {(label, image.tobytes()) for label, image in zip(labels, images, strict=True)}
    mine = {(label, image.tobytes()) for label, image in zip(prepared_labels, prepared, strict=True)}
    assert mine <= shipped and source.label_names[0] == "T-shirt/top"


def test_splits_are_disjoint_slices_of_what_they_name(data_dir):
    config = config_for(data_dir)
    train, val = (open_source(config, split) for split in ("train_split", "val_split"))
    assert (len(train), len(val)) == (55_000, 5_000)


@pytest.mark.parametrize(
    "field, value",
    [
        ("data.train_split", "trian"),
        ("data.train_split", "train[:0]"),
        ("data.val_split", "train["),
        ("data.val_split", "train[60000:]"),
        ("data.val_split", "train[10:5]"),
        ("data.val_split", "train[5:4]"),
        ("data.val_split", "train[10:5]+test"),
        ("data.name", "fashion_mnist_shiped"),
        ("data.name", "no such"),
        ("data.name", "../etc"),
        ("data.name", "wiki40b"),
        ("data.name", "huggingface:mnist"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(data_dir, field, value):
    config = config_for(data_dir, **{field: value})
    split = field.removeprefix("data.") if field.endswith("split") else "train_split"
    with pytest.raises(InputError) as raised:
        open_source(config, split)
    assert str(raised.value).startswith(f"{field}: {value!r}") and "\n" not in str(raised.value)


def test_a_data_set_that_cannot_be_opened_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    (info,) = (tmp_path / "data").rglob("dataset_info.json")
    os.truncate(info, 50)
    with pytest.raises(InputError, match=f"cannot be opened in {tmp_path}"):
        open_source(config_for(tmp_path / "data"), "train_split")
    with pytest.raises(InputError, match=r"data.dir: .*info.json' is not a folder"):
        open_source(config_for(info), "train_split")


def test_a_truncated_data_file_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    (shard,) = pathlib.Path(tmp_path).rglob("*test.array_record*")
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    config = config_for(tmp_path / "data")
    open_source(config, "train_split")
    with pytest.raises(InputError, match=shard.name):
        open_source(config, "test_split")


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
    config = config_for(tmp_path / "data")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="t10k-images"):
        patch.setattr(fashion_mnist, "FILES", tmp_path / "files")
        prepared_builder(config)
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_reading_does_not_import_tensorflow(data_dir):
    program = f"""
import sys
from alexnet_jax import step
from alexnet_jax.datasets import batches
from configs import quickstart
from alexnet_jax.datasets.source import open_source
config = quickstart.get_config()
config.data.dir = {str(data_dir)!r}
open_source(config, "test_split").read([0, 1])
sys.exit("tensorflow" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_a_split_without_labels_is_told(data_dir, monkeypatch):
    builder = prepared_builder(config_for(data_dir))
    record = builder.info.features.serialize_example({"image": np.zeros((28, 28, 1), np.uint8), "label": -1})
    monkeypatch.setattr(builder, "as_data_source", lambda *_, **__: [record])
    with pytest.raises(InputError, match="data.test_split: 'test' has no labels"):
        prepared.TfdsSource(builder, "test", 28, 1, "data.test_split")


def test_a_label_that_is_no_class_is_told():
    with pytest.raises(InputError, match="data.name: 'lfw' has no image and label"):
        prepared._builder("lfw", None)
