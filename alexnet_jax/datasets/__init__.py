"""TFDS builders of this project; importing this package makes them known to `tfds.builder`."""

from alexnet_jax.datasets import fashion_mnist as fashion_mnist
from alexnet_jax.datasets import ilsvrc as ilsvrc
