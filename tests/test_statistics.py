"""alexnet_jax/datasets/statistics.py: the mean image and the colour covariance against NumPy."""

import zipfile

import numpy as np
import pytest
from helpers.sources import MadeUp

from alexnet_jax.datasets import statistics
from alexnet_jax.runtime import progress


def made_up(examples, channels):
    draw = np.random.default_rng(0)
    # The channels are correlated and each pixel has a mean of its own.
    base = draw.integers(0, 100, (examples, 6, 6, 1)) + draw.integers(0, 80, (6, 6, 1))
    return MadeUp((base + draw.integers(0, 70, (examples, 6, 6, channels))).astype(np.uint8))


@pytest.fixture(params=[3, 1], ids=["colour", "grey"])
def source(request):
    return made_up(11, request.param)


@pytest.mark.parametrize("batch", [4, 11, 256], ids=["last not full", "one", "larger than the split"])
def test_statistics_equal_numpys(source, batch):
    got = statistics.compute(source, batch=batch)
    pixels = source.images.reshape(-1, source.images.shape[-1]).astype(np.float64)
    covariance = np.cov(pixels, rowvar=False, bias=True).reshape(pixels.shape[1], -1)
    np.testing.assert_allclose(got["mean_image"], source.images.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(got["channel_mean"], pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(got["channel_std"], pixels.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(got["covariance"], covariance, rtol=1e-6)


def test_eigenvectors_and_deviations_rebuild_the_covariance(source):
    got = statistics.compute(source, batch=4)
    vectors = got["eigenvectors"].astype(np.float64)
    rebuilt = vectors @ np.diag(got["standard_deviations"] ** 2) @ vectors.T
    np.testing.assert_allclose(rebuilt, got["covariance"], atol=1e-6 * got["covariance"].max())
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(vectors)), atol=1e-6)
    np.testing.assert_array_less(0, np.diff(got["standard_deviations"]))


def test_deviation_along_each_eigenvector_is_that_of_the_pixels(source):
    got = statistics.compute(source, batch=4)
    pixels = source.images.reshape(-1, source.images.shape[-1]).astype(np.float64)
    along = pixels @ got["eigenvectors"]
    np.testing.assert_allclose(got["standard_deviations"], along.std(axis=0), rtol=1e-5)


def test_progress_is_told_batch_by_batch(source, monkeypatch):
    done = []
    monkeypatch.setattr(progress, "Progress", lambda what, whole: done.append)
    statistics.compute(source, batch=4)
    assert done == [4, 8, 11]


def test_statistics_are_float32_and_progress_ends_at_the_whole(source, caplog):
    with caplog.at_level("INFO", "alexnet_jax"):
        got = statistics.compute(source, "statistics of train", batch=4)
    assert caplog.messages[-1].startswith("statistics of train: 11 of 11 images")
    assert set(got) == set(statistics.ARRAYS)
    assert {array.dtype for array in got.values()} == {np.dtype(np.float32)}


def test_images_without_variance_have_no_deviation():
    source = made_up(3, 3)
    source.images[:] = 255
    got = statistics.compute(source)
    np.testing.assert_array_equal(got["standard_deviations"], 0)
    for name, array in got.items():
        np.testing.assert_array_equal(np.isfinite(array), True, err_msg=name)


def test_saved_statistics_load_as_they_were(tmp_path):
    arrays = statistics.compute(made_up(5, 3)) | {"label_names": np.array(["cat", "dog"])}
    statistics.save(tmp_path / "statistics.npz", arrays)
    loaded = statistics.load(tmp_path / "statistics.npz")
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.npz"]


def test_file_that_is_not_there_or_cut_short_or_lacks_an_array_is_none(tmp_path):
    path = tmp_path / "statistics.npz"
    assert statistics.load(path) is None
    arrays = statistics.compute(made_up(5, 3))
    statistics.save(path, arrays)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert statistics.load(path) is None, length
    del arrays["covariance"]
    statistics.save(path, arrays)
    assert statistics.load(path) is None


def test_file_with_a_damaged_directory_is_none(tmp_path):
    path = tmp_path / "statistics.npz"
    statistics.save(path, statistics.compute(made_up(5, 3)))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    # Of an entry of a ZIP's central directory: the version needed, the flags, the compression method.
    for offset, value in ((6, 99), (8, 1), (8, 64), (10, 99)):
        damaged = bytearray(content)
        damaged[entry + offset] = value
        path.write_bytes(damaged)
        assert statistics.load(path) is None, (offset, value)


def test_only_known_members_are_read_and_none_that_is_too_large(tmp_path):
    path = tmp_path / "statistics.npz"
    arrays = statistics.compute(made_up(5, 3))

    def loaded(**changes):
        statistics.save(path, arrays | changes)
        return statistics.load(path)

    assert loaded(other=np.array([{}], object), label_names=np.array(["cat"])).keys() == {
        *arrays, "label_names",
    }  # fmt: skip
    assert loaded(label_names=np.array([]))["label_names"].shape == (0,)  # of a data set without names
    for names in (np.array(["cat"], object), np.array("cat"), np.array([["cat"]]), np.array([1.0])):
        assert loaded(label_names=names) is None
    for name, array in arrays.items():
        assert loaded(**{name: array[..., None]}) is None, name
        assert loaded(**{name: np.array([{}], object)}) is None, name
        assert loaded(**{name: array.astype("S4")}) is None, name
    assert loaded(covariance=np.zeros((3, 1000), np.float32)) is None


def test_a_large_member_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "statistics.npz"
    arrays = statistics.compute(made_up(5, 3))
    np.savez_compressed(path, **arrays)
    assert statistics.load(path) is not None
    np.savez_compressed(
        path, **arrays | {"mean_image": np.zeros((1 << 12, 1 << 12, 3), np.float32)}
    )  # 192 MB
    monkeypatch.setattr(np.lib.format, "read_array", None)
    opened = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: opened.append(1))
    assert statistics.load(path) is None and not opened


@pytest.mark.parametrize(
    "name, header",
    [
        ("mean_image", {"descr": "<f4", "shape": (1 << 20, 1 << 20, 3)}),
        ("label_names", {"descr": "<U0", "shape": (1 << 40,)}),
        ("label_names", {"descr": "'", "shape": (1,)}),
    ],
)
def test_a_header_that_promises_more_than_the_file_has_is_none(name, header, tmp_path):
    path = tmp_path / "statistics.npz"
    arrays = statistics.compute(made_up(5, 3)) | {"label_names": np.array(["cat"])}
    with zipfile.ZipFile(path, "w") as archive:
        for member, array in arrays.items():
            with archive.open(f"{member}.npy", "w") as file:
                if member == name:
                    np.lib.format.write_array_header_1_0(file, {"fortran_order": False, **header})
                else:
                    np.lib.format.write_array(file, array)
    assert statistics.load(path) is None


def test_statistics_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics.np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        statistics.save(tmp_path / "statistics.npz", {})
    assert not list(tmp_path.iterdir())


def test_each_split_has_a_file_of_its_own(tmp_path):
    for number, split in enumerate(("train[:20]", "train[20:]", "train[-20:]", "train[:20%]")):
        source = made_up(4, 3)
        source.images = np.full_like(source.images, number)
        source.folder, source.split = tmp_path, split
        np.testing.assert_array_equal(statistics.of_source(source)["mean_image"], number)
