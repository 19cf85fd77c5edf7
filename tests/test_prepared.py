"""alexnet_jax/datasets/prepared.py: TFDS data sets, prepared once, whole and read with their faults named."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import data_sets

from alexnet_jax.datasets import prepared
from alexnet_jax.datasets.prepared import prepared_builder
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime import files
from alexnet_jax.runtime.errors import InputError, Unavailable


def test_splits_are_disjoint_slices_of_what_they_name(data_dir):
    config = data_sets.fashion_mnist(data_dir)
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
    config = data_sets.fashion_mnist(data_dir, **{field: value})
    split = field.removeprefix("data.") if field.endswith("split") else "train_split"
    with pytest.raises(InputError) as raised:
        open_source(config, split)
    assert str(raised.value).startswith(f"{field}: {value!r}") and "\n" not in str(raised.value)


def test_a_data_set_that_cannot_be_opened_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    (info,) = (tmp_path / "data").rglob("dataset_info.json")
    os.truncate(info, 50)
    with pytest.raises(InputError, match=f"cannot be opened in {tmp_path}"):
        open_source(data_sets.fashion_mnist(tmp_path / "data"), "train_split")
    with pytest.raises(InputError, match=r"data.dir: .*info.json' is not a folder"):
        open_source(data_sets.fashion_mnist(info), "train_split")


def test_a_truncated_data_file_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    (shard,) = pathlib.Path(tmp_path).rglob("*test.array_record*")
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    config = data_sets.fashion_mnist(tmp_path / "data")
    open_source(config, "train_split")
    with pytest.raises(InputError, match=shard.name):
        open_source(config, "test_split")


def test_a_description_that_cannot_be_read_for_now_is_not_a_wrong_data_set(data_dir, tmp_path, monkeypatch):
    """Reading /proc/self/mem fails with EIO, as a network file system may for a while."""
    monkeypatch.setattr(files, "WAITS", (0,))
    shutil.copytree(data_dir, tmp_path / "data")
    (description,) = (tmp_path / "data").rglob("dataset_info.json")
    description.unlink()
    description.symlink_to("/proc/self/mem")
    with pytest.raises(Unavailable, match=r"data: cannot be read now \(Input/output error\); try again"):
        open_source(data_sets.fashion_mnist(tmp_path / "data"), "train_split")


def test_a_folder_that_cannot_be_listed_for_now_is_not_an_empty_one(data_dir, monkeypatch):
    """TFDS would prepare the data set anew."""
    config, listed = data_sets.fashion_mnist(data_dir), os.listdir
    failures = [OSError(116, "Stale file handle")]

    def listdir(path):
        if str(path).endswith("1.0.0") and failures:
            raise failures.pop()
        return listed(path)

    monkeypatch.setattr(files, "WAITS", (0,))
    monkeypatch.setattr(prepared.os, "listdir", listdir)
    monkeypatch.setattr(prepared, "_prepare", lambda *_: pytest.fail("prepares"))
    assert prepared_builder(config).info.name == "fashion_mnist_shipped" and not failures
    failures += [OSError(116, "Stale file handle")] * 2
    with pytest.raises(Unavailable, match=r"1\.0\.0: cannot be read now \(Stale file handle\); try again"):
        prepared_builder(config)


def test_a_split_without_labels_is_told(data_dir, monkeypatch):
    builder = prepared_builder(data_sets.fashion_mnist(data_dir))
    record = builder.info.features.serialize_example({"image": np.zeros((28, 28, 1), np.uint8), "label": -1})
    monkeypatch.setattr(builder, "as_data_source", lambda *_, **__: [record])
    with pytest.raises(InputError, match="data.test_split: 'test' has no labels"):
        prepared.TfdsSource(builder, "test", 28, 1, "data.test_split")


def test_a_label_that_is_no_class_is_told():
    with pytest.raises(InputError, match="data.name: 'lfw' has no image and label"):
        prepared._builder("lfw", None)


@pytest.mark.parametrize("buffer", [1 << 40, 1 << 12], ids=["in memory", "on disk"])
def test_a_second_preparation_is_the_same_byte_for_byte(small_ilsvrc, tmp_path, monkeypatch, buffer):
    monkeypatch.setattr(prepared, "_SHUFFLE_BUFFER", buffer)
    config, _ = small_ilsvrc
    again = data_sets.ilsvrc(config.data.name[-4:], config.data.manual_dir, tmp_path)
    folders = [open_source(c, "train_split").folder for c in (config, again)]
    for first in folders[0].glob("*.array_record*"):
        assert first.read_bytes() == (folders[1] / first.name).read_bytes()


def test_a_year_that_is_not_there_is_told_with_those_that_are(tmp_path):
    config = data_sets.ilsvrc("2012", tmp_path, tmp_path, **{"data.name": "ilsvrc/2011"})
    with pytest.raises(
        InputError, match="data.name: 'ilsvrc/2011' does not exist; there are ilsvrc/2012, ilsvrc/2010"
    ):
        open_source(config, "train_split")


def test_a_data_dir_that_cannot_be_written_is_told(archives_2010, tmp_path):
    (tmp_path / "ilsvrc").write_text("a file")
    config = data_sets.ilsvrc("2010", archives_2010, tmp_path)
    with pytest.raises(InputError, match="data.dir: .* cannot be written"):
        open_source(config, "train_split")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[1000:1040] = bytes(40)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "dataset_info.json").unlink(),
        lambda folder: [path.unlink() for path in folder.iterdir()],
        lambda folder: (folder / "label.labels.txt").unlink(),
        lambda folder: os.truncate(folder / "label.labels.txt", 0),
        lambda folder: flipped(next(folder.glob("*train.array_record*"))),
    ],
    ids=["no info", "an empty folder", "no label names", "empty label names", "bits flipped"],
)
def test_a_data_set_that_was_damaged_is_named(small_ilsvrc, tmp_path, spoil):
    shutil.copytree(small_ilsvrc[0].data.dir, tmp_path / "data")
    config = small_ilsvrc[0].copy_and_resolve_references()
    config.data.dir = str(tmp_path / "data")
    folder = next((tmp_path / "data").rglob("dataset_info.json")).parent
    spoil(folder)
    with pytest.raises(InputError) as raised:
        source = open_source(config, "train_split")
        source.read(range(len(source)))
    assert str(raised.value).startswith(f"{folder}: ") and "delete the folder" in str(raised.value)
    assert "\n" not in str(raised.value)
    shutil.rmtree(folder)
    assert len(open_source(config, "val_split")) == 5


@pytest.mark.program
def test_a_killed_preparation_leaves_no_data_set_and_the_next_one_clears_up(archives_2010, tmp_path):
    program = f"""
