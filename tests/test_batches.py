"""alexnet_jax/datasets/batches.py: what is read, in which order, on which device."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import data_sets
from helpers.sources import MadeUp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.datasets import batches
from alexnet_jax.datasets.batches import evaluation_batches, examples_of_step, training_batches
from alexnet_jax.datasets.source import open_source


def numbers(examples):
    """A source whose image i is filled with i, which is also its label."""
    values = np.arange(examples)
    images = np.broadcast_to(values[:, None, None, None], (examples, 2, 2, 1)).astype(np.uint8)
    return MadeUp(images, values)


def sharding(devices=1):
    return NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("data",)), P("data"))


def test_every_epoch_has_every_example_once_in_a_new_order():
    examples, batch = 103, 10
    order = np.concatenate([examples_of_step(3, step, batch, examples) for step in range(42)])
    epochs = order[: 4 * examples].reshape(4, examples)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(examples), (len(epochs), 1)))
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
    config = data_sets.fashion_mnist("")
    config.batch_size = 8
    source = numbers(50)
    whole = list(training_batches(source, config, sharding(), 0, 20))
    tail = list(training_batches(source, config, sharding(), 13, 20))
    assert len(whole) == 20 and len(tail) == 7
    for (_, a), (_, b) in zip(whole[13:], tail, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole[4][1], examples_of_step(config.seed, 4, 8, 50))


def test_devices_of_the_data_axis_hold_their_rows_of_the_batch():
    config = data_sets.fashion_mnist("")
    config.batch_size = 8
    images, labels = next(training_batches(numbers(50), config, sharding(4), 0, 1))
    assert images.shape == (8, 2, 2, 1) and [len(s.data) for s in labels.addressable_shards] == [2] * 4
    order = examples_of_step(config.seed, 0, 8, 50)
    for shard in labels.addressable_shards:
        np.testing.assert_array_equal(shard.data, order[shard.index])


def test_both_columns_of_a_pair_hold_the_same_rows():
    devices = np.array(jax.devices()).reshape(2, 2)
    both = NamedSharding(Mesh(devices, ("data", "column")), P("data"))
    config = data_sets.fashion_mnist("")
    config.batch_size = 8
    _, labels = next(training_batches(numbers(50), config, both, 0, 1))
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


@pytest.mark.program
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
    config = data_sets.fashion_mnist(data_dir, **{"data.train_split": "train[:50]", "batch_size": 8})
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


def test_a_small_source_is_not_padded_to_the_size_of_a_batch():
    for devices, examples, size in ((1, 5, 5), (2, 5, 6), (2, 1, 2), (2, 99, 8)):
        found = list(evaluation_batches(numbers(examples), 8, sharding(devices), 2))
        assert {len(images) for images, _, _ in found} == {size}
        assert sum(int(real.sum()) for _, _, real in found) == examples


@pytest.mark.parametrize(
    "threads, cores, images, expected",
    [(0, 1, 128, 4), (0, 16, 128, 16), (0, 99, 128, 32), (0, 99, 512, 8), (0, 99, 9999, 4), (64, 2, 128, 64)],
)
def test_threads_are_as_many_as_asked_for_or_as_cores(monkeypatch, threads, cores, images, expected):
    options = []
    monkeypatch.setattr(batches, "cores", lambda: cores)
    monkeypatch.setattr(batches.grain, "ReadOptions", lambda **given: options.append(given))
    batches._read_ahead(lambda step: step, 0, 3, threads, images)
    assert options == [{"num_threads": expected, "prefetch_buffer_size": max(expected, 8)}]


@pytest.mark.parametrize("examples", [1, 8, 9, 23])
def test_padding_marks_what_is_not_real(examples):
    seen = []
    for images, labels, real in evaluation_batches(numbers(examples), 8, sharding(), 2):
        assert images.shape == (min(8, examples), 2, 2, 1)
        seen += np.asarray(labels)[np.asarray(real)].tolist()
    assert seen == list(range(examples))
