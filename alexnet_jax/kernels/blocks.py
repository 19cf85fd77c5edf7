"""Convolution of images with few channels, over blocks of 2 x 2 pixels."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

BLOCK = 2  # pixels along each axis


def fits(x: Array, kernel: Array, padding: tuple[int, int]) -> bool:
    """Return whether the kernel is large enough to gain by blocks, and not larger than the padded image."""
    return min(kernel.shape[:2]) > 3 and all(
        side + sum(padding) >= own for side, own in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )


def conv(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs features"],
    padding: tuple[int, int],
) -> Float[Array, "batch out_height out_width features"]:
    """Return the cross-correlation with stride 1 and `padding` zeros (before, after) on both axes.

    Each block becomes one pixel with 4 times the channels. The kernel is repeated 4 times, shifted to each
    pixel of a block and filled up with zeros, so that one convolution returns the features of all 4 pixels. A
    5x5 kernel then needs 1.44 times the products, but its matrices are 4 times as wide.
    """
    rows, columns, inputs, features = kernel.shape
    size = [-(-(side + BLOCK - 1) // BLOCK) for side in (rows, columns)]  # of the kernel, in blocks
    out = [side + sum(padding) - own + 1 for side, own in zip(x.shape[1:3], (rows, columns), strict=True)]
    blocks = [-(-side // BLOCK) for side in out]
    whole = [(number + own - 1) * BLOCK for number, own in zip(blocks, size, strict=True)]  # pixels

    # The last block may end beyond the padding.
    ends = [end - padding[0] - side for end, side in zip(whole, x.shape[1:3], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((padding[0], end, 0) for end in ends), (0, 0, 0)])
    x = x.reshape(len(x), whole[0] // BLOCK, BLOCK, whole[1] // BLOCK, BLOCK, inputs)
    x = x.swapaxes(2, 3).reshape(len(x), whole[0] // BLOCK, whole[1] // BLOCK, -1)

    def shifted(i, j):
        ends = [
            own * BLOCK - side - shift for own, side, shift in zip(size, (rows, columns), (i, j), strict=True)
        ]
        return jnp.pad(kernel, [(i, ends[0]), (j, ends[1]), (0, 0), (0, 0)])

    kernel = jnp.stack([shifted(i, j) for i in range(BLOCK) for j in range(BLOCK)], axis=3)
    kernel = kernel.reshape(size[0], BLOCK, size[1], BLOCK, inputs, BLOCK**2 * features)
    kernel = kernel.swapaxes(1, 2).reshape(*size, BLOCK**2 * inputs, -1)

    y = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = y.reshape(len(y), *blocks, BLOCK, BLOCK, features).swapaxes(2, 3)
    return y.reshape(len(y), blocks[0] * BLOCK, blocks[1] * BLOCK, features)[:, : out[0], : out[1]]
