"""The paper's layers, as pure functions of one column's maps [batch, height, width, channel].

conv                   section 3.5   a plain convolution, also when columns are run by vmap
local_response_norm    section 3.3
max_pool               section 3.4   overlapping when the size exceeds the stride
dropout                section 4.2   mask in training, scale at test
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

Maps = Float[Array, "batch height width channel"]
Kernel = Float[Array, "height width inputs features"]


def _plain_conv(x: Maps, kernel: Kernel, stride: int, padding: tuple[int, int]) -> Maps:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _unrolled_over_columns(function):
    """`function`, except that vmap over all of its arguments runs it once for each column.

    vmap would make one convolution of two groups of them, which XLA runs 5 to 9 times slower than two plain
    ones on a CPU. Where only the kernels differ (conv1, conv3) vmap's single convolution is what is wanted.
    """
    unrolled = jax.custom_batching.custom_vmap(function)

    @unrolled.def_vmap
    def _(size, batched, *args):
        if all(batched):
            return jnp.stack([function(*(arg[column] for arg in args)) for column in range(size)]), True
        return jax.vmap(function, in_axes=[0 if b else None for b in batched])(*args), True

    return unrolled


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: Maps, kernel: Kernel, stride: int, padding: tuple[int, int]) -> Maps:
    """Cross-correlation with `padding` zeros (before, after) on both axes, of one column.

    The derivative is spelled out because what unrolls under vmap cannot be differentiated from outside it.
    """
    return _unrolled_over_columns(lambda x, kernel: _plain_conv(x, kernel, stride, padding))(x, kernel)


def _conv_forward(x, kernel, stride, padding):
    return conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, gradient):
    @_unrolled_over_columns
    def gradient_of_x(x, kernel, gradient):
        return jax.vjp(lambda x: _plain_conv(x, kernel, stride, padding), x)[1](gradient)[0]

    @_unrolled_over_columns
    def gradient_of_kernel(x, kernel, gradient):
        return jax.vjp(lambda kernel: _plain_conv(x, kernel, stride, padding), kernel)[1](gradient)[0]

    return gradient_of_x(*residuals, gradient), gradient_of_kernel(*residuals, gradient)


conv.defvjp(_conv_forward, _conv_backward)


def local_response_norm(x: Maps, size: int, k: float, alpha: float, beta: float) -> Maps:
    """b_i = a_i / (k + alpha * sum_j a_j^2)^beta over the maps j in [i - size//2, i + size//2].

    Section 3.3, to the letter: alpha is not divided by the size (Caffe, PyTorch and the released code do).
    """
    ones, half = (1,) * (x.ndim - 1), size // 2
    no_padding = ((0, 0),) * (x.ndim - 1)
    a = x.astype(jnp.float32)
    total = lax.reduce_window(
        jnp.square(a), 0.0, lax.add, (*ones, size), (*ones, 1), (*no_padding, (half, half))
    )
    # z^-beta as exp and log, which XLA vectorizes on a CPU and `power` it does not: with the window's sum as
    # one operation, 2.5 to 9 times faster, gradient included, than a power over shifted slices.
    return (a * jnp.exp(-beta * jnp.log(k + alpha * total))).astype(x.dtype)


def max_pool(x: Maps, size: int, stride: int) -> Maps:
    """Maximum over size x size windows, without padding: out = (in - size) // stride + 1 (section 3.4).

    Of several maxima in a window the first, row by row, gets the whole gradient. Maxima of strided slices
    are 3 to 4 times faster on a CPU, gradient included, than XLA's reduce_window.
    """

    def pool_axis(x, axis):
        last = (x.shape[axis] - size) // stride * stride + 1
        slices = [lax.slice_in_dim(x, start, start + last, stride, axis) for start in range(size)]
        # Not jnp.maximum, which splits the gradient of a tie.
        return functools.reduce(lambda first, other: jnp.where(other > first, other, first), slices)

    return pool_axis(pool_axis(x, 2), 1)


def dropout(
    x: Float[Array, "batch ..."], rate: float, keys: Key[Array, " batch"] | None
) -> Float[Array, "batch ..."]:
    """Section 4.2: in training (a key for each example) drop units, at test (None) multiply by 1 - rate.

    What is kept is not scaled up in training; "inverted" dropout, common today, is a different network at
    the same learning rate and initial weights.
    """
    if keys is None:
        return x * (1 - rate)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x, 0)
