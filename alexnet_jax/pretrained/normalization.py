"""The statistics that published weights were trained with, in the form of a run's statistics.npz."""

import numpy as np

from alexnet_jax.datasets import statistics
from alexnet_jax.pretrained import formats
from alexnet_jax.runtime.errors import InputError

# torchvision's (ImageClassification in transforms/_presets.py), on the scale of 0 to 255.
_MEAN = 255 * np.array([0.485, 0.456, 0.406])
_STD = 255 * np.array([0.229, 0.224, 0.225])
# Means of Caffe's ilsvrc12 mean image, RGB (Caffe's examples start with blue, 104.00698793).
_CAFFE_MEAN = np.array([122.67891434, 116.66876762, 104.00698793])
# ImageNet's colours: eigenvectors of their covariance and the deviations along them, from cuda-convnet2
# (make-data/input_meta). Evaluation does not need them, but further training with colour noise does.
_EIGENVECTORS = np.array(
    [[0.41796, -0.71258, -0.56351], [-0.81698, -0.02354, -0.57618], [0.39731, 0.70120, -0.59200]]
)
_DEVIATIONS = np.array([19.7208, 37.0939, 121.7801])


def published_statistics(source: str, data, mean: str | None) -> dict[str, np.ndarray]:
    """Return the statistics that normalise images for weights of `source`, torchvision or caffe.

    `data` is the configuration's; `mean` names a .binaryproto with a mean image, or the statistics.npz of
    another workdir. Raises InputError if it does not fit.
    """
    size, channels = data.image_size, data.channels
    if mean is not None and mean.endswith(".npz"):
        stored = statistics.load(mean)
        if stored is None or not statistics.fits(stored, data):
            raise InputError(
                f"--mean={mean}: has no statistics of {size}x{size}x{channels} images; give another"
            )
        return stored
    blob = None
    if mean is not None:
        blob = formats.caffe_blob(mean)
        if blob.ndim == 4 and len(blob) == 1:
            blob = blob[0]
        if blob.shape != (channels, size, size):
            shape = "x".join(map(str, blob.shape[:8]))
            raise InputError(
                f"--mean={mean}: is a mean image of {shape}, but the network's images are"
                f" {channels}x{size}x{size}; give another"
            )
        if not np.isfinite(blob).all():
            raise InputError(f"--mean={mean}: has values that are not finite; it is damaged, get it again")
    if channels != 3:
        missing = "missing" if mean is None else "a .binaryproto has only the mean"
        raise InputError(
            f"--mean: {missing}, and data.channels is {channels}; give the statistics.npz of the run"
        )
    covariance = _EIGENVECTORS * _DEVIATIONS**2 @ _EIGENVECTORS.T
    channel_mean, channel_std = _CAFFE_MEAN, np.sqrt(np.diag(covariance))
    if source == "torchvision":
        channel_mean, channel_std = _MEAN, _STD
    mean_image = np.broadcast_to(channel_mean, (size, size, 3))
    if blob is not None:
        mean_image = blob[::-1].transpose(1, 2, 0)
        channel_mean = mean_image.mean(axis=(0, 1))
    arrays = mean_image, channel_mean, channel_std, covariance, _EIGENVECTORS, _DEVIATIONS
    return {k: np.array(array, np.float32) for k, array in zip(statistics.ARRAYS, arrays, strict=True)}
