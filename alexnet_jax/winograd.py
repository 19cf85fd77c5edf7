"""The convolution of a 3x3 kernel with 16 products for every 4 outputs, where its definition has 36.

F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), section 4.1:
4x4 inputs d and a kernel g give 2x2 outputs A' [(G g G') * (B' d B)] A. Here * is a matrix product for each
of the 16 places, [tiles, inputs] x [inputs, features], and so it is in the gradients. Beside float64 conv3 in
float32 rounds outputs 1.6 times as much as the definition does, and the kernel's gradient 0.8 times.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B'
KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))  # A'

TILES = 400  # of a few images, done at a time: rows enough for a product, and few enough for a core's cache


def conv3x3(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "3 3 inputs features"],
    padding: tuple[int, int],
) -> Float[Array, "batch rows columns features"]:
    """Cross-correlation of stride 1 with `padding` zeros (before, after) on both axes."""
    kernels = _transform(KERNEL, kernel)
    sides = [side + sum(padding) - 2 for side in x.shape[1:3]]
    tiles = [-(-side // 2) for side in sides]
    before = padding[0]
    after = [2 * n + 2 - side - before for n, side in zip(tiles, x.shape[1:3], strict=True)]

    @jax.checkpoint  # the inputs' transform is 4 times the inputs: made again for the gradient
    def of_images(x):
        x = jnp.pad(x, [(0, 0), (before, after[0]), (before, after[1]), (0, 0)])
        places = [_places(row, 2) for row in _places(x, 1)]
        products = jax.tree.map(_product, _transform(INPUT, places), kernels)
        y = jnp.stack([jnp.stack(line, 3) for line in _transform(OUTPUT, products)], 2)
        return y.reshape(len(x), 2 * tiles[0], 2 * tiles[1], -1)[:, : sides[0], : sides[1]]

    groups = -(-len(x) * tiles[0] * tiles[1] // TILES)
    images = -(-len(x) // groups)
    few = jnp.pad(x, [(0, -len(x) % images), *[(0, 0)] * 3]).reshape(-1, images, *x.shape[1:])
    y = lax.map(of_images, few)
    return y.reshape(-1, *y.shape[2:])[: len(x)]


def _places(x, axis):
    """The four places of a tile along an axis; 2 and 3 are places 0 and 1 of the next tile."""
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    tiles = pairs.shape[axis] - 1
    halves = [lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1)]
    return [lax.slice_in_dim(half, start, start + tiles, axis=axis) for start in (0, 1) for half in halves]


def _transform(matrix, blocks):
    """matrix @ blocks @ matrix', where blocks[row][column] are arrays, without the terms that are 0."""

    def along(arrays):
        terms = [[m * a for m, a in zip(row, arrays, strict=True) if m] for row in matrix]
        return [functools.reduce(operator.add, term) for term in terms]

    columns = zip(*[along(row) for row in blocks], strict=True)
    return [list(row) for row in zip(*[along(column) for column in columns], strict=True)]


def _product(x, kernel):
    # Of two axes: XLA takes twice as long for the gradient of the kernel of four.
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)