import sys, time
from alexnet_jax.datasets import ilsvrc
from alexnet_jax.datasets.source import open_source
from configs import paper
config = paper.get_config("2010")
config.data.manual_dir, config.data.dir = {str(archives_2010)!r}, {str(tmp_path)!r}
prepared, done = ilsvrc._prepared, []
def slow(picture):
    done.append(picture)
    if picture.split == "validation":
        print("half done", flush=True)
        time.sleep(100)
    return prepared(picture)
ilsvrc._prepared = slow
open_source(config, "train_split")
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    while "half done" not in (line := process.stdout.readline()):
        assert line, "the preparation ended by itself"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(tmp_path.rglob("*.array_record*")), "it was to be killed after the first split"
    builder = tfds.builder("ilsvrc/2010", data_dir=tmp_path, file_format="array_record")
    assert not builder.is_prepared()
    config = data_sets.ilsvrc("2010", archives_2010, tmp_path)
    assert [len(data_sets.examples(config, split)) for split in ("train", "validation", "test")] == [22, 5, 3]
    assert not [path for path in tmp_path.rglob("*") if "incomplete" in path.name]


@pytest.mark.program
def test_two_processes_that_prepare_at_once_prepare_once(archives_2010, tmp_path):
    program = f"""
from configs import paper
from alexnet_jax.datasets.source import open_source
config = paper.get_config("2010")
config.data.manual_dir, config.data.dir = {str(archives_2010)!r}, {str(tmp_path)!r}
print(len(open_source(config, "test_split")))
"""
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
    assert [int(process.communicate(timeout=120)[0].split()[-1]) for process in both] == [3, 3]
