"""The paper's layers, as pure functions of one column's maps [batch, height, width, channel].

conv                   section 3.5
local_response_norm    section 3.3
spatial_norm           of the released code only
max_pool               section 3.4   overlapping when the size exceeds the stride
average_pool           of the released code's CIFAR-10 networks only
dropout                section 4.2   mask in training, scale at test
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from alexnet_jax.kernels import winograd

Maps = Float[Array, "batch height width channel"]
Kernel = Float[Array, "height width inputs features"]

CACHE_BYTES = 2_500_000  # of a group's maps before and after, in a CPU core's cache
MOST_GROUPS = 64  # each is compiled
WINOGRAD_INPUTS = 96  # maps or more: with fewer, the transforms take what the products save


def conv(x: Maps, kernel: Kernel, stride: int, padding: tuple[int, int]) -> Maps:
    """Cross-correlation with `padding` zeros (before, after) on both axes.

    On a CPU it is computed in float32, in one of two ways. 3x3 kernels of stride 1 and many inputs: by
    Winograd's algorithm, which makes a training step 1.17 times faster. All others: a few images at a time,
    which made it 1.6 times faster, for XLA reads the gradient of the output over and over for that of the
    kernel, and should find it in a core's cache.
    """

    def of(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def in_groups(x, kernel):
        image = 4 * (x[0].size + jax.eval_shape(of, x[:1], kernel).size)
        group = 1 << (max(1, CACHE_BYTES // image).bit_length() - 1)
        group = max(group, -(-len(x) // MOST_GROUPS))
        sizes = [min(group, len(x) - start) for start in range(0, len(x), group)]
        return jnp.concatenate([of(part, kernel) for part in lax.split(x, sizes)])

    def on_cpu(x, kernel):
        wide = x.astype(jnp.float32), kernel.astype(jnp.float32)  # to sum the kernel's gradient in float32
        winograds = kernel.shape[:2] == (3, 3) and stride == 1 and kernel.shape[2] >= WINOGRAD_INPUTS
        y = winograd.conv3x3(*wide, padding) if winograds else in_groups(*wide)
        return y.astype(x.dtype)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=of)


def local_response_norm(x: Maps, size: int, k: float, alpha: float, beta: float) -> Maps:
    """b_i = a_i / (k + alpha * sum_j a_j^2)^beta over the maps j in [i - size//2, i + size//2].

    Section 3.3, to the letter: alpha is not divided by the size (Caffe, PyTorch and the released code do).
    """
    return _divisive_norm(x, (1, 1, 1, size), k, alpha, beta)


def spatial_norm(x: Maps, size: int, k: float, alpha: float, beta: float) -> Maps:
    """The same, the sum running over the size x size neighbours in one map (layers-145.cfg:107)."""
    return _divisive_norm(x, (1, size, size, 1), k, alpha, beta)


def _divisive_norm(x, window, k, alpha, beta):
    a = x.astype(jnp.float32)
    padding = [(size // 2, size // 2) for size in window]
    total = lax.reduce_window(jnp.square(a), 0.0, lax.add, window, (1, 1, 1, 1), padding)
    # z^-beta as exp and log, which XLA vectorizes on a CPU and `power` it does not: with the window's sum as
    # one operation, 2.5 to 9 times faster, gradient included, than a power over shifted slices. Of flat rows,
    # because it vectorizes along the last axis, which may have few maps: of 12, 1.3 times faster yet.
    rows = total.reshape(len(x), -1)
    return (a * jnp.exp(-beta * jnp.log(k + alpha * rows)).reshape(x.shape)).astype(x.dtype)


def max_pool(x: Maps, size: int, stride: int, ceil: bool = False) -> Maps:
    """Maximum over size x size windows (section 3.4): out = (in - size) / stride + 1, rounded down or up.

    Rounded up (layer.py:1164), the last window is cut off at the border. Of several maxima in a window the
    first, row by row, gets the whole gradient. With it this is 1.6 to 3.6 times faster on a CPU than XLA's
    reduce_window; the strided slices that other platforms take are 10 % faster on TPUs, says their compiler.
    """
    x = _pad_to_windows(x, size, stride, ceil, -jnp.inf)

    def first_maximum(rows):
        # Not jnp.maximum, which splits the gradient of a tie.
        return functools.reduce(lambda first, other: jnp.where(other > first, other, first), rows)

    def pool_axis(x, axis):
        side, windows = x.shape[axis], (x.shape[axis] - size) // stride + 1

        def strided(x):
            last = (windows - 1) * stride + 1
            return first_maximum([lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(size)])

        def phased(x):
            # Row i is row i // stride of phases[i % stride]. Without some padding XLA would compute x anew
            # for each window that it is in.
            x = jnp.pad(x, [(0, stride - side % stride if i == axis else 0) for i in range(x.ndim)])
            x = x.reshape(*x.shape[:axis], -1, stride, *x.shape[axis + 1 :])
            phases = [phase.squeeze(axis + 1) for phase in lax.split(x, [1] * stride, axis + 1)]
            rows = [(phases[i % stride], i // stride) for i in range(size)]  # of the first window
            return first_maximum([lax.slice_in_dim(x, i, i + windows, axis=axis) for x, i in rows])

        return lax.platform_dependent(x, cpu=phased, default=strided)

    return pool_axis(pool_axis(x, 2), 1)


def average_pool(x: Maps, size: int, stride: int, ceil: bool = False) -> Maps:
    """Mean over the same windows; one that is cut off counts what it covers (CC1 conv_util.cuh:166)."""

    def sums(x):
        x = _pad_to_windows(x, size, stride, ceil, 0)
        return lax.reduce_window(x, 0.0, lax.add, (1, size, size, 1), (1, stride, stride, 1), "VALID")

    a = x.astype(jnp.float32)
    return (sums(a) / sums(jnp.ones((1, *x.shape[1:3], 1)))).astype(x.dtype)


def _pad_to_windows(x, size, stride, ceil, value):
    """With `ceil`, what the last window lacks at the bottom and right."""
    if not ceil:
        return x
    lacking = [-(side - size) % stride for side in x.shape[1:3]]
    return jnp.pad(x, [(0, 0), (0, lacking[0]), (0, lacking[1]), (0, 0)], constant_values=value)


def dropout(
    x: Float[Array, "batch ..."], rate: float, keys: Key[Array, " batch"] | None, scale: str = "test"
) -> Float[Array, "batch ..."]:
    """Section 4.2: in training (a key for each example) drop units, at test (None) multiply by 1 - rate.

    `scale` "train" is "inverted" dropout, common today: what is kept is divided by 1 - rate in training,
    and nothing is done at test. At the same learning rate and initial weights it is a different network.
    """
    if keys is None:
        return x * (1 - rate) if scale == "test" else x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x if scale == "test" else x / (1 - rate), 0)
