"""The builder ilsvrc, from small archives of our own, and the raw copy of what it prepares."""

import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import small_archives as small

from alexnet_jax import config as configuration
from alexnet_jax.datasets import ilsvrc, prepared, raw
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime import progress
from alexnet_jax.runtime.errors import InputError
from configs import paper

A, B, C = sorted(small.WORDS)


def config_for(year, archives, data_dir, **changes):
    config = paper.get_config(year)
    config.data.manual_dir, config.data.dir, config.data.store = str(archives), str(data_dir), "jpeg"
    config.update_from_flattened_dict(changes)
    configuration.check(config)
    return config


def examples(config, split):
    """{file name: (image, label)} of all examples, as `read` gives them."""
    field = {"train": "train_split", "validation": "val_split", "test": "test_split"}[split]
    source = open_source(config, field)
    examples = source.builder.as_data_source(source.split)
    names = [example["file_name"].decode() for example in examples]
    images, labels = source.read(range(len(source)))
    assert len(set(names)) == len(names)
    return {name: (image, int(label)) for name, image, label in zip(names, images, labels, strict=True)}


def tiny(folder, year, **changes):
    """Archives with every odd picture in training; returns {split: {file name: (content, WordNet id)}}."""
    odd = list(small.odd_pictures().values())
    thirds = {C: odd[::3], A: odd[1::3], B: odd[2::3]}
    train = {w: [(f"{w}_{i}.JPEG", c) for i, c in enumerate(found)] for w, found in thirds.items()}
    blank = small.file_of(small.Image.new("RGB", (60, 60), "white"))
    val = [(w, small.file_of(small.photograph(100 + i))) for i, w in enumerate([B, A, C, A, B])]
    test = [(w, small.file_of(small.photograph(200 + i))) for i, w in enumerate([C, A, C])]
    train_blank = (B, (f"{B}_99.JPEG", blank))
    parts = {"train": train, "val": val, "test": test}
    expected = {
        "train": {name: (content, w) for w, found in train.items() for name, content in found},
        "validation": {f"ILSVRC{year}_val_{i:08}.JPEG": (c, w) for i, (w, c) in enumerate(val, 1)},
    }
    if year == "2010":
        expected["test"] = {f"ILSVRC2010_test_{i:08}.JPEG": (c, w) for i, (w, c) in enumerate(test, 1)}
        replaced = {"val": expected["validation"]["ILSVRC2010_val_00000002.JPEG"][0]}
        replaced["test"] = expected["test"]["ILSVRC2010_test_00000001.JPEG"][0]
        replaced["train"] = small.file_of(small.photograph(300))
        parts["val"] = [(w, blank if i == 1 else c) for i, (w, c) in enumerate(val)]
        parts["test"] = [(w, blank if i == 0 else c) for i, (w, c) in enumerate(test)]
        train[B].append(train_blank[1])
        expected["train"][f"{B}_99.JPEG"] = (replaced["train"], B)
        parts["patches"] = [
            ("val/ILSVRC2010_val_00000002.JPEG", replaced["val"]),
            ("test/ILSVRC2010_test_00000001.JPEG", replaced["test"]),
            (f"train/{B}_99.JPEG", replaced["train"]),
            ("val/ILSVRC2010_val_00009999.JPEG", blank),  # of an image that is not in the archive
        ]
    small.make(folder, year, **parts | changes)
    return expected


@pytest.fixture(scope="module", params=["2012", "2010"])
def whole(request, tmp_path_factory):
    """(configuration, what it should give) of tiny archives, prepared."""
    folder = tmp_path_factory.mktemp(request.param)
    expected = tiny(folder / "archives", request.param)
    return config_for(request.param, folder / "archives", folder / "data"), expected


def test_every_picture_is_the_papers_preparation_of_it(whole):
    config, expected = whole
    for split, pictures in expected.items():
        found = examples(config, split)
        assert found.keys() == pictures.keys()
        for name, (content, _) in pictures.items():
            np.testing.assert_array_equal(found[name][0], small.stored(content), err_msg=name)


