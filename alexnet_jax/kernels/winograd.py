"""3x3 convolution by Winograd's algorithm, with 16 products for every 4 outputs; the definition has 36.

F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), section 4.1,
with their names: a tile d of 4x4 inputs and a kernel g give 2x2 outputs, A^T [(G g G^T) * (B^T d B)] A, where
* is element by element and summed over the input maps. For all tiles together, each of the 16 elements is one
matrix product, [tiles, inputs] with [inputs, features], and likewise in the gradients. Against float64, conv3
in float32 has 1.6 times the definition's rounding error in its outputs, 0.8 times in the kernel's gradient.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

BT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
AT = ((1, 1, 1, 0), (0, 1, -1, -1))

TILES = 400  # per product: enough rows for efficiency, few enough for a CPU core's cache


def conv3x3(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "3 3 inputs features"],
    padding: tuple[int, int],
) -> Float[Array, "batch out_height out_width features"]:
    """Return the cross-correlation of stride 1 with `padding` zeros (before, after) on both axes.

    A side of the output is the side of x + sum(padding) - 2. On two CPU cores the paper's conv3 to conv5 take
    0.49 to 0.65 of the time of XLA's convolution, and their gradients 0.44 to 0.59.
    """
    before, after = padding
    height, width = (side + before + after - 2 for side in x.shape[1:3])  # of the output
    rows, columns = -(-height // 2), -(-width // 2)  # of tiles
    kernels = _transform(G, kernel)

    @jax.checkpoint  # B^T d B has 4 times the size of the inputs: recompute it for the gradient
    def of_images(x):
        # Pad here: padding together with the batch below makes a training step a tenth slower.
        x = jnp.pad(x, [(0, 0), (before, after + height % 2), (before, after + width % 2), (0, 0)])
        d = [_elements(row, 2) for row in _elements(x, 1)]
        products = jax.tree.map(_product, _transform(BT, d), kernels)
        y = jnp.stack([jnp.stack(row, 3) for row in _transform(AT, products)], 2)
        return y.reshape(len(x), 2 * rows, 2 * columns, -1)[:, :height, :width]

    groups = -(-len(x) * rows * columns // TILES)
    images = -(-len(x) // groups)  # per group
    x_groups = jnp.pad(x, [(0, -len(x) % images), (0, 0), (0, 0), (0, 0)]).reshape(-1, images, *x.shape[1:])
    return lax.collapse(lax.map(of_images, x_groups), 0, 2)[: len(x)]


def _elements(x, axis):
    """Return element i of every tile along the axis, for i in 0 to 3; a tile starts every two elements."""
    # Element i is in phases[i % 2], shifted by i // 2.
    x = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    tiles = x.shape[axis] - 1
    phases = [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in (0, 1)]
    return [lax.slice_in_dim(phases[i % 2], i // 2, i // 2 + tiles, axis=axis) for i in range(4)]


def _transform(matrix, blocks):
    """Return matrix @ blocks @ matrix^T without zero terms, where blocks[row][column] are arrays."""

    def along(arrays):
        terms = [[m * a for m, a in zip(row, arrays, strict=True) if m] for row in matrix]
        return [sum(rest, first) for first, *rest in terms]

    for _ in range(2):  # each time (blocks @ matrix^T)^T
        blocks = list(zip(*[along(row) for row in blocks], strict=True))
    return blocks


def _product(x, kernel):
    # x is a matrix here: with its four axes XLA takes twice as long for the gradient of the kernel.
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)
