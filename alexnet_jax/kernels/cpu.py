"""Faster versions of operations of layers.py for CPUs: the same functions, up to the order of sums."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.kernels import blocks, winograd

CACHE_BYTES = 2_500_000  # size of a group's maps before and after, to fit a CPU core's cache
MOST_GROUPS = 64  # each is compiled separately
WINOGRAD_INPUTS = 96  # with fewer input maps, the transforms cost as much as the products save
BLOCKS_INPUTS = 4  # with more input maps, XLA's own convolution is faster


def conv(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs features"],
    stride: int,
    padding: tuple[int, int],
    definition,
) -> Float[Array, "batch out_height out_width features"]:
    """Return definition(x, kernel), a convolution, computed in float32 in one of three ways.

    3x3 kernels with stride 1 and many inputs use Winograd's algorithm, which makes a training step 1.17 times
    faster. All others take a few images at a time, which makes it 1.6 times faster: for the kernel's gradient
    XLA reads the output's gradient repeatedly, and then finds it in a core's cache. Among them, large kernels
    with stride 1 and few inputs take blocks of pixels. That is 2 to 3 times as fast, but a number that is not
    finite also reaches outputs beside its windows.
    """
    wide = x.astype(jnp.float32), kernel.astype(jnp.float32)  # to sum the kernel's gradient in float32
    if kernel.shape[:2] == (3, 3) and stride == 1 and kernel.shape[2] >= WINOGRAD_INPUTS:
        y = winograd.conv3x3(*wide, padding)
    elif blocks.fits(x, kernel, padding) and stride == 1 and kernel.shape[2] <= BLOCKS_INPUTS:
        y = _in_groups(*wide, functools.partial(blocks.conv, padding=padding))
    else:
        y = _in_groups(*wide, definition)
    return y.astype(x.dtype)


def _in_groups(x, kernel, definition):
    image = 4 * (x[0].size + jax.eval_shape(definition, x[:1], kernel).size)
    group = 1 << (max(1, CACHE_BYTES // image).bit_length() - 1)
    group = max(group, -(-len(x) // MOST_GROUPS))
    sizes = [min(group, len(x) - start) for start in range(0, len(x), group)]
    return jnp.concatenate([definition(part, kernel) for part in lax.split(x, sizes)])


def window_rows(x: Array, axis: int, size: int, stride: int) -> list[Array]:
    """Return row 0, 1, … of all windows of `size` rows along the axis, one window per `stride` rows.

    Strided slices would take a CPU 1.6 to 3.6 times as long, gradients included.
    """
    side, windows = x.shape[axis], (x.shape[axis] - size) // stride + 1
    # Row i is row i // stride of phases[i % stride]. Without some padding XLA would recompute x for each
    # window that contains it.
    x = jnp.pad(x, [(0, stride - side % stride if i == axis else 0) for i in range(x.ndim)])
    x = x.reshape(*x.shape[:axis], -1, stride, *x.shape[axis + 1 :])
    phases = [phase.squeeze(axis + 1) for phase in lax.split(x, [1] * stride, axis + 1)]
    rows = [(phases[i % stride], i // stride) for i in range(size)]  # of the first window
    return [lax.slice_in_dim(x, i, i + windows, axis=axis) for x, i in rows]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def of_squares(
    function, x: Float[Array, "batch height width maps"]
) -> Float[Array, "batch height width maps"]:
    """Return function(x), element by element, for sums of squares `x`.

    The condition always holds. Without it, and without a gradient, XLA would compute an expensive function
    inside the padding of `window_rows`, one element at a time. With it, response normalisation followed by
    pooling takes a quarter of the time.
    """
    rows = x.reshape(len(x), -1)
    return lax.cond(~(rows[0, 0] < 0), function, jnp.zeros_like, rows).reshape(x.shape)


@of_squares.defjvp
def _of_squares_jvp(function, primals, tangents):
    # XLA vectorizes along the last axis, which may have few maps: with 12, flat rows are 1.3 times faster.
    return jax.jvp(lambda x: function(x.reshape(len(x), -1)).reshape(x.shape), primals, tangents)
