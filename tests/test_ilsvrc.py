"""alexnet_jax/datasets/ilsvrc.py: the data sets ilsvrc/2010 and ilsvrc/2012, from small archives."""

import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import data_sets
from helpers import small_archives as small
from helpers.small_archives import A, B, C
from PIL import Image

from alexnet_jax.datasets import ilsvrc
from alexnet_jax.datasets.images import fit
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError


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
    assert fit(np.full((64, 64, 3), 9, np.uint8), 64, 1).tolist() == np.full((64, 64, 1), 9).tolist()


def test_every_picture_is_the_papers_preparation_of_it(small_ilsvrc):
    config, expected = small_ilsvrc
    for split, pictures in expected.items():
        found = data_sets.examples(config, split)
        assert found.keys() == pictures.keys()
        for name, (content, _) in pictures.items():
            np.testing.assert_array_equal(found[name][0], small.stored(content), err_msg=name)


def test_labels_are_positions_in_the_sorted_wordnet_ids(small_ilsvrc):
    config, expected = small_ilsvrc
    source = open_source(config, "train_split")
    assert source.label_names == tuple(f"{wnid} {small.WORDS[wnid]}" for wnid in (A, B, C))
    for split, pictures in expected.items():
        for name, (_, label) in data_sets.examples(config, split).items():
            assert source.label_names[label].split()[0] == pictures[name][1], name


def test_what_is_stored_is_close_to_what_was_prepared(small_ilsvrc):
    config, expected = small_ilsvrc
    for name, (image, _) in data_sets.examples(config, "validation").items():
        error = image.astype(np.float64) - small.prepared(expected["validation"][name][0])
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 38


def test_tfds_reads_the_data_set_as_one_of_its_own(small_ilsvrc):
    config, expected = small_ilsvrc
    builder = tfds.builder(config.data.name, data_dir=config.data.dir, file_format="array_record")
    assert builder.is_prepared() and builder.info.splits["validation"].num_examples == 5
    ours = data_sets.examples(config, "validation")
    for record in builder.as_data_source("validation"):
        image, label = ours[record["file_name"].decode()]
        assert record["label"] == label
        np.testing.assert_array_equal(record["image"], image)


def test_a_full_disk_is_foreseen(archives_2010, tmp_path, monkeypatch):
    monkeypatch.setattr(ilsvrc.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1000))
    data_sets.assert_refused(archives_2010, tmp_path / "data", "data.dir: ")


def test_the_disk_must_hold_the_raw_copy_too(archives_2010, tmp_path, monkeypatch):
    raw_config = data_sets.ilsvrc("2010", archives_2010, tmp_path / "data", **{"data.store": "raw"})
    monkeypatch.setattr(ilsvrc.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=30 * 150_000))
    with pytest.raises(InputError, match=rf"data.dir: {tmp_path}/data is on .*data.store=jpeg"):
        open_source(raw_config, "train_split")
    config = data_sets.ilsvrc("2010", archives_2010, tmp_path / "data")
    assert len(open_source(config, "train_split")) == 22


@pytest.mark.parametrize("year", ["2012", "2010"])
def test_archives_of_ten_classes_and_pictures_of_every_size(year, tmp_path):
    expected = small.ordinary(tmp_path / "archives", year)
    config = data_sets.ilsvrc(year, tmp_path / "archives", tmp_path / "data")
    counts = {split: len(pictures) for split, pictures in expected.items()}
    assert counts == {"train": 100, "validation": 80} | ({"test": 60} if year == "2010" else {})
    names = open_source(config, "train_split").label_names
    assert names[0] == "n01440764 tench, Tinca tinca" and names[8] == "n03445777 golf ball"
    for split, pictures in expected.items():
        found = data_sets.examples(config, split)
        assert found.keys() == pictures.keys()
        for name, (content, wnid) in pictures.items():
            assert names[found[name][1]].split()[0] == wnid, name
            np.testing.assert_array_equal(found[name][0], small.stored(content), err_msg=name)
