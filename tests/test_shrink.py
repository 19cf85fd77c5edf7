"""experiments/shrink.py: the copy of a folder of pictures, and what it refuses."""

import os

import numpy as np
import pytest
from helpers import folders
from helpers import small_archives as small
from PIL import Image

from alexnet_jax.datasets.folder import FolderSource
from alexnet_jax.runtime.errors import InputError
from experiments import shrink


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level("INFO", logger="alexnet_jax")


@pytest.fixture
def data(tmp_path):
    return folders.make(tmp_path / "data", ("ant", "bee"))


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def run(source, target, size=20):
    shrink.main([str(source), str(target), str(size)])


def refused(source, target, size=20):
    with pytest.raises(InputError) as raised:
        run(source, target, size)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_copy_reads_as_the_original_does(data, tmp_path):
    run(data, tmp_path / "new" / "small")
    assert names(tmp_path / "new" / "small") == names(data) and not (tmp_path / "new" / "small.part").exists()
    for split in ("train", "val"):
        one, other = (
            FolderSource(str(place), split, 20, 3, "data.train_split")
            for place in (data, tmp_path / "new" / "small")
        )
        for ours, theirs in zip(one.read(range(len(one))), other.read(range(len(other))), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "source, target",
    [
        ("data", "data"),
        ("data", "data/small"),
        ("data/train", "data"),
        ("data", "link"),
        ("link", "data/small"),
        ("data", "link/small"),
        ("data.part", "data"),
    ],
)
def test_originals_are_not_written_to(data, tmp_path, source, target):
    (tmp_path / "link").symlink_to(data)
    if source == "data.part":
        os.rename(data, tmp_path / source)
        data = tmp_path / source
    before = {name: (data / name).read_bytes() for name in names(data)}
    assert "is the folder of the originals" in refused(tmp_path / source, tmp_path / target)
    assert {name: (data / name).read_bytes() for name in names(data)} == before


def test_a_folder_that_is_there_is_not_written_to(data, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine.txt").write_text("mine")
    assert "exists already" in refused(data, tmp_path / "small")
    (tmp_path / "other.part").mkdir()
    assert "is not an unfinished copy" in refused(data, tmp_path / "other")
    assert not list((tmp_path / "other.part").iterdir())


def test_what_training_left_and_what_is_in_no_class_is_passed_over(data, tmp_path, caplog):
    pictures = names(data)
    (data / "statistics-train-0a1b2c3d-56x3.npz").write_bytes(b"PK")
    (data / ".fingerprints.npz").write_bytes(b"PK")
    (data / "noisy.csv").write_text("a,b")
    run(data, tmp_path / "small")
    assert names(tmp_path / "small") == pictures
    assert any(
        "skipping files that are not pictures of a class: 'noisy.csv'" in line for line in caplog.messages
    )


def test_a_folder_of_pictures_without_classes_is_copied_whole(data, tmp_path):
    (data / "train" / "statistics-train-0a1b2c3d-56x3.npz").write_bytes(b"PK")
    run(data / "train", tmp_path / "small")
    assert names(tmp_path / "small") == {f"{label}/{n}.bmp" for label in ("ant", "bee") for n in range(8)}


def test_an_interrupted_copy_goes_on(data, tmp_path, monkeypatch, caplog):
    copy = shrink._copy_one

    def interrupted(job):
        if job[1].name == "5.bmp":
            raise KeyboardInterrupt
        return copy(job)

    monkeypatch.setattr(shrink, "_copy_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    part = tmp_path / "small.part"
    made = [name for name in names(part) if not name.startswith(".")]
    assert 4 <= len(made) < 24
    assert "of another folder or size" in refused(data, tmp_path / "small", 21)
    first, changed, gone = (data / "train" / "ant" / f"{n}.bmp" for n in range(3))
    changed.write_bytes(small.file_of(small.photograph(3)))
    gone.unlink()
    again = []
    monkeypatch.setattr(shrink, "_copy_one", lambda job: again.append(job[0]) or copy(job))
    run(data, tmp_path / "small")
    assert first not in again and changed in again
    assert any(f"small.part: resuming after {len(made) - 2} of 23" in line for line in caplog.messages)
    assert names(tmp_path / "small") == names(data)
    assert (tmp_path / "small/train/ant/1.bmp").read_bytes() != (
        tmp_path / "small/train/ant/0.bmp"
    ).read_bytes()


def test_pictures_that_cannot_be_read_are_each_one_line_and_the_copy_is_not_whole(data, tmp_path, capsys):
    (data / "train" / "ant" / "a\n.jpg").write_text("no picture")
    (data / "val" / "bee" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(data / "val" / "bee" / "pipe.jpg")
    assert "3 of 27 files cannot be read as pictures" in refused(data, tmp_path / "small")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all("cannot be read as a picture" in line for line in lines)
    assert not (tmp_path / "small").exists()
    for name in ("train/ant/a\n.jpg", "val/bee/gone.jpg", "val/bee/pipe.jpg"):
        (data / name).unlink()
    run(data, tmp_path / "small")
    assert names(tmp_path / "small") == names(data)


def test_classes_that_are_links_are_copied_and_loops_refused(data, tmp_path):
    os.rename(data / "train" / "ant", tmp_path / "ant")
    (data / "train" / "ant").symlink_to(tmp_path / "ant")
    run(data, tmp_path / "small")
    assert len(names(tmp_path / "small")) == 24
    (data / "train" / "up").symlink_to(data)
    assert "is a link to a folder above it" in refused(data, tmp_path / "other")


def tiny_imagenet(folder):
    picture = small.file_of(Image.fromarray(np.full((64, 64, 3), 99, np.uint8)))
    for label in ("n01443537", "n01629819"):
        (folder / "train" / label / "images").mkdir(parents=True)
        (folder / "train" / label / "images" / f"{label}_0.JPEG").write_bytes(picture)
        (folder / "train" / label / f"{label}_boxes.txt").write_text(f"{label}_0.JPEG\t0\t0\t63\t63\n")
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "val" / "images" / "val_0.JPEG").write_bytes(picture)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01629819\t0\t32\t44\t62\n")
    (folder / "words.txt").write_text("n01443537\tgoldfish\n")
    return folder


def test_tiny_imagenet_is_recognised_and_its_copy_can_be_read(tmp_path):
    folder = tiny_imagenet(tmp_path / "tiny")
    with pytest.raises(InputError) as raised:
        FolderSource(str(folder), "val", 64, 3, "data.val_split")
    assert f"python -m experiments.shrink {folder} COPY 64" in str(raised.value)
    run(folder, tmp_path / "new", 64)
    assert names(tmp_path / "new") == {
        "train/n01443537/n01443537_0.JPEG", "train/n01629819/n01629819_0.JPEG", "val/n01629819/val_0.JPEG",
    }  # fmt: skip
    images, labels = FolderSource(str(tmp_path / "new"), "val", 64, 3, "data.val_split").read([0])
    assert labels == [1] and abs(images.astype(int) - 99).max() < 3


def test_a_damaged_list_of_tiny_imagenet_is_one_line(tmp_path):
    folder = tiny_imagenet(tmp_path / "tiny")
    (folder / "val" / "val_annotations.txt").write_bytes(b"one word\n\xff")
    with pytest.raises(InputError, match=r"val_annotations.txt: is not Tiny ImageNet's list"):
        FolderSource(str(folder), "val", 64, 3, "data.val_split")
