"""alexnet_jax/trained.py, as a notebook uses it: predictions, activations, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_archives
from helpers.views import mean_of_softmax, ten_views

import alexnet_jax
from alexnet_jax import config as configuration
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import make_activations
from alexnet_jax.workdirs.workdir import read_result


@pytest.fixture(scope="module")
def split(workdir):
    return open_source(configuration.of_run(workdir), "test_split").read(range(100))


def test_predictions_have_the_errors_of_the_evaluation(net, split, workdir):
    images, labels = split
    probabilities, result = net.predict(images), read_result(workdir)
    assert probabilities.shape == (100, 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) != labels).mean() == pytest.approx(result["top1_error"])
    five = np.argsort(probabilities, axis=1)[:, -5:]
    assert (five != labels[:, None]).all(axis=1).mean() == pytest.approx(result["top5_error"])
    assert 0 < result["top5_error"] < result["top1_error"]
    loss = -np.log(probabilities[range(100), labels]).mean()
    assert loss == pytest.approx(result["loss"], rel=1e-4)
    assert net.step == result["step"] and net.config.model.columns == 2 and len(net.names) == 10


def test_ten_views_are_averaged_after_the_softmax(workdir, split):
    ten = alexnet_jax.load(workdir, {"eval.views": 10})
    images = split[0][:8]
    views = ten_views(images, ten.statistics, ten.config.data.crop_size)
    wanted = mean_of_softmax(ten.apply(ten.params, jnp.asarray(view))[0] for view in views)
    np.testing.assert_allclose(ten.predict(images), wanted, atol=1e-6)


def test_activations_are_the_networks_own(net, split):
    """Against the network on a mesh of two devices, of which each holds a column."""
    images, _ = split
    names = ["conv1", "conv2/pool", "fc7", "fc8"]
    got = net.activations(images[:40], names)
    config = net.config.copy_and_resolve_references()
    config.mesh.column = 2
    last = config.data.image_size - config.data.crop_size
    window = slice(last // 2, last // 2 + config.data.crop_size)
    views = (images[:40].astype(np.float32) - np.asarray(net.statistics["mean_image"]))[:, window, window]
    _, want = make_activations(config, make_mesh(config))(jax.device_get(net.params), views)
    assert list(got) == names
    for name in names:
        assert got[name].shape == (40, *net.layers[name])
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)
    one = net.activations(images[:40], ["conv2/pool", "fc8"], column=1)
    half = got["conv2/pool"].shape[-1] // 2
    np.testing.assert_array_equal(one["conv2/pool"], got["conv2/pool"][..., half:])
    np.testing.assert_array_equal(one["fc8"], got["fc8"])


def test_pictures_are_taken_as_paths_and_as_arrays_of_any_size(net, tmp_path):
    pictures = [small_archives.photograph(seed, size) for seed, size in ((0, (90, 60)), (1, (40, 70)))]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(small_archives.file_of(picture, "PNG"))
    want = net.predict(paths)
    np.testing.assert_array_equal(net.predict([np.asarray(picture) for picture in pictures]), want)
    np.testing.assert_array_equal(net.predict(np.stack([net.prepared(path)[0] for path in paths])), want)
    np.testing.assert_array_equal(net.predict([str(paths[0]), np.asarray(pictures[1])]), want)
    np.testing.assert_allclose(net.predict(paths[1]), want[1:], rtol=1e-5)


def test_apply_goes_into_a_jitted_function_and_its_gradients(net, split):
    """The gradient of a unit with respect to the pixels, against a finite difference."""
    views = net.views(split[0][:2])

    @jax.jit
    def unit(views):
        logits, activations = net.apply(net.params, views)
        return logits[:, 3].sum() + 0 * activations["conv1/pool"].sum()

    np.testing.assert_allclose(
        net.apply(net.params, views)[0], net.activations(split[0][:2], "fc8")["fc8"], rtol=1e-4, atol=1e-4
    )
    gradient = jax.grad(unit)(views)
    assert gradient.shape == views.shape
    direction = gradient / np.linalg.norm(gradient)
    slope = (unit(views + 0.05 * direction) - unit(views - 0.05 * direction)) / 0.1
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=1e-2)


def test_mistakes_are_one_line(net, split, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    images = split[0]
    for call, words in (
        (lambda: net.activations(images[:1], ["conv1/pol"]), "did you mean conv1/pool"),
        (lambda: net.activations(images[:1], ["fc8"], column=2), "column: 2, but there are 2, from 0"),
        (lambda: net.predict(images[0]), "images: expected uint8 [n, 28, 28, 1] or a list"),
        (lambda: net.predict([images[0] / 255]), "images: expected paths, or uint8 arrays"),
        (lambda: net.predict([]), "images: the list is empty"),
        (lambda: net.predict(tmp_path / "text.jpg"), "text.jpg: cannot be read as a picture"),
        (lambda: alexnet_jax.load(tmp_path), "has no config.json"),
        (lambda: alexnet_jax.load(tmp_path, {"eval.vews": 1}), "has no config.json"),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert words in str(error.value) and len(str(error.value).splitlines()) == 1
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = alexnet_jax.lod


@pytest.mark.program
def test_a_run_is_trained_and_loaded_without_a_command(data_dir, tmp_path):
    fields = {
        "data.dir": str(data_dir), "data.train_split": "train[:64]", "data.val_split": "train[59900:]",
        "data.test_split": "test[:99]", "num_epochs": 1, "batch_size": 32, "eval.views": 1,
        "model.width": 0.25,
    }  # fmt: skip
    config = alexnet_jax.config.load("configs/quickstart.py", fields)
    alexnet_jax.train(config, tmp_path / "run")
    assert alexnet_jax.load(tmp_path / "run").step == 2
    config.batch_size = -1
    with pytest.raises(InputError, match="batch_size"):
        alexnet_jax.train(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()