def test_labels_are_positions_in_the_sorted_wordnet_ids(whole):
    config, expected = whole
    source = open_source(config, "train_split")
    assert source.label_names == tuple(f"{wnid} {small.WORDS[wnid]}" for wnid in (A, B, C))
    for split, pictures in expected.items():
        for name, (_, label) in examples(config, split).items():
            assert source.label_names[label].split()[0] == pictures[name][1], name


def test_what_is_stored_is_close_to_what_was_prepared(whole):
    config, expected = whole
    for name, (image, _) in examples(config, "validation").items():
        error = image.astype(np.float64) - small.prepared(expected["validation"][name][0])
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 38


def test_tfds_reads_the_data_set_as_one_of_its_own(whole):
    config, expected = whole
    builder = tfds.builder(config.data.name, data_dir=config.data.dir, file_format="array_record")
    assert builder.is_prepared() and builder.info.splits["validation"].num_examples == 5
    ours = examples(config, "validation")
    for record in builder.as_data_source("validation"):
        image, label = ours[record["file_name"].decode()]
        assert record["label"] == label
        np.testing.assert_array_equal(record["image"], image)


@pytest.mark.parametrize("buffer", [1 << 40, 1 << 12], ids=["in memory", "on disk"])
def test_a_second_preparation_is_the_same_byte_for_byte(whole, tmp_path, monkeypatch, buffer):
    monkeypatch.setattr(prepared, "_SHUFFLE_BUFFER", buffer)
    config, _ = whole
    again = config_for(config.data.name[-4:], config.data.manual_dir, tmp_path)
    folders = [open_source(c, "train_split").folder for c in (config, again)]
    for first in folders[0].glob("*.array_record*"):
        assert first.read_bytes() == (folders[1] / first.name).read_bytes()


def rewritten(folder, name, change):
    """Applies `change` to the members of a tar, [(name, content)]."""
    with tarfile.open(folder / name) as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive]
    (folder / name).write_bytes(small.tar(change(members)))


def in_class(change):
    """Of the members of the first inner archive."""

    def outer(members):
        with tarfile.open(fileobj=io.BytesIO(members[0][1])) as archive:
            inner = [(info.name, archive.extractfile(info).read()) for info in archive]
        return [(members[0][0], small.tar(change(inner))), *members[1:]]

    return outer


def link(name):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "../outside"
    return info


