"""What the paper does to an image on its way into the network (sections 2 and 4.1), on the device.

Pure functions; which example gets which crop is decided by its key alone, not by where it is computed.
Pixels are on the scale 0 to 255.

    train_views   a random crop, a random flip, colour noise
    test_views    the central crop; or four corners and the centre, and their reflections
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt8

Images = UInt8[Array, "batch size size channel"]
Views = Float[Array, "batch crop crop channel"]


def train_views(images: Images, keys: Key[Array, " batch"], statistics: dict[str, Array], config) -> Views:
    """A view of each image for training, drawn from its key (section 4.1)."""
    return jax.vmap(lambda image, key: _train_view(image, key, statistics, config))(images, keys)


def _train_view(image, key, statistics, config):
    augment, last = config.augment, config.data.image_size - config.data.crop_size
    crop_key, flip_key, colour_key = jax.random.split(key, 3)
    # All offsets: 33 on each axis for 224 in 256.
    top, left = jax.random.randint(crop_key, (2,), 0, last + 1) if augment.crop else (last // 2, last // 2)
    flip = jax.random.bernoulli(flip_key) if augment.flip else False
    view = _crop_normalize_flip(image, top, left, flip, statistics, config)
    if not augment.pca_std:
        return view
    noise = colour_noise(colour_key, augment.pca_std, statistics)
    return view + (noise / statistics["channel_std"] if _by_channel(config) else noise)


def _crop_normalize_flip(image, top, left, flip, statistics, config):
    """One image's float32 crop at (top, left), normalized, then reflected left to right where `flip`."""
    crop = config.data.crop_size

    def window(x):
        return lax.dynamic_slice(x, (top, left, 0), (crop, crop, x.shape[2]))

    view = window(image).astype(jnp.float32)
    if _by_channel(config):
        view = (view - statistics["channel_mean"]) / statistics["channel_std"]
    else:
        view = view - window(statistics["mean_image"])
    return jnp.where(flip, view[:, ::-1], view)


def _by_channel(config) -> bool:
    return config.data.normalization == "channel_mean_std"


def colour_noise(key: Key[Array, ""], std: float, statistics: dict[str, Array]) -> Float[Array, " channel"]:
    """[p1 p2 p3] [a1 s1, a2 s2, a3 s3]^T with a_i ~ N(0, std), once an image (section 4.1).

    p_i are the eigenvectors of the training set's colour covariance. s_i are its standard deviations along
    them, as in the released code (convdata_jpeg.py:65), where the paper prints the eigenvalues s_i^2.
    """
    deviations = statistics["standard_deviations"]
    alpha = std * jax.random.normal(key, deviations.shape)
    return (alpha * deviations) @ statistics["eigenvectors"].T


def test_views(config, views: int) -> list[tuple[int, int, bool]]:
    """(top, left, flip) of each of 1 or 10 views for evaluation (section 4.1)."""
    last = config.data.image_size - config.data.crop_size
    centre = (last // 2, last // 2)
    if views == 1:
        return [(*centre, False)]
    corners = [(0, 0), (0, last), (last, 0), (last, last)]
    return [(*offset, flip) for flip in (False, True) for offset in (centre, *corners)]


def test_view(images: Images, view: Int[Array, "3"], statistics: dict[str, Array], config) -> Views:
    """One of `test_views`, given as an array (top, left, flip), of each image."""
    top, left, flip = view[0], view[1], view[2] == 1
    return jax.vmap(lambda image: _crop_normalize_flip(image, top, left, flip, statistics, config))(images)
