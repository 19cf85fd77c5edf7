"""What the paper does to an image on its way into the network (sections 2 and 4.1), on the device.

Pure functions of uint8 batches and of one key an example; which example gets which crop does not depend on
where it is computed. Pixels are on the scale 0 to 255.

    train_views   a random crop, a random flip, colour noise
    test_views    the central crop; or four corners and the centre, and their reflections
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt8

Images = UInt8[Array, "batch size size channel"]
Views = Float[Array, "batch crop crop channel"]


def _normalize(views, top, left, statistics, config):
    """Views less the mean image under the same crop; or less the mean and over the deviation, by channel."""
    if config.data.normalization == "channel_mean_std":
        return (views - statistics["channel_mean"]) / statistics["channel_std"]
    mean = statistics["mean_image"]
    crop = config.data.crop_size
    return views - jax.vmap(lambda top, left: _window(mean, top, left, crop))(top, left)


def _window(image, top, left, crop):
    return lax.dynamic_slice(image, (top, left, 0), (crop, crop, image.shape[2]))


def crop_flip_normalize(
    images: Images,
    top: Int[Array, " batch"],
    left: Int[Array, " batch"],
    flip: Array,
    statistics: dict[str, Array],
    config,
) -> Views:
    """float32 crops at (top, left), normalized, then reflected left to right where `flip`."""
    crop = config.data.crop_size
    views = jax.vmap(lambda image, top, left: _window(image, top, left, crop))(images, top, left)
    views = _normalize(views.astype(jnp.float32), top, left, statistics, config)
    return jnp.where(flip[:, None, None, None], views[:, :, ::-1], views)


def train_views(images: Images, keys: Key[Array, " batch"], statistics: dict[str, Array], config) -> Views:
    """A view of each image for training, drawn from its key (section 4.1)."""
    batch, size = images.shape[:2]
    crop, augment = config.data.crop_size, config.augment
    crop_keys, flip_keys, colour_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    if augment.crop:
        # All offsets of a crop x crop window: 33 on each axis for 224 in 256.
        offsets = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, size - crop + 1))(crop_keys)
    else:
        offsets = jnp.full((batch, 2), (size - crop) // 2)
    flip = jax.vmap(jax.random.bernoulli)(flip_keys) if augment.flip else jnp.zeros(batch, bool)
    views = crop_flip_normalize(images, offsets[:, 0], offsets[:, 1], flip, statistics, config)
    if not augment.pca_std:
        return views
    noise = colour_noise(colour_keys, augment.pca_std, statistics)
    if config.data.normalization == "channel_mean_std":
        noise = noise / statistics["channel_std"]
    return views + noise[:, None, None, :]


def colour_noise(
    keys: Key[Array, " batch"], std: float, statistics: dict[str, Array]
) -> Float[Array, "batch channel"]:
    """[p1 p2 p3] [a1 s1, a2 s2, a3 s3]^T with a_i ~ N(0, std), once an image (section 4.1).

    p_i are the eigenvectors of the training set's colour covariance. s_i are its standard deviations along
    them, as in the released code (convdata_jpeg.py:65), where the paper prints the eigenvalues s_i^2.
    """
    deviations = statistics["standard_deviations"]
    alpha = std * jax.vmap(lambda key: jax.random.normal(key, deviations.shape))(keys)
    return (alpha * deviations) @ statistics["eigenvectors"].T


def test_views(config) -> list[tuple[int, int, bool]]:
    """(top, left, flip) of each view for evaluation: `config.eval.views` of them (section 4.1)."""
    last = config.data.image_size - config.data.crop_size
    centre = (last // 2, last // 2)
    if config.eval.views == 1:
        return [(*centre, False)]
    corners = [(0, 0), (0, last), (last, 0), (last, last)]
    return [(*offset, flip) for flip in (False, True) for offset in (centre, *corners)]


def test_view(images: Images, view, statistics: dict[str, Array], config) -> Views:
    """One of `test_views`, given as an array (top, left, flip), of each image."""
    top, left, flip = (jnp.broadcast_to(value, images.shape[:1]) for value in view)
    return crop_flip_normalize(images, top, left, flip.astype(bool), statistics, config)
