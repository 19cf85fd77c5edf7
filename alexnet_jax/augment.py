"""Crops, flips, colour noise and views (section 4.1) on the device, and subtraction of the mean (section 2).

These are pure functions. The crop of an example depends on its key alone, not on the device that computes it.
Pixels are on the scale 0 to 255.

    train_views   a random crop, a random flip, colour noise
    test_views    the central crop; or four corners and the centre, and their reflections
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

Images = UInt8[Array, "batch size size channel"]
Views = Float[Array, "batch crop crop channel"]


def train_views(
    images: Images,
    keys: Key[Array, " batch"],
    statistics: dict[str, Array],
    config,
    crop_keys: Key[Array, " batch"] | None = None,
    colored: bool | Bool[Array, ""] = True,
) -> Views:
    """Draw a training view of each image from its key (section 4.1).

    Images with equal `crop_keys` share crop and flip. Without `colored` there is no colour noise.
    """
    view = functools.partial(_train_view, colored=colored, statistics=statistics, config=config)
    return jax.vmap(view)(images, keys, keys if crop_keys is None else crop_keys)


def _train_view(image, key, crop_key, colored, statistics, config):
    augment, last = config.augment, config.data.image_size - config.data.crop_size
    offset_key, flip_key, _ = jax.random.split(crop_key, 3)
    color_key = jax.random.split(key, 3)[2]
    # All offsets: 33 on each axis for crops of 224 from 256.
    top, left = last // 2, last // 2
    if augment.crop:
        # Without the barrier XLA draws the offset again for each pixel: the kernel of the crop has 1,859
        # instructions on an H100, and 336 with it.
        top, left = lax.optimization_barrier(jax.random.randint(offset_key, (2,), 0, last + 1))
    flip = jax.random.bernoulli(flip_key) if augment.flip else False
    view = _crop_normalize_flip(image, top, left, flip, statistics, config)
    if not augment.pca_std:
        return view
    noise = color_noise(color_key, augment.pca_std, statistics)
    noisy = view + (noise / statistics["channel_std"] if _by_channel(config) else noise)
    return jnp.where(colored, noisy / augment.pca_divisor, view)


def _crop_normalize_flip(image, top, left, flip, statistics, config):
    """Return one image's float32 crop at (top, left), normalized, and reflected left to right if `flip`."""
    crop, last = config.data.crop_size, config.data.image_size - config.data.crop_size

    def window(x, top, left):
        return lax.dynamic_slice(x, (top, left, 0), (crop, crop, x.shape[2]))

    def reflect(x):
        return jnp.where(flip, x[:, ::-1], x)

    view = window(image, top, left).astype(jnp.float32)
    if _by_channel(config):
        return reflect((view - statistics["channel_mean"]) / statistics["channel_std"])
    if config.augment.mean_crop == "centre":
        return reflect(view) - window(statistics["mean_image"], last // 2, last // 2)
    return reflect(view - window(statistics["mean_image"], top, left))


def _by_channel(config) -> bool:
    return config.data.normalization == "channel_mean_std"


def color_noise(key: Key[Array, ""], std: float, statistics: dict[str, Array]) -> Float[Array, " channel"]:
    """Draw [p1 p2 p3] [a1 s1, a2 s2, a3 s3]^T with a_i ~ N(0, std), once per image (section 4.1).

    p_i are the eigenvectors of the training set's colour covariance. s_i are its standard deviations along
    them, as in the released code (convdata_jpeg.py:65); the paper prints the eigenvalues s_i^2 instead.
    """
    deviations = statistics["standard_deviations"]
    alpha = std * jax.random.normal(key, deviations.shape)
    return (alpha * deviations) @ statistics["eigenvectors"].T


def test_views(config, views: int) -> list[tuple[int, int, bool]]:
    """Return (top, left, flip) of each of 1 or 10 views for evaluation (section 4.1)."""
    last = config.data.image_size - config.data.crop_size
    centre = (last // 2, last // 2)
    if views == 1:
        return [(*centre, False)]
    corners = [(0, 0), (0, last), (last, 0), (last, last)]
    return [(*offset, flip) for flip in (False, True) for offset in (centre, *corners)]


def test_view(images: Images, view: Int[Array, "3"], statistics: dict[str, Array], config) -> Views:
    """Return the same view of each image; `view` is one of `test_views` as an array (top, left, flip)."""
    top, left, flip = view[0], view[1], view[2] == 1
    return jax.vmap(lambda image: _crop_normalize_flip(image, top, left, flip, statistics, config))(images)
