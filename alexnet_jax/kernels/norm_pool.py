"""ReLU, response normalisation and max pooling in few passes over the maps, on GPUs and TPUs.

On a GPU, the plain layers read and write maps of conv1's size 14 times per training step. The forward pass of
`on_gpu` reads them once, and stores the position of each window's maximum. Its backward pass reads them once
more, repeats the normalisation and writes their gradient. Both passes are Pallas kernels for the Triton
backend, which jax 0.12 still has but calls deprecated.

`on_tpu` sums over maps by a product with a band matrix, which is fast on TPUs. It, too, repeats the
normalisation in the backward pass, and it pools by XLA's own operations.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

Maps = Float[Array, "batch height width channel"]
Pooled = Float[Array, "batch out_height out_width channel"]


class Norm(NamedTuple):
    """The parameters of response normalisation (section 3.3)."""

    size: int
    k: float
    alpha: float
    beta: float

    def factor(self, total):
        """Return the factor of a map whose `total` is k + alpha * (sum of squares)."""
        return jnp.exp(-self.beta * jnp.log(total))

    @property
    def shifts(self) -> range:
        """Return the offsets of the maps whose squares are summed."""
        return range(-(self.size // 2), self.size // 2 + 1)


class Pool(NamedTuple):
    """The parameters of pooling (section 3.4)."""

    size: int
    stride: int

    def offsets(self):
        """Return (number, (row, column)) of each value of a window, row by row."""
        return enumerate(itertools.product(range(self.size), repeat=2))


def on_tpu(x: Maps, norm: Norm, pool: Pool) -> Pooled:
    """Return max_pool(local_response_norm(relu(x))) of layers.py; its sums have the precision of products."""
    window, strides = (1, pool.size, pool.size, 1), (1, pool.stride, pool.stride, 1)
    return lax.reduce_window(_normalized(x, norm), -jnp.inf, lax.max, window, strides, "VALID")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalized(x, norm):
    a, total = _total(x, norm)
    return (a * norm.factor(total)).astype(x.dtype)


def _total(x, norm):
    a = jnp.maximum(x, 0).astype(jnp.float32)
    return a, norm.k + norm.alpha * _band_sum(a * a, norm)


def _band_sum(a, norm):
    maps = np.arange(a.shape[-1])
    return a @ (abs(maps[:, None] - maps) <= norm.size // 2).astype(np.float32)


def _normalized_backward(norm, x, gradient):
    a, total = _total(x, norm)
    own = gradient.astype(jnp.float32) * norm.factor(total)
    result = own - 2 * norm.alpha * norm.beta * a * _band_sum(own * a / total, norm)
    return (jnp.where(x > 0, result, 0).astype(x.dtype),)


_normalized.defvjp(lambda x, norm: (_normalized(x, norm), x), _normalized_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def on_gpu(x: Maps, norm: Norm, pool: Pool, interpret: bool = False) -> Pooled:
    """Return max_pool(local_response_norm(relu(x))) of layers.py. With `interpret` it runs on a CPU."""
    return _forward(x, norm, pool, interpret)[0]


def _forward(x, norm, pool, interpret):
    height, width = ((side - pool.size) // pool.stride + 1 for side in x.shape[1:3])
    maps = x.shape[3]

    def kernel(x_ref, pooled_ref, place_ref):
        row = pl.program_id(1)
        columns, channels = _tile(width, maps)
        inside = (columns < width) & (channels < maps)

        def load(i, j, shift):
            mask = inside & (channels + shift >= 0) & (channels + shift < maps)
            at = x_ref.at[row * pool.stride + i, columns * pool.stride + j, channels + shift]
            return jnp.maximum(triton.load(at, mask=mask, other=0.0).astype(jnp.float32), 0)

        best = place = jnp.zeros(inside.shape, jnp.int32)
        for number, (i, j) in pool.offsets():
            total = norm.k + norm.alpha * sum(load(i, j, shift) ** 2 for shift in norm.shifts)
            value = (load(i, j, 0) * norm.factor(total)).astype(x.dtype)
            later = (value > best) | jnp.isnan(value) if number else inside | True
            best, place = jnp.where(later, value, best), jnp.where(later, number, place)
        triton.store(pooled_ref.at[row, columns, channels], best, mask=inside)
        triton.store(place_ref.at[row, columns, channels], place.astype(jnp.uint8), mask=inside)

    outputs = jax.eval_shape(lambda x: (x, x.astype(jnp.uint8)), x[:, :height, :width])  # the pooled shape
    pooled, place = _call(kernel, height, (x,), outputs, interpret)
    return pooled, (x, place)


def _backward(norm, pool, interpret, residuals, gradient):
    x, place = residuals
    (_, side, across, maps), (_, height, width, _) = x.shape, gradient.shape

    def kernel(x_ref, place_ref, gradient_ref, out_ref):
        row = pl.program_id(1)
        columns, channels = _tile(across, maps)

        def inside(shift):
            return (columns < across) & (channels + shift >= 0) & (channels + shift < maps)

        def load(shift):
            loaded = triton.load(x_ref.at[row, columns, channels + shift], mask=inside(shift), other=0.0)
            return jnp.maximum(loaded.astype(jnp.float32), 0)

        def of_normalized(shift):
            """Return the gradient of the normalised map at an offset, from the windows that chose it."""
            total = jnp.zeros(inside(0).shape, jnp.float32)
            for number, (i, j) in pool.offsets():
                down, right = row - i, columns - j
                mask = inside(shift) & (down >= 0) & (down % pool.stride == 0)
                mask &= (right >= 0) & (right % pool.stride == 0)
                down, right = down // pool.stride, right // pool.stride
                mask &= (down < height) & (right < width)
                at = down, right, channels + shift
                chosen = triton.load(place_ref.at[at], mask=mask, other=255).astype(jnp.int32) == number
                total += triton.load(gradient_ref.at[at], mask=mask & chosen, other=0.0).astype(jnp.float32)
            return total

        squares = {shift: load(shift) ** 2 for shift in range(1 - norm.size, norm.size)}
        own = others = jnp.zeros(inside(0).shape, jnp.float32)
        for shift in norm.shifts:
            total = norm.k + norm.alpha * sum(squares[shift + other] for other in norm.shifts)
            part = of_normalized(shift) * norm.factor(total)
            own = part if shift == 0 else own
            others += part * load(shift) / total
        a = load(0)
        result = jnp.where(a > 0, own - 2 * norm.alpha * norm.beta * a * others, 0)
        triton.store(out_ref.at[row, columns, channels], result.astype(x.dtype), mask=inside(0))

    outputs = jax.eval_shape(lambda x: x, x)
    return (_call(kernel, side, (x, place, gradient), outputs, interpret),)


on_gpu.defvjp(_forward, _backward)


def _tile(width: int, maps: int):
    """Return the indices of a row's columns and maps, each padded to a power of 2, as Triton requires."""
    columns, channels = (1 << (side - 1).bit_length() for side in (width, maps))
    return jnp.arange(columns)[:, None], jnp.arange(channels)[None, :]


def _call(kernel, rows: int, inputs, outputs, interpret: bool):
    """Run `kernel` for every row of every image."""

    def image(x):
        return pl.BlockSpec((None, *x.shape[1:]), lambda image, _: (image, 0, 0, 0))

    return pl.pallas_call(
        kernel,
        grid=(len(inputs[0]), rows),
        in_specs=[image(x) for x in inputs],
        out_specs=jax.tree.map(image, outputs),
        out_shape=outputs,
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
    )(*inputs)
