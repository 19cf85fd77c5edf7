"""alexnet_jax/datasets/fingerprints.py: a text that changes when the content of a file does."""

import errno
import os
import shutil
import time

import numpy as np
import pytest
from helpers import folders

from alexnet_jax.datasets import fingerprints
from alexnet_jax.datasets.source import open_source

OLD = time.time() - 1000


@pytest.fixture
def folder(tmp_path):
    """Two classes whose files are old enough for their digests to be kept."""
    return age(folders.make(tmp_path / "data", ["ant", "bee"]))


def age(folder):
    for path in folder.rglob("*.bmp"):
        os.utime(path, (OLD, OLD))
    return folder


def fingerprint(folder, split="train"):
    return open_source(
        folders.config_of(folder, 2, **{"data.train_split": split}), "train_split"
    ).fingerprint()


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read for a digest, the age of whose status is not looked at."""
    names, digests = [], fingerprints.digests
    monkeypatch.setattr(fingerprints, "_RACY", -(10**18))

    def counting(folder, files, digest, what):
        return digests(folder, files, lambda name: names.append(name) or digest(name), what)

    monkeypatch.setattr(fingerprints, "digests", counting)
    return names


def test_a_second_look_reads_nothing_and_a_changed_file_alone(folder, read):
    first = fingerprint(folder)
    assert len(read) == 16
    assert fingerprint(folder) == first and len(read) == 16
    fingerprint(folder, "val")
    assert fingerprint(folder) == first and len(read) == 24
    (folder / "train" / "ant" / "3.bmp").write_bytes((folder / "train" / "bee" / "3.bmp").read_bytes())
    assert fingerprint(folder) != first and read[24:] == ["train/ant/3.bmp"]


def test_content_counts_also_if_size_and_times_are_as_before(folder, read):
    first, path = fingerprint(folder), folder / "train" / "ant" / "3.bmp"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    assert fingerprint(folder) != first
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(folder) == first


def test_a_file_that_changes_right_after_it_was_read_is_read_again(folder):
    path = folder / "train" / "ant" / "3.bmp"
    first, content = fingerprint(folder), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(folder) != first


def test_classes_that_exchange_their_names_are_read_again(folder, read, monkeypatch):
    """Renaming a folder leaves its files' times; files written within one tick of a clock share theirs."""
    stamp = fingerprints.stamp
    monkeypatch.setattr(fingerprints, "stamp", lambda status: (stamp(status)[0], 1, 1, *stamp(status)[3:]))
    first = fingerprint(folder)
    for old, new in (("ant", "x"), ("bee", "ant"), ("x", "bee")):
        (folder / "train" / old).rename(folder / "train" / new)
    assert fingerprint(folder) != first and len(read) == 32


@pytest.mark.parametrize("change", ["rename", "add", "remove", "other class"])
def test_names_and_numbers_of_files_count(folder, change):
    first, path = fingerprint(folder), folder / "train" / "ant" / "3.bmp"
    match change:
        case "rename":
            path.rename(path.with_name("x.bmp"))
        case "add":
            shutil.copy(path, path.with_name("x.bmp"))
        case "remove":
            path.unlink()
        case "other class":
            path.rename(folder / "train" / "bee" / "x.bmp")
    assert fingerprint(folder) != first


def test_slices_differ_and_equal_slices_do_not(folder):
    texts = [
        fingerprint(folder, split) for split in ("train", "train[:8]", "train[8:]", "train[:50%]", "val")
    ]
    assert texts[1] == texts[3] and len(set(texts)) == 4


def test_a_copy_and_a_moved_folder_are_the_same_data(folder, tmp_path):
    first = fingerprint(folder)
    shutil.copytree(folder, tmp_path / "copy")
    folder.rename(tmp_path / "moved")
    assert fingerprint(tmp_path / "copy") == fingerprint(tmp_path / "moved") == first


def test_digests_are_kept_in_the_users_cache_if_the_folder_cannot_be_written(
    folder, read, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / fingerprints.FILE).mkdir()
    first = fingerprint(folder)
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    assert fingerprint(folder) == first and len(read) == 16


def test_digests_in_the_users_cache_are_found_beside_an_old_file(folder, read, tmp_path, monkeypatch):
    """As of a folder that was copied, with its file of digests, to where nothing can be written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = fingerprint(folder)
    for path in folder.rglob("*.bmp"):
        os.utime(path, (1e9, 1e9))
    write = fingerprints.atomic_write

    def read_only(path):
        if str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return write(path)

    monkeypatch.setattr(fingerprints, "atomic_write", read_only)
    read.clear()
    assert fingerprint(folder) == fingerprint(folder) == first and len(read) == 16


@pytest.mark.parametrize("damage", [b"", b"PK", b"x" * 1000])
def test_digests_that_were_damaged_are_computed_again(folder, read, damage):
    first = fingerprint(folder)
    (folder / fingerprints.FILE).write_bytes(damage)
    assert fingerprint(folder) == first and len(read) == 32


def test_prepared_data_is_known_by_its_records(small_ilsvrc, tmp_path):
    config, _ = small_ilsvrc
    raw, jpeg = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    raw.data.store, jpeg.data.store = "raw", "jpeg"
    first = open_source(jpeg, "train_split").fingerprint()
    assert open_source(raw, "train_split").fingerprint() == first
    assert open_source(jpeg, "val_split").fingerprint() != first
    shutil.copytree(config.data.dir, tmp_path / "copy")
    jpeg.data.dir = str(tmp_path / "copy")
    assert open_source(jpeg, "train_split").fingerprint() == first
    jpeg.data.train_split = "train[1:]"
    assert open_source(jpeg, "train_split").fingerprint() != first


def test_names_of_any_bytes(folder):
    path = folder / "train" / "ant" / "3.bmp"
    first = fingerprint(folder)
    path.rename(os.fsdecode(os.fsencode(path.parent) + b"/\xff.bmp"))
    assert fingerprint(folder) == fingerprint(folder) != first


def test_combined_keeps_the_parts_apart():
    assert fingerprints.combined("ab", "c") != fingerprints.combined("a", "bc")
    assert np.unique([fingerprints.combined(str(n)) for n in range(1000)]).size == 1000
