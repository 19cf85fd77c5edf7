"""alexnet_jax/datasets/folder.py: a folder of pictures as a data set."""

import os
import shutil
import zlib

import numpy as np
import pytest
from helpers import folders
from helpers import small_archives as small

from alexnet_jax import config as configuration
from alexnet_jax import evaluate, main, train
from alexnet_jax.datasets import fingerprints, images, statistics
from alexnet_jax.datasets.folder import FolderSource
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError
from configs import paper


@pytest.fixture
def folder(tmp_path):
    """Three classes, 25 training and 4 validation pictures of every kind."""
    odd = [content for name, content in small.odd_pictures().items() if name != "gzipped"]
    kinds = ["jpg", "JPEG", "png", "webp", "x"]  # a file's name says nothing of its kind
    for number in range(29):
        part = "train" if number < 25 else "val"
        path = tmp_path / part / ["zebra", "ant", "dog house"][number % 3] / f"{number}.{kinds[number % 5]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(odd[number % len(odd)])
    (tmp_path / "train" / "ant" / ".hidden").write_text("not a picture")
    (tmp_path / "train" / "read me.txt").write_text("not a class")
    (tmp_path / "other").mkdir()
    return tmp_path


def opened(folder, split, field="train_split", **changes):
    config = paper.get_config()
    config.data.name, config.data.dir, config.data[field] = "folder", str(folder), split
    config.update_from_flattened_dict(changes)
    configuration.check(config)
    return open_source(config, field)


def listed(folder, part):
    """The pictures in the order of the checksums of their names."""
    paths = [path for path in (folder / part).glob("*/*") if not path.name.startswith(".")]
    return sorted(paths, key=lambda path: zlib.crc32(str(path.relative_to(folder)).encode()))


def test_a_slice_of_a_folder_is_a_sample_of_its_classes(tmp_path):
    """As one of a TFDS data set is, whose examples were shuffled when it was prepared."""
    for number in range(300):
        path = tmp_path / "train" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    source = FolderSource(str(tmp_path), "train[:90]", 8, 3, "data.train_split")
    counts = np.bincount([label for _, label, _ in source._files], minlength=3)
    assert all(counts >= 15) and counts.sum() == 90


@pytest.mark.parametrize("part", ["train", "val"])
def test_pictures_are_resized_as_read_and_labelled_by_their_folder(folder, part):
    source = opened(folder, part)
    paths = listed(folder, part)
    assert source.label_names == ("ant", "dog house", "zebra") and len(source) == len(paths)
    images, labels = source.read(range(len(source)))
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    for path, image, label in zip(paths, images, labels, strict=True):
        assert source.label_names[label] == path.parent.name
        np.testing.assert_array_equal(
            image, small.prepared(path.read_bytes(), oriented=True), err_msg=str(path)
        )


@pytest.mark.parametrize(
    "split, places",
    [
        ("train[:10]", slice(0, 10)),
        ("train[-5:]", slice(20, 25)),
        ("train[20%:60%]", slice(5, 15)),
    ],
)
def test_splits_are_those_of_tfds(folder, split, places):
    sliced, whole = opened(folder, split), opened(folder, "train")
    wanted = list(range(25))[places]
    assert len(sliced) == len(wanted)
    np.testing.assert_array_equal(sliced.read(range(len(sliced)))[0], whole.read(wanted)[0])


def test_splits_add(folder):
    assert len(opened(folder, "train[:3]+val")) == 3 + 4


def test_greyscale_of_another_size(folder):
    changes = {"data.channels": 1, "data.image_size": 40, "data.crop_size": 30}
    assert opened(folder, "val", **changes).read([1, 0])[0].shape == (2, 40, 40, 1)


