"""The paper's layers, as pure functions of one column's maps [batch, height, width, channel].

conv                   section 3.5
local_response_norm    section 3.3
spatial_norm           only in the released code
max_pool               section 3.4   overlapping if the size exceeds the stride
relu_norm_pool         ReLU, local_response_norm and max_pool at once
average_pool           only in the released code's CIFAR-10 networks
dropout                section 4.2   mask in training, scale at test
batch_norm             not in the paper (Ioffe and Szegedy 2015, arXiv 1502.03167)

On CPUs some layers are computed differently (kernels/cpu.py). With `mesh.fused`, relu_norm_pool replaces
three layers on GPUs and TPUs (kernels/norm_pool.py).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from alexnet_jax.kernels import cpu

_MOST_EXPONENT = 88.0  # float32's exp overflows above 88.7

Maps = Float[Array, "batch height width channel"]
Kernel = Float[Array, "rows columns channel features"]


def conv(
    x: Maps, kernel: Kernel, stride: int, padding: tuple[int, int]
) -> Float[Array, "batch out_height out_width features"]:
    """Return the cross-correlation with `padding` zeros (before, after) on both axes."""

    def definition(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    on_cpu = functools.partial(cpu.conv, stride=stride, padding=padding, definition=definition)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=definition)


def local_response_norm(x: Maps, size: int, k: float, alpha: float, beta: float) -> Maps:
    """Return a_i / (k + alpha * sum_j a_j^2)^beta, the sum over the maps j in [i - size//2, i + size//2].

    This is section 3.3 to the letter: Caffe, PyTorch and the released code divide alpha by the size.
    """
    return _divisive_norm(x, (1, 1, 1, size), k, alpha, beta)


def spatial_norm(x: Maps, size: int, k: float, alpha: float, beta: float) -> Maps:
    """Normalise by the same formula over size x size neighbours in the same map (layers-145.cfg:107)."""
    return _divisive_norm(x, (1, size, size, 1), k, alpha, beta)


def _divisive_norm(x, window, k, alpha, beta):
    def factor(total):
        # z^-beta by exp and log, which XLA vectorizes on a CPU, unlike `power`. With the window's sum as one
        # operation, this is 2.5 to 9 times faster, gradient included, than a power over shifted slices.
        # The minimum changes no factor below 1.6e38. Without it LLVM turns the expression back into a power.
        return jnp.exp(jnp.minimum(-beta * jnp.log(k + alpha * total), _MOST_EXPONENT))

    a = x.astype(jnp.float32)
    padding = [(size // 2, size // 2) for size in window]
    total = lax.reduce_window(jnp.square(a), 0.0, lax.add, window, (1, 1, 1, 1), padding)
    on_cpu = functools.partial(cpu.of_squares, factor)
    return (a * lax.platform_dependent(total, cpu=on_cpu, default=factor)).astype(x.dtype)


def max_pool(
    x: Maps, size: int, stride: int, ceil: bool = False
) -> Float[Array, "batch out_height out_width channel"]:
    """Return the maxima of size x size windows (section 3.4).

    A side becomes (side - size) / stride + 1, rounded down. With `ceil` it is rounded up, and the border cuts
    the last window off (layer.py:1164). The first of equal maxima, row by row, gets the whole gradient.
    The maximum of a window with a NaN is NaN.
    """

    def strided(x, axis):
        last = (x.shape[axis] - size) // stride * stride + 1
        return [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(size)]

    x = _pad_to_windows(x, size, stride, ceil, -jnp.inf)
    for axis in (2, 1):
        on_cpu = functools.partial(cpu.window_rows, axis=axis, size=size, stride=stride)
        rows = lax.platform_dependent(x, cpu=on_cpu, default=functools.partial(strided, axis=axis))
        x = functools.reduce(_first_maximum, rows)
    return x


def _first_maximum(first, other):
    # jnp.maximum would split the gradient of a tie. A NaN is not greater, and would be skipped.
    return jnp.where((other > first) | jnp.isnan(other), other, first)


def relu_norm_pool(
    x: Maps, norm: tuple[int, float, float, float], pool: tuple[int, int]
) -> Float[Array, "batch out_height out_width channel"]:
    """Return max_pool(local_response_norm(relu(x), *norm), *pool); see kernels/norm_pool.py."""
    from alexnet_jax.kernels import norm_pool  # here, because importing Pallas takes 0.3 s

    def definition(x):
        return max_pool(local_response_norm(jax.nn.relu(x), *norm), *pool)

    numbers = norm_pool.Norm(*norm), norm_pool.Pool(*pool)
    return lax.platform_dependent(
        x,
        cuda=lambda x: norm_pool.on_gpu(x, *numbers),
        tpu=lambda x: norm_pool.on_tpu(x, *numbers),
        default=definition,
    )


def average_pool(
    x: Maps, size: int, stride: int, ceil: bool = False
) -> Float[Array, "batch out_height out_width channel"]:
    """Return the means of windows; one that is cut off averages its covered part (CC1 conv_util.cuh:166)."""

    def sums(x):
        x = _pad_to_windows(x, size, stride, ceil, 0)
        return lax.reduce_window(x, 0.0, lax.add, (1, size, size, 1), (1, stride, stride, 1), "VALID")

    a = x.astype(jnp.float32)
    return (sums(a) / sums(jnp.ones((1, *x.shape[1:3], 1)))).astype(x.dtype)


def _pad_to_windows(x, size, stride, ceil, value):
    """Complete the last window at the bottom and right with `value` if `ceil` is set."""
    if not ceil:
        return x
    lacking = [-(side - size) % stride for side in x.shape[1:3]]
    return jnp.pad(x, [(0, 0), (0, lacking[0]), (0, lacking[1]), (0, 0)], constant_values=value)


def batch_norm(
    x: Float[Array, "batch ... features"],
    mean: Float[Array, " features"],
    variance: Float[Array, " features"],
    scale: Float[Array, " features"],
    shift: Float[Array, " features"],
    epsilon: float,
) -> Float[Array, "batch ... features"]:
    """Return scale * (x - mean) / sqrt(variance + epsilon) + shift, per map (Ioffe and Szegedy 2015)."""
    a = x.astype(jnp.float32)
    return ((a - mean) * (scale * lax.rsqrt(variance + epsilon)) + shift).astype(x.dtype)


def moments(
    x: Float[Array, "batch ... features"], axis_name: str | None = None
) -> tuple[Float[Array, " features"], Float[Array, " features"]]:
    """Return the mean and the variance of each map over examples and positions.

    With `axis_name`, they are taken over all devices along this axis of the mesh, which hold equal parts.
    """

    def mean_of(a):
        mean = a.mean(axis=tuple(range(a.ndim - 1)))
        return lax.pmean(mean, axis_name) if axis_name else mean

    a = x.astype(jnp.float32)
    mean = mean_of(a)
    return mean, mean_of(jnp.square(a - mean))


def dropout(
    x: Float[Array, "batch ..."], rate: float, keys: Key[Array, " batch"] | None, scale: str = "test"
) -> Float[Array, "batch ..."]:
    """Drop units in training, or multiply by 1 - rate at test (section 4.2).

    `keys`, one per example, selects training; None selects test. With `scale` "train", units that are kept
    are divided by 1 - rate in training, and test changes nothing. This "inverted" dropout is common today. At
    the same learning rate and initial weights it is a different network.
    """
    if keys is None:
        return x * (1 - rate) if scale == "test" else x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x if scale == "test" else x / (1 - rate), 0)
