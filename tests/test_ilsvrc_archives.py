"""alexnet_jax/datasets/ilsvrc_archives.py: archives that are missing, damaged, mixed up or hostile."""

import gzip
import io
import os
import shutil
import tarfile

import pytest
from helpers import data_sets
from helpers import small_archives as small
from helpers.small_archives import A, B, C

from alexnet_jax.datasets import ilsvrc


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
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def giant(path, name, kind=tarfile.REGTYPE):
    """Write a tar that has a member of 8 GiB, all zeros, which take no room on the disk."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, 8 << 30
    path.write_bytes(info.tobuf())
    os.truncate(path, 9 << 30)


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
    "val is a web page": (lambda f: (f / VAL).write_bytes(b"<!DOCTYPE html>"), f"{VAL}: is a web page"),
    "kit is a pointer": (
        lambda f: (f / KIT).write_bytes(b"version https://git-lfs.github.com/\n"), f"{KIT}: is a pointer"),
    "val cut short": (lambda f: halved(f, VAL), VAL),
    "val is another archive": (lambda f: (f / VAL).write_bytes((f / TRAIN).read_bytes()), VAL),
    "val lacks an image": (lambda f: rewritten(f, VAL, lambda m: m[1:]), f"{VAL}: has 4 images"),
    "val has an image twice": (lambda f: rewritten(f, VAL, lambda m: [*m[1:], m[1]]), VAL),
    "test lacks an image": (lambda f: rewritten(f, TEST, lambda m: m[1:]), f"{TEST}: has 2 images"),
    "test labels lack a line": (lambda f: (f / TRUTH).write_text("1\n3\n"), TRUTH),
    "test labels of no class": (lambda f: (f / TRUTH).write_text("1\n3\n1001\n"), f"{TRUTH}: line 3"),
    "test labels that are no numbers": (lambda f: (f / TRUTH).write_text("<html>"), f"{TRUTH}: is a web"),
    "patches cut short": (lambda f: halved(f, "patch_images.tar"), "patch_images.tar"),
    "kit cut short": (lambda f: halved(f, KIT), KIT),
    "kit of another year": (lambda f: kit(f, "2012"), KIT),
    "kit without meta.mat": (lambda f: kit(f, **{"meta.mat": None}), f"{KIT}: has no meta.mat"),
    "kit with a damaged meta.mat": (lambda f: kit(f, **{"meta.mat": b"\0" * 300}), f"{KIT}, meta.mat"),
    "kit lacks labels": (lambda f: kit(f, truth=(B, A)), f"{VAL}: has 5 images"),
    "a class number of 5,000 digits": (
        lambda f: kit(f, **{"ILSVRC2010_validation_ground_truth.txt": b"1\n" + b"9" * 5000}), f"{KIT}, "),
    "patches cut short after the first": (lambda f: os.truncate(f / PATCHES, 2048), f"{PATCHES}: truncated"),
    "a patch of 8 GiB": (
        lambda f: giant(f / PATCHES, "ILSVRC2010_val_00000001.JPEG"), f"{PATCHES}: its member"),
    "a member's long name of 8 GiB": (
        lambda f: giant(f / VAL, "././@LongLink", tarfile.GNUTYPE_LONGNAME), f"{VAL}: "),
    "test labels of many lines": (
        lambda f: (f / TRUTH).write_bytes(b"1\n" * (3 << 20)), f"{TRUTH}: cannot be read (more than"),
    "kit is a giant": (lambda f: os.truncate(f / KIT, 1 << 30), f"{KIT}: truncated, damaged or"),
    "kit unpacks to a giant": (
        lambda f: (f / KIT).write_bytes(gzip.compress(bytes(200 << 20), 1)), f"{KIT}: truncated, damaged or"),
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


def copied(archives_2010, tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    for path in archives_2010.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("case", SPOILT)
def test_what_can_be_known_is_told_before_an_image_is_read(case, archives_2010, tmp_path, monkeypatch):
    spoil, message = SPOILT[case]
    folder = copied(archives_2010, tmp_path)
    spoil(folder)
    monkeypatch.setattr(ilsvrc, "_prepared", lambda picture: pytest.fail("an image was read"))
    data_sets.assert_refused(folder, tmp_path / "data", message)


def test_missing_archives_are_told_before_tfds_prints_a_line(tmp_path, monkeypatch, capfd):
    def printed(*_, **__):
        pytest.fail("TFDS was asked to prepare")

    monkeypatch.setattr(ilsvrc.Ilsvrc, "download_and_prepare", printed)
    (tmp_path / "archives").mkdir()
    data_sets.assert_refused(tmp_path / "archives", tmp_path / "data", "data.manual_dir: ")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("case", SPOILT_INSIDE)
def test_what_is_wrong_inside_is_told_with_the_member(case, archives_2010, tmp_path):
    spoil, message = SPOILT_INSIDE[case]
    folder = copied(archives_2010, tmp_path)
    spoil(folder)
    data_sets.assert_refused(folder, tmp_path / "data", message)


def test_names_in_the_archive_are_not_paths(tmp_path):
    evil = tmp_path / "evil.JPEG"
    images = [(name, small.file_of(small.photograph(1))) for name in (str(evil), "../../../a.JPEG")]
    train = {A: images, B: [("b.JPEG", images[0][1])], C: [("c.JPEG", images[0][1])]}
    small.make(tmp_path / "archives", "2012", train, [(A, images[0][1])])
    before = {path for path in tmp_path.rglob("*")}
    found = data_sets.examples(data_sets.ilsvrc("2012", tmp_path / "archives", tmp_path / "data"), "train")
    assert found.keys() == {"evil.JPEG", "a.JPEG", "b.JPEG", "c.JPEG"}
    made = {path for path in tmp_path.rglob("*")} - before
    assert not evil.exists() and all(tmp_path / "data" in (path, *path.parents) for path in made)
