"""alexnet_jax/datasets/raw.py: the raw copy of what was prepared."""

import os
import types

import numpy as np
import pytest
from helpers import data_sets

from alexnet_jax.datasets import prepared, raw
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError


def raw_of(config, split="test_split", **changes):
    config = config.copy_and_resolve_references()
    config.data.store = "raw"
    config.update_from_flattened_dict(changes)
    return open_source(config, split)


@pytest.mark.parametrize(
    "split", ["train", "validation[1:4]", "train[-3:]", "validation+train[:50%]+train[9:9]"]
)
def test_the_raw_store_holds_the_same_pixels(small_ilsvrc, split):
    config = small_ilsvrc[0].copy_and_resolve_references()
    config.data.test_split = split
    jpeg, raw_source = open_source(config, "test_split"), raw_of(config)
    assert isinstance(raw_source, raw.RawSource) and len(raw_source) == len(jpeg)
    assert (raw_source.label_names, raw_source.split) == (jpeg.label_names, jpeg.split)
    order = np.random.default_rng(0).integers(0, len(jpeg), 40)
    for ours, theirs in zip(raw_source.read(order), jpeg.read(order), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_the_raw_store_of_another_size_and_greyscale(small_ilsvrc):
    changes = {"data.image_size": 37, "data.crop_size": 30, "data.channels": 1}
    config = small_ilsvrc[0].copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    ours, theirs = raw_of(config).read([2, 0]), open_source(config, "test_split").read([2, 0])
    assert ours[0].shape == (2, 37, 37, 1)
    np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_raw_file_that_was_cut_short_is_named(small_ilsvrc, tmp_path, kind):
    config = data_sets.ilsvrc(small_ilsvrc[0].data.name[-4:], small_ilsvrc[0].data.manual_dir, tmp_path)
    (path,) = raw_of(config, "val_split").folder.glob(f"raw-validation-*.{kind}")
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError) as raised:
        raw_of(config, "val_split")
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    path.with_suffix(".images").unlink()
    assert len(raw_of(config, "val_split")) == 5


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_raw_file_that_changed_is_refused_and_a_moved_one_is_not(small_ilsvrc, tmp_path, kind):
    config = data_sets.ilsvrc(small_ilsvrc[0].data.name[-4:], small_ilsvrc[0].data.manual_dir, tmp_path / "a")
    raw_of(config, "val_split")
    (tmp_path / "a").rename(tmp_path / "b")
    config.data.dir = str(tmp_path / "b")
    (path,) = raw_of(config, "val_split").folder.glob(f"raw-validation-*.{kind}")
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="was made from other data .* has now, or changed since; delete"):
        raw_of(config, "val_split")
    path.with_suffix(".images").unlink()
    assert len(raw_of(config, "val_split")) == 5


def test_a_raw_copy_of_other_data_is_refused_and_one_without_a_record_made_anew(small_ilsvrc, tmp_path):
    config = data_sets.ilsvrc(small_ilsvrc[0].data.name[-4:], small_ilsvrc[0].data.manual_dir, tmp_path)
    (path,) = raw_of(config, "val_split").folder.glob("raw-validation-*.images")
    record = path.with_suffix(".json")
    record.write_text(record.read_text().replace('"made of": "', '"made of": "0'))
    with pytest.raises(InputError, match="was made from other data"):
        raw_of(config, "val_split")
    record.unlink()  # an earlier version wrote none
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    raw_of(config, "val_split")
    assert path.read_bytes() == content


def test_a_raw_copy_is_whole_or_not_there(small_ilsvrc, tmp_path, monkeypatch):
    config = data_sets.ilsvrc(small_ilsvrc[0].data.name[-4:], small_ilsvrc[0].data.manual_dir, tmp_path)
    folder = open_source(config, "val_split").folder
    (folder / "raw-train-256x3.images.1.part").write_bytes(b"left by a killed process")

    def interrupted(source, indices):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepared.TfdsSource, "read", interrupted)
        raw_of(config, "val_split")
    assert not list(folder.glob("raw-*"))
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"data\.store: .*data\.store=jpeg"):
        patch.setattr(raw.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1000))
        raw_of(config, "val_split")
    assert len(raw_of(config, "val_split")) == 5