@pytest.mark.parametrize(
    "spoil, split, message",
    [
        (lambda f: os.rename(f, f.with_name("gone")), "train", "data.dir: "),
        (lambda f: os.rename(f / "train", f / "training"), "train", "train: has no folders of classes"),
        (lambda f: os.rename(f / "val", f / "v"), "val", "data.train_split: 'val' cannot be read"),
        (lambda f: None, "validation", "data.train_split: 'validation' cannot be read; "),
        (lambda f: None, "train[", "data.train_split: 'train[' cannot be read"),
        (lambda f: None, "train[30:40]", "data.train_split: 'train[30:40]' cannot be read (train has "),
        (lambda f: None, "train[5:5]", "data.train_split: 'train[5:5]' is empty"),
        (lambda f: (f / "train" / "empty").mkdir(), "train", "empty: is a class without pictures"),
        (lambda f: (f / "val" / "yak").mkdir(), "val", "val: has 1 of its 4 classes that train lacks, 'yak'"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(folder, spoil, split, message):
    spoil(folder)
    with pytest.raises(InputError) as raised:
        opened(folder, split)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith(("data.", str(folder)))


def test_a_data_dir_that_is_not_given_is_told():
    with pytest.raises(InputError, match="data.dir: ''"):
        opened("", "train")


def test_a_file_that_is_no_picture_is_named(folder):
    bad = folder / "val" / "ant" / "note.jpg"
    bad.write_text("not a picture")
    source = opened(folder, "val")
    with pytest.raises(InputError) as raised:
        source.read(range(len(source)))
    assert str(raised.value).startswith(f"{bad}: ") and "\n" not in str(raised.value)


def test_statistics_are_kept_until_the_pictures_change(folder, monkeypatch):
    first = statistics.of_source(opened(folder, "train"))
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "compute", lambda *_: pytest.fail("computed again"))
        again = statistics.of_source(opened(folder, "train"))
    np.testing.assert_array_equal(first["mean_image"], again["mean_image"])
    os.remove(listed(folder, "train")[0])
    changed = statistics.of_source(opened(folder, "train"))
    assert not np.array_equal(first["mean_image"], changed["mean_image"])


def test_statistics_of_a_folder_that_cannot_be_written_are_not_kept(folder, monkeypatch, caplog):
    def refused(path, arrays):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(statistics, "save", refused)
    arrays = statistics.of_source(opened(folder, "train"))
    assert arrays["mean_image"].shape == (256, 256, 3) and "cannot be saved" in caplog.messages[-1]
    assert not list(folder.rglob("statistics*"))


def test_statistics_are_computed_again_for_other_pictures_of_the_same_names(folder):
    path = listed(folder, "train")[0]
    first = statistics.of_source(opened(folder, "train"))
    path.write_bytes(small.file_of(small.photograph(99, (300, 300))))
    assert not np.array_equal(
        first["mean_image"], statistics.of_source(opened(folder, "train"))["mean_image"]
    )


def test_a_link_to_nothing_is_named(folder):
    (folder / "train" / "ant" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    with pytest.raises(InputError, match=f"{folder}/train/ant/gone.jpg: cannot be read as a picture"):
        opened(folder, "train")


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_below_a_class_is_refused(folder, part, linked):
    place = folder / "elsewhere" if linked else folder / part / "ant" / "nested"
    place.mkdir()
    (place / "1.jpg").write_bytes(small.file_of(small.photograph(0)))
    if linked:
        (folder / part / "ant" / "nested").symlink_to(place)
    with pytest.raises(InputError) as raised:
        opened(folder, part)
    assert str(raised.value) == (
        f"{folder}/{part}/ant/nested: pictures in a folder inside a class are not read; move them into "
        f"{folder}/{part}/ant"
    )


def test_what_is_no_file_is_refused_and_not_opened(folder):
    odd = folder / "train" / "ant" / "odd.jpg"
    os.mkfifo(odd)
    with pytest.raises(InputError, match=f"^{odd}: is a pipe, a socket or a device"):
        opened(folder, "train")
    odd.unlink()
    odd.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"^{odd}: is a pipe, a socket or a device"):
        opened(folder, "train")


def test_a_link_to_itself_is_named_in_a_class_and_ignored_beside_the_classes(folder):
    (folder / "train" / "loop").symlink_to(folder / "train" / "loop")
    before = len(opened(folder, "train"))
    (folder / "train" / "ant" / "loop").symlink_to(folder / "train" / "ant" / "loop")
    with pytest.raises(InputError, match="ant/loop: cannot be read as a picture"):
        opened(folder, "train")
    assert before == 25


@pytest.mark.parametrize("name, shown", [(b"\xff.jpg", r"\xff.jpg"), (b"a\nb.jpg", r"a\x0ab.jpg")])
def test_names_that_are_not_utf8_or_have_lines_are_shown(folder, name, shown):
    path = folder / "val" / "ant" / os.fsdecode(name)
    path.write_text("not a picture")
    source = opened(folder, "val")
    with pytest.raises(InputError) as raised:
        source.read(range(len(source)))
    assert str(raised.value).startswith(f"{folder}/val/ant/{shown}: cannot be read as a picture (not a")
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(InputError) as raised:
        opened(folder, "val")
    assert str(raised.value).startswith(f"{folder}/val/ant/{shown}: ")
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError) as raised:
        opened(folder, "val")
    assert str(raised.value).startswith(f"{folder}/val/ant/{shown}: ")


def test_a_picture_whose_name_is_not_utf8_is_read(folder):
    picture = small.file_of(small.photograph(0))
    (folder / "val" / os.fsdecode(b"ant") / os.fsdecode(b"\xff.jpg")).write_bytes(picture)
    source = opened(folder, "val")
    read, _ = source.read(range(len(source)))
    assert any(np.array_equal(image, small.prepared(picture)) for image in read)


def test_a_file_that_is_gone_is_named_once(folder):
    source = opened(folder, "val")
    gone = listed(folder, "val")[0]
    gone.unlink()
    with pytest.raises(
        InputError, match=f"^{gone}: cannot be read as a picture .No such file or directory.; "
    ):
        source.read([0])


def test_what_is_hidden_is_not_looked_into_and_names_may_be_any(folder):
    before = len(opened(folder, "train"))
    picture = small.file_of(small.photograph(0))
    for name in ("train/ant/.nested/1.jpg", "train/.hidden/1.jpg", "train/Ähre 漢/ß.jpg"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(picture)
    source = opened(folder, "train")
    assert len(source) == before + 1 and source.label_names[-1] == "Ähre 漢"
    images, labels = source.read(range(before + 1))
    np.testing.assert_array_equal(images[labels == 3], [small.prepared(picture)])
    # A class that validation lacks.
    assert set(opened(folder, "val").read(range(4))[1]) <= {0, 1, 2}


def refused(folder, split):
    with pytest.raises(InputError) as raised:
        FolderSource(str(folder), split, 8, 3, "data.val_split")
    assert "\n" not in str(raised.value) and "remove" not in str(raised.value)
    return str(raised.value)


def test_pictures_of_validation_without_classes_are_told_where_they_belong(folder):
    for place in [path for path in (folder / "val").iterdir()]:
        for picture in place.iterdir():
            picture.rename(folder / "val" / picture.name)
        place.rmdir()
    for split in ("val", "val[:50%]"):
        assert refused(folder, split).startswith(
            f"{folder}/val: has 4 files and no folders of classes; move its"
        )
        assert "val/CLASS" in refused(folder, split)


def test_classes_that_train_lacks_are_counted_and_three_are_named(folder):
    for name in "abcde":
        (folder / "val" / name).mkdir()
    assert refused(folder, "val").startswith(
        f"{folder}/val: has 5 of its 8 classes that train lacks, 'a', 'b', 'c' and 2 more; name them as"
    )


@pytest.mark.parametrize("given", ["train", "train/ant", "..", "../.."])
def test_the_folder_that_is_a_level_or_two_away_is_named(tmp_path, given):
    right = tmp_path / "one" / "data"
    for name in ("train/ant", "val/ant"):
        (right / name).mkdir(parents=True)
        (right / name / "1.jpg").touch()
    place = (right / given).resolve()
    assert refused(place, "train") == f"data.dir: {place} has no train/CLASS/*; give {right}, which has"


def test_classes_without_a_folder_of_their_split_are_told_where_they_belong(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "1.jpg").touch()
    assert refused(tmp_path, "train").endswith("has no train/CLASS/*; move its classes into a folder train")


def spoil(folder, *names):
    """Put a file that is no picture, or is cut short, where each name says."""
    whole = small.file_of(small.photograph(5, (200, 200)))
    for name in names:
        (folder / name).write_bytes(whole[: len(whole) // 2] if name.endswith(".jpg") else b"no picture")


@pytest.fixture
def three_splits(tmp_path):
    """(folder with train, val and test, the configuration of a network on it)"""
    folder = folders.make(tmp_path / "data", ["ant", "bee"])
    shutil.copytree(folder / "val", folder / "test")
    return folder, folders.config_of(folder, 2, **{"data.test_split": "test"})


@pytest.mark.program
@pytest.mark.parametrize("start", ["train", "prepare"])
def test_every_bad_file_of_every_split_is_told_before_the_first_step(three_splits, tmp_path, start, capsys):
    folder, config = three_splits
    bad = ["train/ant/Thumbs.db", "val/bee/note.txt", "test/ant/cut.jpg", "test/bee/a.jpg"]
    spoil(folder, *bad)
    with pytest.raises(InputError) as raised:
        train.train(config, str(tmp_path / "run")) if start == "train" else main._prepare(config)
    message, told = str(raised.value), capsys.readouterr().err.splitlines()
    assert message.startswith(
        f"4 files cannot be read as pictures, such as {folder}/train/ant/Thumbs.db (not"
    )
    assert message.endswith("; replace or remove them") and "\n" not in message
    assert [line.partition(": ")[0] for line in told] == [
        f"{folder}/{name}" for name in sorted(bad, key=order)
    ]
    assert not (tmp_path / "run").exists()
    for name in bad[1:]:
        (folder / name).unlink()
    with pytest.raises(
        InputError, match=r"^.*Thumbs.db: cannot be read as a picture .*; replace or remove it$"
    ):
        train.train(config, str(tmp_path / "run"))
    (folder / bad[0]).unlink()
    train.train(config, str(tmp_path / "run"))
    assert (tmp_path / "run" / "eval.json").exists()


def order(name):
    """As files are told: split by split, in the order that the files of a split are read in."""
    return ["train", "val", "test"].index(name.partition("/")[0]), zlib.crc32(name.encode())


def test_ten_bad_files_are_named_and_the_others_counted(three_splits, capsys):
    folder, config = three_splits
    spoil(folder, *(f"val/ant/{number}.txt" for number in range(13)))
    config.data.test_split = "val"  # each is counted once
    with pytest.raises(InputError, match="^13 files cannot be read as pictures, such as "):
        main._prepare(config)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 11 and told[-1] == "... and 3 more"


def test_a_picture_is_decoded_once_and_a_bad_file_at_every_start(three_splits, monkeypatch):
    folder, config = three_splits
    spoil(folder, "train/ant/x.txt")
    for path in folder.rglob("*.*"):
        os.utime(path, (0, 0))
    monkeypatch.setattr(fingerprints, "_RACY", -(10**18))
    decoded, check = [], images.check
    monkeypatch.setattr(
        images, "check", lambda content, **how: decoded.append(content) or check(content, **how)
    )
    for numbers in (32 + 1, 1):
        decoded.clear()
        with pytest.raises(InputError, match="x.txt"):
            main._prepare(config)
        assert len(decoded) == numbers
    (folder / "train/ant/x.txt").unlink()
    decoded.clear()
    main._prepare(config)
    assert decoded == []


@pytest.mark.program
def test_a_bad_file_is_told_before_an_evaluation(three_splits, tmp_path):
    folder, config = three_splits
    train.train(config, str(tmp_path / "run"))
    spoil(folder, "test/ant/a.jpg", "test/bee/b.txt")
    with pytest.raises(InputError, match="^2 files cannot be read as pictures"):
        evaluate.evaluate(config, str(tmp_path / "run"))