def halved(folder, name):
    """Half of what is not the zeros at the end of a tar."""
    os.truncate(folder / name, len((folder / name).read_bytes().rstrip(b"\0")) // 2)


def kit(folder, year="2010", counts=None, truth=(B, A, C, A, B), **changes):
    sizes = {C: 7, A: 7, B: 8}
    contents = small.devkit(year, sizes | (counts or {}), list(truth)) | changes
    small.pack(folder, "2010", {name: content for name, content in contents.items() if content is not None})


TRAIN, VAL, TEST = (f"ILSVRC2010_images_{part}.tar" for part in ("train", "val", "test"))
KIT, TRUTH = "ILSVRC2010_devkit-1.0.tar.gz", "ILSVRC2010_test_ground_truth.txt"
PATCHES = "patch_images.tar"
SPOILT = {
    "no folder": (lambda f: os.rename(f, f.with_name("elsewhere")), "data.manual_dir: "),
    "an empty folder": (lambda f: [path.unlink() for path in f.iterdir()], "data.manual_dir: "),
    "two files missing": (lambda f: [(f / n).unlink() for n in (VAL, KIT)], f"lacks {VAL}, {KIT};"),
    "train cut short": (lambda f: halved(f, TRAIN), TRAIN),
    "train empty": (lambda f: os.truncate(f / TRAIN, 0), TRAIN),
    "train lacks a class": (lambda f: rewritten(f, TRAIN, lambda m: m[1:]), f"{TRAIN}: lacks {C}.tar"),
    "train has a class twice": (lambda f: rewritten(f, TRAIN, lambda m: [*m, m[0]]), f"{TRAIN}: has {C}"),
    "train is another archive": (lambda f: (f / TRAIN).write_bytes((f / VAL).read_bytes()), TRAIN),
    "train is a web page": (lambda f: (f / TRAIN).write_bytes(b"<html>" * 1000), TRAIN),
    "val cut short": (lambda f: halved(f, VAL), VAL),
    "val is another archive": (lambda f: (f / VAL).write_bytes((f / TRAIN).read_bytes()), VAL),
    "val lacks an image": (lambda f: rewritten(f, VAL, lambda m: m[1:]), f"{VAL}: has 4 images"),
    "val has an image twice": (lambda f: rewritten(f, VAL, lambda m: [*m[1:], m[1]]), VAL),
    "test lacks an image": (lambda f: rewritten(f, TEST, lambda m: m[1:]), f"{TEST}: has 2 images"),
    "test labels lack a line": (lambda f: (f / TRUTH).write_text("1\n3\n"), TRUTH),
    "test labels of no class": (lambda f: (f / TRUTH).write_text("1\n3\n1001\n"), f"{TRUTH}: line 3"),
    "test labels that are no numbers": (lambda f: (f / TRUTH).write_text("<html>"), f"{TRUTH}: line 1"),
    "patches cut short": (lambda f: halved(f, "patch_images.tar"), "patch_images.tar"),
    "kit cut short": (lambda f: halved(f, KIT), KIT),
    "kit of another year": (lambda f: kit(f, "2012"), KIT),
    "kit without meta.mat": (lambda f: kit(f, **{"meta.mat": None}), f"{KIT}: has no meta.mat"),
    "kit with a damaged meta.mat": (lambda f: kit(f, **{"meta.mat": b"\0" * 300}), f"{KIT}, meta.mat"),
    "kit lacks labels": (lambda f: kit(f, truth=(B, A)), f"{VAL}: has 5 images"),
    "a class number of 5,000 digits": (
        lambda f: kit(f, **{"ILSVRC2010_validation_ground_truth.txt": b"1\n" + b"9" * 5000}), f"{KIT}, "),
    "patches cut short after the first": (lambda f: os.truncate(f / PATCHES, 2048), f"{PATCHES}: cut short"),
    "patches are val": (lambda f: shutil.copy(f / VAL, f / PATCHES), f"{PATCHES}: has every image"),
    "patches are test": (lambda f: shutil.copy(f / TEST, f / PATCHES), f"{PATCHES}: has every image"),
    "patches are train": (lambda f: shutil.copy(f / TRAIN, f / PATCHES), f"{PATCHES}: its member"),
    "patches are 2012's": (
        lambda f: (f / PATCHES).write_bytes(small.tar([("ILSVRC2012_val_00000001.JPEG", b"")])),
        f"{PATCHES}: its member"),
    "a link in val": (lambda f: rewritten(f, VAL, lambda m: [*m, link("val/x.JPEG")]), f"{VAL}: its member"),
}  # fmt: skip
# What only reading the images shows.
SPOILT_INSIDE = {
    "a class lacks an image": (
        lambda f: rewritten(f, TRAIN, in_class(lambda m: m[1:])), f"{TRAIN}, {C}.tar: has 6 images"),
    "the kit counts more": (lambda f: kit(f, counts={A: 100}), f"{TRAIN}, {A}.tar: has 7 images"),
    "a class has an image twice": (
        lambda f: rewritten(f, TRAIN, in_class(lambda m: [m[1], *m[1:]])), f"{TRAIN}, {C}.tar: has '{C}_1"),
    "a class is no archive": (
        lambda f: rewritten(f, TRAIN, lambda m: [(m[0][0], b"x" * 5000), *m[1:]]), f"{TRAIN}, {C}.tar: "),
    "a class is cut short": (
        lambda f: rewritten(f, TRAIN, lambda m: [(m[0][0], m[0][1][:3000]), *m[1:]]), f"{TRAIN}, {C}.tar: "),
    "an image of train does not decode": (
        lambda f: rewritten(f, TRAIN, in_class(lambda m: [(m[0][0], b"no image"), *m[1:]])),
        f"{TRAIN}: its member '{C}.tar, {C}_0.JPEG'"),
    "an image of val is cut short": (
        lambda f: rewritten(f, VAL, lambda m: [(m[0][0], m[0][1][:-100]), *m[1:]]),
        f"{VAL}: its member 'val/ILSVRC2010_val_00000005.JPEG'"),
    "a replacement does not decode": (
        lambda f: rewritten(f, "patch_images.tar", lambda m: [(m[0][0], b"no image"), *m[1:]]),
        "patch_images.tar: its member 'patch_images/val/ILSVRC2010_val_00000002.JPEG'"),
    "a name that is no text": (
        lambda f: rewritten(f, TRAIN, in_class(lambda m: [("\udcff.JPEG", m[0][1]), *m[1:]])),
        f"{TRAIN}, {C}.tar: "),
    "a gzipped image is cut short": (
        lambda f: rewritten(f, VAL, lambda m: [(m[0][0], gzip.compress(m[0][1])[:-100]), *m[1:]]),
        f"{VAL}: its member 'val/ILSVRC2010_val_00000005.JPEG'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    tiny(folder, "2010")
    return folder


def told(folder, tmp_path, message):
    config = config_for("2010", folder, tmp_path / "data")
    with pytest.raises(InputError) as raised:
        open_source(config, "train_split")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    # Nothing is left that could pass for a data set, nor half of one.
    assert not [path for path in (tmp_path / "data").rglob("*") if "incomplete" in path.name]
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def copied(sound, tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    for path in sound.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("case", SPOILT)
def test_what_can_be_known_is_told_before_an_image_is_read(case, sound, tmp_path, monkeypatch):
    spoil, message = SPOILT[case]
    folder = copied(sound, tmp_path)
    spoil(folder)
    monkeypatch.setattr(ilsvrc, "_prepared", lambda picture: pytest.fail("an image was read"))
    told(folder, tmp_path, message)


@pytest.mark.parametrize("case", SPOILT_INSIDE)
def test_what_is_wrong_inside_is_told_with_the_member(case, sound, tmp_path):
    spoil, message = SPOILT_INSIDE[case]
    folder = copied(sound, tmp_path)
    spoil(folder)
    told(folder, tmp_path, message)


def test_a_year_that_is_not_there_is_told_with_those_that_are(tmp_path):
    config = config_for("2012", tmp_path, tmp_path, **{"data.name": "ilsvrc/2011"})
    with pytest.raises(
        InputError, match="data.name: 'ilsvrc/2011' does not exist; there are ilsvrc/2012, ilsvrc/2010"
    ):
        open_source(config, "train_split")


def test_a_data_dir_that_cannot_be_written_is_told(sound, tmp_path):
    (tmp_path / "ilsvrc").write_text("a file")
    config = config_for("2010", sound, tmp_path)
    with pytest.raises(InputError, match="data.dir: .* cannot be written"):
        open_source(config, "train_split")


def test_a_full_disk_is_foreseen(sound, tmp_path, monkeypatch):
    monkeypatch.setattr(ilsvrc.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1000))
    told(sound, tmp_path, "data.dir: ")


def test_the_disk_must_hold_the_raw_copy_too(sound, tmp_path, monkeypatch):
    raw_config = config_for("2010", sound, tmp_path / "data", **{"data.store": "raw"})
    monkeypatch.setattr(ilsvrc.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=30 * 150_000))
    with pytest.raises(InputError, match=rf"data.dir: {tmp_path}/data is on .*data.store=jpeg"):
        open_source(raw_config, "train_split")
    config = config_for("2010", sound, tmp_path / "data")
    assert len(open_source(config, "train_split")) == 22


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
def test_a_data_set_that_was_damaged_is_named(whole, tmp_path, spoil):
    shutil.copytree(whole[0].data.dir, tmp_path / "data")
    config = whole[0].copy_and_resolve_references()
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


def test_names_in_the_archive_are_not_paths(tmp_path):
    evil = tmp_path / "evil.JPEG"
    images = [(name, small.file_of(small.photograph(1))) for name in (str(evil), "../../../a.JPEG")]
    train = {A: images, B: [("b.JPEG", images[0][1])], C: [("c.JPEG", images[0][1])]}
    small.make(tmp_path / "archives", "2012", train, [(A, images[0][1])])
    before = {path for path in tmp_path.rglob("*")}
    found = examples(config_for("2012", tmp_path / "archives", tmp_path / "data"), "train")
    assert found.keys() == {"evil.JPEG", "a.JPEG", "b.JPEG", "c.JPEG"}
    made = {path for path in tmp_path.rglob("*")} - before
    assert not evil.exists() and all(tmp_path / "data" in (path, *path.parents) for path in made)


def test_a_killed_preparation_leaves_no_data_set_and_the_next_one_clears_up(sound, tmp_path):
    program = f"""
import sys, time
from alexnet_jax.datasets import ilsvrc
from alexnet_jax.datasets.source import open_source
from configs import paper
config = paper.get_config("2010")
config.data.manual_dir, config.data.dir = {str(sound)!r}, {str(tmp_path)!r}
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
    config = config_for("2010", sound, tmp_path)
    assert [len(examples(config, split)) for split in ("train", "validation", "test")] == [22, 5, 3]
    assert not [path for path in tmp_path.rglob("*") if "incomplete" in path.name]


def test_two_processes_that_prepare_at_once_prepare_once(sound, tmp_path):
    program = f"""
from configs import paper
from alexnet_jax.datasets.source import open_source
config = paper.get_config("2010")
config.data.manual_dir, config.data.dir = {str(sound)!r}, {str(tmp_path)!r}
print(len(open_source(config, "test_split")))
"""
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
    assert [int(process.communicate(timeout=120)[0].split()[-1]) for process in both] == [3, 3]


def raw_of(config, split="test_split", **changes):
    config = config.copy_and_resolve_references()
    config.data.store = "raw"
    config.update_from_flattened_dict(changes)
    return open_source(config, split)


@pytest.mark.parametrize(
    "split", ["train", "validation[1:4]", "train[-3:]", "validation+train[:50%]+train[9:9]"]
)
def test_the_raw_store_holds_the_same_pixels(whole, split):
    config = whole[0].copy_and_resolve_references()
    config.data.test_split = split
    jpeg, raw_source = open_source(config, "test_split"), raw_of(config)
    assert isinstance(raw_source, raw.RawSource) and len(raw_source) == len(jpeg)
    assert (raw_source.label_names, raw_source.split) == (jpeg.label_names, jpeg.split)
    order = np.random.default_rng(0).integers(0, len(jpeg), 40)
    for ours, theirs in zip(raw_source.read(order), jpeg.read(order), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_the_raw_store_of_another_size_and_greyscale(whole):
    changes = {"data.image_size": 37, "data.crop_size": 30, "data.channels": 1}
    config = whole[0].copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    ours, theirs = raw_of(config).read([2, 0]), open_source(config, "test_split").read([2, 0])
    assert ours[0].shape == (2, 37, 37, 1)
    np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_raw_file_that_was_cut_short_is_named(whole, tmp_path, kind):
    config = config_for(whole[0].data.name[-4:], whole[0].data.manual_dir, tmp_path)
    (path,) = raw_of(config, "val_split").folder.glob(f"raw-validation-*.{kind}")
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError) as raised:
        raw_of(config, "val_split")
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    path.with_suffix(".images").unlink()
    assert len(raw_of(config, "val_split")) == 5


def test_a_raw_copy_is_whole_or_not_there(whole, tmp_path, monkeypatch):
    config = config_for(whole[0].data.name[-4:], whole[0].data.manual_dir, tmp_path)
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


def test_results_come_in_order_and_few_are_taken_ahead():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    for got, result in enumerate(progress.in_order(lambda item: item * 2, items(), 3)):
        assert result == 2 * got and len(taken) <= got + 8
    with pytest.raises(ZeroDivisionError):
        list(progress.in_order(lambda item: 1 // (item - 5), range(100), 3))


def test_progress_tells_the_time_left(caplog):
    with caplog.at_level("INFO", "alexnet_jax"):
        progress.Progress("copy", 1000, every=0)(500)
    (line,) = caplog.messages
    assert line.startswith("copy: 500 of 1,000 images") and line.endswith("s left")
