"""alexnet_jax/features.py: rows of activations in files, from every kind of source, wherever they stop."""

import csv
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import features
from alexnet_jax.datasets import pictures
from alexnet_jax.runtime.errors import InputError, Stopped, UnreadableFiles

LAYERS = ["fc7", "conv5/pool"]


@pytest.fixture
def photographs(tmp_path):
    """A folder of two classes, one of five and one of three pictures, in sizes of their own."""
    draw = np.random.default_rng(0)
    for name in ("cat/1", "cat/2", "cat/3", "cat/4", "cat/5", "dog/1", "dog/2", "dog/3"):
        file = tmp_path / "photographs" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 30 + len(name), 3), np.uint8)).save(file)
    return tmp_path / "photographs"


def index_of(folder):
    with open(folder / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


def arrays_of(folder):
    return {name: np.load(folder / f"{name}.npy") for name in ("fc7", "conv5-pool", "labels")}


def test_rows_of_a_split_are_the_activations_of_its_images(net, workdir, tmp_path):
    flags = [f"--workdir={workdir}", "--layers=fc7,conv5/pool", f"--out={tmp_path}/f"]
    features.main([*flags, "test_split"])
    source = features.open_images(["test_split"], net.config)
    images, labels = source.read(range(len(source)))
    want, got = net.activations(images, LAYERS), arrays_of(tmp_path / "f")
    for name in LAYERS:
        assert got[name.replace("/", "-")].dtype == np.float32
        np.testing.assert_array_equal(got[name.replace("/", "-")], want[name])
    np.testing.assert_array_equal(got["labels"], labels)
    row = index_of(tmp_path / "f")[7]
    name = source.label_names[labels[7]]
    assert row == {"row": "7", "image": f"{source.split} 7", "label": str(labels[7]), "class": name}
    record = json.loads((tmp_path / "f" / "features.json").read_text())
    assert record["step"] == net.step and record["run"] == net.run and record["examples"] == 100
    assert record["layers"]["conv5/pool"] == list(want["conv5/pool"].shape[1:])


def test_a_folder_a_list_and_pictures_give_the_same_rows(net, photographs, tmp_path):
    paths = sorted(str(path) for path in photographs.glob("*/*.png"))
    (tmp_path / "list.txt").write_text("\n".join(paths))
    (photographs / ".hidden").write_text("no picture")
    kinds = {"folder": [str(photographs)], "list": [str(tmp_path / "list.txt")], "pictures": paths}
    for name, what in kinds.items():
        features.extract(net, features.open_images(what, net.config), LAYERS, str(tmp_path / name))
    want = net.activations(paths, LAYERS)
    for name in kinds:
        got = arrays_of(tmp_path / name)
        np.testing.assert_array_equal(got["fc7"], want["fc7"])
        np.testing.assert_array_equal(got["conv5-pool"], want["conv5/pool"])
        assert [row["image"] for row in index_of(tmp_path / name)] == paths
    assert [row["class"] for row in index_of(tmp_path / "folder")] == ["cat"] * 5 + ["dog"] * 3
    assert arrays_of(tmp_path / "folder")["labels"].tolist() == [0] * 5 + [1] * 3
    assert arrays_of(tmp_path / "list")["labels"].tolist() == [-1] * 8


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_the_same_command_goes_on_where_it_was_stopped(net, tmp_path, monkeypatch, batches):
    source, activations, done = features.open_images(["test_split"], net.config), net.activations, []

    def stopped(images, names, column=None):
        if len(done) == batches:
            raise Stopped(15)
        done.append(len(images))
        return activations(images, names, column)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(net, "activations", stopped)
        features.extract(net, source, LAYERS, str(tmp_path / "f"))
    assert not list((tmp_path / "f").glob("*.npy")) and not (tmp_path / "f" / "features.json").exists()
    with open(tmp_path / "f" / "fc7.npy.part", "ab") as file:
        file.write(b"the beginning of a row")
    rest = []
    monkeypatch.setattr(net, "activations", lambda *of: rest.append(len(of[0])) or activations(*of))
    features.extract(net, source, LAYERS, str(tmp_path / "f"))
    assert sum(rest) == 100 - 32 * batches
    monkeypatch.setattr(net, "activations", activations)
    features.extract(net, source, LAYERS, str(tmp_path / "whole"))
    for name in ("fc7.npy", "conv5-pool.npy", "labels.npy", "index.csv", "features.json"):
        assert (tmp_path / "f" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == sorted(
        [".lock", "fc7.npy", "conv5-pool.npy", "labels.npy", "index.csv", "features.json"]
    )


def test_one_columns_maps(net, photographs, tmp_path):
    features.extract(
        net, features.open_images([str(photographs)], net.config), LAYERS, str(tmp_path / "f"), column=1
    )
    both = net.activations([str(photographs / "cat" / "1.png")], ["fc7"])["fc7"]
    got = arrays_of(tmp_path / "f")["fc7"]
    assert got.shape[1] == both.shape[1] // 2
    np.testing.assert_allclose(got[0], both[0, both.shape[1] // 2 :], rtol=1e-5, atol=1e-6)


def test_features_of_something_else_are_not_mixed(net, photographs, tmp_path, caplog):
    source, out = features.open_images([str(photographs)], net.config), str(tmp_path / "f")
    features.extract(net, source, ["fc7"], out)
    whole = (tmp_path / "f" / "fc7.npy").read_bytes()
    with caplog.at_level("INFO", "alexnet_jax"):
        features.extract(net, source, ["fc7"], out)
    assert "already has these features" in caplog.text
    for left in (b"", whole[:-5]):  # as a person or a disk may leave it
        (tmp_path / "f" / "fc7.npy").write_bytes(left)
        features.extract(net, source, ["fc7"], out)
        assert (tmp_path / "f" / "fc7.npy").read_bytes() == whole
    with pytest.raises(InputError, match="has features of another layers; give another"):
        features.extract(net, source, LAYERS, out)
    Image.new("RGB", (30, 30)).save(photographs / "cat" / "1.png")
    source = features.open_images([str(photographs)], net.config)
    with pytest.raises(InputError, match="has features of another fingerprint"):
        features.extract(net, source, ["fc7"], out)
    former, net.__dict__["fingerprint"] = net.fingerprint, "of other weights"  # cached
    with pytest.raises(InputError, match="has features of another weights and fingerprint"):
        features.extract(net, source, ["fc7"], out)
    net.__dict__["fingerprint"] = former
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "fc7.npy").touch()
    with pytest.raises(InputError, match="mine: contains 'fc7.npy'; give a new folder"):
        features.extract(net, source, ["fc7"], str(tmp_path / "mine"))


def test_mistakes_are_named_before_anything_is_written(net, photographs, tmp_path):
    out = str(tmp_path / "f")
    (photographs / "cat" / "Thumbs.db").write_text("no picture")
    source = features.open_images([str(photographs)], net.config)
    with pytest.raises(UnreadableFiles, match=r"cat/Thumbs.db: cannot be read as a picture"):
        features.extract(net, source, ["fc7"], out)
    with pytest.raises(InputError, match="layers: 'fc9' is not in this network"):
        features.extract(net, features.open_images(["test_split"], net.config), ["fc9"], out)
    with pytest.raises(InputError, match=r"x.png: cannot be read as a picture \(No such file"):
        features.extract(net, features.open_images([f"{tmp_path}/x.png"], net.config), ["fc7"], out)
    with pytest.raises(InputError, match=r"x.txt: cannot be read \(No such file"):
        features.open_images([f"{tmp_path}/x.txt"], net.config)
    with pytest.raises(InputError, match="a.png: unexpected beside test_split"):
        features.open_images(["test_split", "a.png"], net.config)
    (photographs / "cat" / "Thumbs.db").unlink()
    (photographs / "cat" / "again").symlink_to(photographs)
    with pytest.raises(
        InputError, match=f"cat/again: is {photographs} again, through a link; remove the link"
    ):
        features.open_images([str(photographs)], net.config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: has no pictures"):
        features.open_images([f"{tmp_path}/empty"], net.config)
    assert not pathlib.Path(out).exists()


def test_a_picture_that_goes_missing_is_named_and_not_the_output(net, photographs, tmp_path, monkeypatch):
    source = features.open_images([str(photographs)], net.config)
    source.fingerprint()
    (photographs / "dog" / "2.png").unlink()
    with pytest.raises(UnreadableFiles, match="dog/2.png: cannot be read as a picture"):
        features.extract(net, source, ["fc7"], str(tmp_path / "f"))


def test_every_picture_is_checked_once_and_none_is_kept(photographs, monkeypatch, net):
    (photographs / "cat" / "video.mp4").write_bytes(bytes(1 << 20))
    source, digest, found = (
        features.open_images([str(photographs)], net.config),
        pictures.Pictures._digest,
        [],
    )
    monkeypatch.setattr(
        pictures.Pictures, "_digest", lambda self, path: found.append(digest(self, path)) or found[-1]
    )
    with pytest.raises(UnreadableFiles):
        source.fingerprint()
    assert len(found) == 9 and {type(each) for each in found} == {bytes, str}
    (photographs / "cat" / "video.mp4").unlink()
    source = features.open_images([str(photographs)], net.config)
    assert source.fingerprint() == source.fingerprint() and len(found) == 9 + 8
