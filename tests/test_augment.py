"""alexnet_jax/augment.py: crops, flips, colour noise and the ten views against NumPy and closed forms."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from alexnet_jax import augment
from configs import paper


def config_of(image_size=12, crop_size=8, pca_std=0.0, normalization="mean_image", **choices):
    config = paper.get_config()
    config.data.update(image_size=image_size, crop_size=crop_size, normalization=normalization)
    config.augment.update(pca_std=pca_std, **choices)
    return ml_collections.FrozenConfigDict(config)


def statistics_of(image_size=12):
    draw = np.random.default_rng(1)
    mixed = draw.normal(size=(3, 3))
    variances, vectors = np.linalg.eigh(mixed @ mixed.T)
    arrays = {
        "mean_image": draw.uniform(80, 160, (image_size, image_size, 3)),
        "channel_mean": np.array([120.0, 110.0, 100.0]),
        "channel_std": np.array([60.0, 50.0, 70.0]),
        "eigenvectors": vectors,
        "standard_deviations": 40 * np.sqrt(variances),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def images_of(number, size=12):
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def keys(number, seed=0):
    return jax.random.split(jax.random.key(seed), number)


@functools.cache
def compiled(config):
    return jax.jit(functools.partial(augment.train_views, config=config))


def train_views(images, keys, config, statistics=None):
    statistics = statistics or statistics_of(images.shape[1])
    return np.asarray(compiled(config)(jnp.asarray(images), keys, statistics))


def all_crops(image, mean, crop):
    """Every (top, left, flip) -> the image less the mean, cropped alike, then reflected."""
    centred = image.astype(np.float32) - mean
    last = len(image) - crop
    crops = {}
    for top in range(last + 1):
        for left in range(last + 1):
            view = centred[top : top + crop, left : left + crop]
            crops[top, left, False], crops[top, left, True] = view, view[:, ::-1]
    return crops


def found(view, crops):
    matching = [place for place, crop in crops.items() if np.array_equal(view, crop)]
    assert len(matching) == 1
    return matching[0]


def five_deviations_of_chi_square(cells):
    return (cells - 1) + 5 * np.sqrt(2 * (cells - 1))


def test_views_for_training_are_crops_less_the_mean_under_them():
    images, statistics = images_of(40), statistics_of()
    views = train_views(images, keys(40), config_of())
    places = [
        found(view, all_crops(image, statistics["mean_image"], 8))
        for view, image in zip(views, images, strict=True)
    ]
    assert len(set(places)) > 20


def test_crops_and_flips_are_uniform_over_all_offsets():
    image = images_of(1)
    views = train_views(np.repeat(image, 4000, axis=0), keys(4000), config_of())
    crops = all_crops(image[0], statistics_of()["mean_image"], 8)
    place_of = {crop.tobytes(): place for place, crop in crops.items()}
    counts = dict.fromkeys(crops, 0)
    for view in views:
        counts[place_of[view.tobytes()]] += 1
    assert len(counts) == 5 * 5 * 2
    expected = 4000 / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < five_deviations_of_chi_square(len(counts))
    flips = sum(count for (_, _, flip), count in counts.items() if flip)
    assert abs(flips - 2000) < 5 * np.sqrt(4000 * 0.25)


def test_the_papers_33_offsets_are_reached_on_each_axis():
    # The image names its own pixels: row, column.
    image = np.zeros((1, 40, 40, 3), np.uint8)
    image[0, :, :, 0], image[0, :, :, 1] = np.mgrid[:40, :40]
    statistics = {"mean_image": np.zeros((40, 40, 3), np.float32)}
    config = config_of(image_size=40, crop_size=8)
    views = train_views(np.repeat(image, 3300, axis=0), keys(3300), config, statistics)
    for axis, offsets in enumerate((views[:, 0, 0, 0], views[:, 0, :, 1].min(axis=1))):
        counts = np.bincount(offsets.astype(int), minlength=33)
        assert len(counts) == 33, axis
        assert ((counts - 100) ** 2 / 100).sum() < five_deviations_of_chi_square(33), axis


def test_without_crop_and_flip_every_view_is_the_centre():
    images, mean = images_of(20), statistics_of()["mean_image"]
    views = train_views(images, keys(20), config_of(crop=False, flip=False))
    np.testing.assert_array_equal(views, (images - mean)[:, 2:10, 2:10])


def test_without_flip_no_view_is_reflected():
    image = images_of(1)
    views = train_views(np.repeat(image, 40, axis=0), keys(40), config_of(flip=False))
    crops = all_crops(image[0], statistics_of()["mean_image"], 8)
    assert not any(found(view, crops)[2] for view in views)


def test_a_view_depends_on_its_own_image_and_key_only():
    images, own = images_of(8), keys(8)
    config = config_of(pca_std=0.1)
    views = train_views(images, own, config)
    # The noise of a batch of another size may be summed in another order: one unit in the last place of 255.
    chosen = np.array([5, 0, 6])
    np.testing.assert_allclose(train_views(images[chosen], own[chosen], config), views[chosen], atol=2e-5)
    others = own.at[3].set(jax.random.key(99))
    changed = (train_views(images, others, config) != views).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, np.arange(8) == 3)


def test_colour_noise_has_the_papers_covariance():
    number, statistics = 40_000, statistics_of()
    draw = jax.vmap(functools.partial(augment.color_noise, std=0.1, statistics=jax.device_put(statistics)))
    noise = np.asarray(jax.jit(draw)(keys(number)), np.float64)
    vectors, deviations = statistics["eigenvectors"], statistics["standard_deviations"]
    want = 0.1**2 * vectors @ np.diag(deviations**2) @ vectors.T
    # Of Gaussians, E[x_i x_j] over n draws has the variance (S_ii S_jj + S_ij^2) / n.
    bound = 5 * np.sqrt((np.outer(np.diag(want), np.diag(want)) + want**2) / number)
    np.testing.assert_array_less(np.abs(noise.T @ noise / number - want), bound)
    np.testing.assert_array_less(np.abs(noise.mean(axis=0)), 5 * np.sqrt(np.diag(want) / number))


@pytest.mark.parametrize("normalization", ["mean_image", "channel_mean_std"])
def test_noise_is_one_vector_an_image_on_the_scale_of_the_pixels(normalization):
    images, statistics = images_of(300), statistics_of()
    with_noise = train_views(images, keys(300), config_of(pca_std=0.1, normalization=normalization))
    noise = with_noise - train_views(images, keys(300), config_of(normalization=normalization))
    if normalization == "channel_mean_std":
        noise = noise * statistics["channel_std"]
    # Differences of numbers up to 255 in float32.
    np.testing.assert_allclose(noise, np.broadcast_to(noise[:, :1, :1], noise.shape), atol=1e-4)
    own = noise[:, 0, 0]
    assert len(np.unique(own[:, 0])) == 300
    deviations = (own @ statistics["eigenvectors"]).std(axis=0)
    # The relative error of a deviation from n Gaussian draws is 1 / sqrt(2 n).
    want = 0.1 * statistics["standard_deviations"]
    np.testing.assert_allclose(deviations, want, rtol=5 / np.sqrt(2 * 300))


def test_ten_views_are_the_papers():
    views = augment.test_views(config_of(256, 224), 10)
    places = [(16, 16), (0, 0), (0, 32), (32, 0), (32, 32)]
    assert len(views) == 10
    assert set(views) == {(top, left, flip) for top, left in places for flip in (False, True)}


def test_one_view_is_the_centre():
    assert augment.test_views(config_of(256, 224), 1) == [(16, 16, False)]


def test_views_for_evaluation_equal_slices():
    images, statistics = images_of(3), statistics_of()
    config = config_of()
    centred = images - statistics["mean_image"]
    view = jax.jit(
        lambda view: augment.test_view(jnp.asarray(images), view, jax.device_put(statistics), config)
    )
    for top, left, flip in augment.test_views(config, 10):
        want = centred[:, top : top + 8, left : left + 8]
        got = view(jnp.array((top, left, flip), jnp.int32))
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, want[:, :, ::-1] if flip else want)


def test_channel_normalization_subtracts_the_mean_and_divides_by_the_deviation():
    images, statistics = images_of(3), jax.device_put(statistics_of())
    config = config_of(normalization="channel_mean_std")
    got = augment.test_view(jnp.asarray(images), jnp.array((1, 3, 0)), statistics, config)
    want = (images[:, 1:9, 3:11].astype(np.float64) - [120, 110, 100]) / [60, 50, 70]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_images_of_a_group_share_crop_and_flip_and_nothing_else():
    config, statistics = config_of(pca_std=0.1), jax.device_put(statistics_of())
    images = jnp.repeat(images_of(1), 6, axis=0)
    shared = keys(6)[jnp.array([0, 0, 0, 3, 3, 3])]
    views = augment.train_views(images, keys(6), statistics, config, crop_keys=shared)
    plain = config_of()
    want = augment.train_views(images, shared, statistics, plain)  # without noise, of the group's own keys
    noise = np.asarray(views - want)
    np.testing.assert_allclose(noise, noise[:, :1, :1].repeat(8, 1).repeat(8, 2), atol=2e-5)
    assert len({tuple(np.round(n[0, 0], 2)) for n in noise}) == 6


def test_the_centre_of_the_mean_image_may_serve_every_crop():
    """As in the released code: the image is reflected, the mean is not."""
    images, statistics = images_of(30), statistics_of()
    config = config_of(mean_crop="centre")
    mean = statistics["mean_image"]
    views = train_views(images, keys(30), config, statistics)
    for image, view in zip(images, views, strict=True):
        crops = all_crops(image, 0 * mean, 8)
        found(view, {place: crop - mean[2:10, 2:10] for place, crop in crops.items()})
    for view in augment.test_views(config, 10):
        top, left, flip = view
        arrays = jnp.asarray(images[:1]), jnp.array(view), jax.device_put(statistics)
        got = augment.test_view(*arrays, config)[0]
        want = images[0, top : top + 8, left : left + 8].astype(np.float32)
        np.testing.assert_array_equal(got, (want[:, ::-1] if flip else want) - mean[2:10, 2:10])


def test_noise_comes_with_its_divisor_and_ends_with_it():
    images, statistics = jax.device_put((images_of(5), statistics_of()))
    plain, divided = config_of(pca_std=0.1), config_of(pca_std=0.1, pca_divisor=1.1)
    noisy = augment.train_views(images, keys(5), statistics, plain)
    got = augment.train_views(images, keys(5), statistics, divided)
    np.testing.assert_allclose(got, np.asarray(noisy) / 1.1, rtol=1e-5)
    quiet = augment.train_views(images, keys(5), statistics, divided, colored=jnp.asarray(False))
    np.testing.assert_array_equal(quiet, augment.train_views(images, keys(5), statistics, config_of()))
