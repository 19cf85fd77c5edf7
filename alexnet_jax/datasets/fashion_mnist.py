"""Fashion-MNIST as a TFDS builder that downloads nothing: its files are in fashion_mnist_data/ (MIT licence).

60,000 training and 10,000 test photographs of clothing, 28x28 greyscale, ten classes (Xiao, Rasul and
Vollgraf, 2017). `fashion_mnist`, without `_shipped`, is TFDS's own builder, which downloads.
"""

import gzip
import io
import math
import pathlib
import zlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.runtime.errors import InputError, input_errors

FILES = pathlib.Path(__file__).parent / "fashion_mnist_data"
LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class FashionMnistShipped(tfds.core.GeneratorBasedBuilder):
    """Splits `train` and `test`; features `image` uint8 [28, 28, 1] and `label`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            license="MIT",
            supervised_keys=("image", "label"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=LABELS),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        files = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
        # All four files are read before the first example is written.
        return {
            split: self._generate_examples(
                read_idx(FILES / f"{stem}-images-idx3-ubyte.gz", (count, 28, 28, 1)),
                read_idx(FILES / f"{stem}-labels-idx1-ubyte.gz", (count,)),
            )
            for split, (stem, count) in files.items()
        }

    def _generate_examples(self, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image[..., 0]), "label": int(label)}


def _png(image: np.ndarray) -> bytes:
    """Return the PNG file of grey [height, width]. TFDS would import TensorFlow to encode it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def read_idx(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the uint8 array of a gzipped IDX file. Raises InputError if it is missing, truncated or bad."""
    axes = 1 if len(shape) == 1 else 3
    advice = "take it from the repository again"
    kinds = OSError, EOFError, zlib.error
    with input_errors(f"{path}: cannot be read", advice, kinds), gzip.open(path) as file:
        content = file.read()
    header = bytes([0, 0, 8, axes]) + b"".join(n.to_bytes(4, "big") for n in shape[:axes])
    if not content.startswith(header) or len(content) != len(header) + math.prod(shape):
        raise InputError(f"{path}: is not the file of shape {shape}; {advice}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
