"""alexnet_jax/layers.py: the layers against loops over the formulas, closed forms, finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_near

from alexnet_jax import layers
from alexnet_jax.kernels import blocks, cpu, norm_pool, winograd


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conv_loops(x, kernel, stride, padding):
    before, after = padding
    x = np.pad(x.astype(np.float64), ((0, 0), (before, after), (before, after), (0, 0)))
    size = kernel.shape[0]
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.tensordot(window, kernel.astype(np.float64), 3)
    return out


def conv_gradients(x, kernel, stride, padding, weights):
    """Of sum(weights * conv). The convolution is linear in each argument: differences are exact."""

    def difference(function, shape):
        units = np.eye(np.prod(shape)).reshape(-1, *shape)
        return np.array([(weights * function(unit)).sum() for unit in units]).reshape(shape)

    return (
        difference(lambda unit: conv_loops(unit, kernel, stride, padding), x.shape),
        difference(lambda unit: conv_loops(x, unit, stride, padding), kernel.shape),
    )


@pytest.fixture(params=["cpu", "other"])
def platform(request, monkeypatch):
    """With what is for CPUs only, and with what is for all others."""
    if request.param == "other":
        monkeypatch.setattr(layers.lax, "platform_dependent", lambda *args, cpu, default: default(*args))


@pytest.fixture(params=["direct", "winograd"])
def algorithm(request, monkeypatch):
    """Winograd's for 3x3 kernels of any number of inputs; or XLA's, which so few take."""
    if request.param == "winograd":
        monkeypatch.setattr(cpu, "WINOGRAD_INPUTS", 1)


CONVOLUTIONS = {  # input size, kernel size, stride, padding
    "plain": (5, 3, 1, (0, 0)),
    "same": (5, 3, 1, (1, 1)),
    "strided": (8, 3, 2, (0, 0)),
    "conv1": (6, 5, 2, (0, 3)),
    "uneven": (6, 3, 4, (2, 1)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv_equals_loops(case):
    size, kernel_size, stride, padding = case
    x, kernel = draw(0, 2, size, size, 2), draw(1, kernel_size, kernel_size, 2, 3)
    got = layers.conv(jnp.asarray(x), jnp.asarray(kernel), stride, padding)
    assert_near(got, conv_loops(x, kernel, stride, padding))


def assert_equals_loops(conv, x, kernel, stride, padding):
    """With its gradients."""
    want = conv_loops(x, kernel, stride, padding)
    assert_near(conv(jnp.asarray(x), jnp.asarray(kernel)), want)
    weights = draw(2, *want.shape)
    got = jax.grad(lambda x, kernel: (weights * conv(x, kernel)).sum(), (0, 1))(x, kernel)
    for gradient, want in zip(got, conv_gradients(x, kernel, stride, padding, weights), strict=True):
        assert_near(gradient, want)


WINOGRAD = {  # height, width, padding, tiles at a time, groups of the five images
    "one image": (5, 6, (1, 1), 9, 5),
    "two images, the last of them zeros": (6, 7, (0, 0), 12, 3),
    "all images": (3, 4, (2, 0), 20, 1),
    "fewer tiles than an image has": (4, 3, (0, 3), 1, 5),
}


@pytest.mark.parametrize("case", WINOGRAD.values(), ids=WINOGRAD)
def test_winograds_convolution_equals_loops(case, monkeypatch):
    height, width, padding, tiles, groups = case
    x, kernel = draw(0, 5, height, width, 2), draw(1, 3, 3, 2, 3)
    monkeypatch.setattr(winograd, "TILES", tiles)
    conv = functools.partial(winograd.conv3x3, padding=padding)
    assert_equals_loops(conv, x, kernel, 1, padding)
    assert f"length={groups}\n" in str(jax.make_jaxpr(conv)(x, kernel))


BLOCKS = {  # height, width, size of the kernel, padding
    "even": (8, 8, 5, (0, 0)),
    "odd": (7, 9, 5, (0, 0)),
    "padded": (5, 6, 5, (2, 2)),
    "padded on one side": (6, 5, 4, (0, 3)),
    "as large as the image": (5, 5, 5, (0, 0)),
}


@pytest.mark.parametrize("case", BLOCKS.values(), ids=BLOCKS)
def test_convolution_over_blocks_of_pixels_equals_loops(case):
    height, width, size, padding = case
    x, kernel = draw(0, 2, height, width, 2), draw(1, size, size, 2, 3)
    assert_equals_loops(functools.partial(blocks.conv, padding=padding), x, kernel, 1, padding)
    conv = functools.partial(layers.conv, stride=1, padding=padding)
    assert_equals_loops(conv, x, kernel, 1, padding)
    assert ",8,12]" in str(jax.make_jaxpr(conv)(x, kernel))  # 4 times the inputs and the features


@pytest.mark.parametrize("target, expected", [("cpu", 0), ("cuda", 1), ("tpu", 1)])
def test_winograds_algorithm_is_for_wide_3x3_convolutions_on_cpus(target, expected):
    def convolutions(size, inputs, stride=1):
        x, kernel = jnp.zeros((2, 9, 9, inputs)), jnp.zeros((size, size, inputs, 4))
        traced = jax.jit(functools.partial(layers.conv, stride=stride, padding=(1, 1))).trace(x, kernel)
        return traced.lower(lowering_platforms=(target,)).as_text().count("stablehlo.convolution")

    many = cpu.WINOGRAD_INPUTS
    assert convolutions(3, many) == expected
    assert convolutions(3, many - 1) == convolutions(3, many, stride=2) == convolutions(5, many) == 1


@pytest.mark.parametrize("group", [1, 2, 4])
def test_conv_of_a_few_images_at_a_time_equals_loops(group, monkeypatch):
    x, kernel = draw(0, 5, 6, 6, 2), draw(1, 5, 5, 2, 3)
    monkeypatch.setattr(cpu, "CACHE_BYTES", group * 4 * (6 * 6 * 2 + 3 * 3 * 3))
    conv = functools.partial(layers.conv, stride=2, padding=(0, 3))
    assert_equals_loops(conv, x, kernel, 2, (0, 3))
    hlo = jax.jit(conv).lower(x, kernel).as_text()
    assert hlo.count("stablehlo.convolution") == -(-5 // group)


def test_conv_in_bfloat16_computes_in_float32_on_a_cpu(algorithm):
    x, kernel = (jnp.bfloat16(draw(i, *shape)) for i, shape in enumerate([(2, 9, 9, 8), (3, 3, 8, 4)]))
    got = layers.conv(x, kernel, 1, (1, 1))
    want = layers.conv(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, (1, 1)).astype(jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want)


def test_gradient_of_many_groups_in_bfloat16_is_as_good_as_of_one(algorithm, monkeypatch):
    x, kernel, weights = (
        jnp.bfloat16(draw(i, *shape)) for i, shape in enumerate([(64, 9, 9, 2), (3, 3, 2, 4), (64, 7, 7, 4)])
    )

    def gradient(x, kernel, weights):
        return jax.grad(
            lambda kernel: (weights * layers.conv(x, kernel, 1, (0, 0))).sum().astype(jnp.float32)
        )(kernel)

    want = gradient(*(jnp.float32(a) for a in (x, kernel, weights)))
    monkeypatch.setattr(cpu, "CACHE_BYTES", 1)
    monkeypatch.setattr(winograd, "TILES", 16)
    assert_near(gradient(x, kernel, weights).astype(jnp.float32), want, 2**-8)


@pytest.mark.parametrize("x_of_columns", [True, False], ids=["both", "only kernels"])
def test_conv_over_columns_equals_each_column_with_its_gradients(x_of_columns):
    size, kernel_size, stride, padding = CONVOLUTIONS["conv1"]
    x = draw(0, *(2,) * x_of_columns, 2, size, size, 2)
    kernel = draw(1, 2, kernel_size, kernel_size, 2, 3)
    of_column = [(x[column] if x_of_columns else x, kernel[column]) for column in range(2)]
    want = np.stack([conv_loops(*args, stride, padding) for args in of_column])
    weights = draw(2, *want.shape)
    run = jax.vmap(
        functools.partial(layers.conv, stride=stride, padding=padding), (0 if x_of_columns else None, 0)
    )

    def weighted(x, kernel):
        out = run(x, kernel)
        return (weights * out).sum(), out

    (of_x, of_kernel), out = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(x, kernel)

    assert_near(out, want)
    gradients = [conv_gradients(*args, stride, padding, weights[i]) for i, args in enumerate(of_column)]
    want_x, want_kernel = (np.stack(each) for each in zip(*gradients, strict=True))
    assert_near(of_x, want_x if x_of_columns else want_x.sum(axis=0))
    assert_near(of_kernel, want_kernel)


def test_conv_differentiated_inside_vmap_equals_each_column(algorithm):
    size, kernel_size, stride, padding = CONVOLUTIONS["same"]
    x, kernel = draw(0, 2, 2, size, size, 2), draw(1, 2, kernel_size, kernel_size, 2, 3)
    weights = draw(2, 2, 2, size, size, 3)

    def gradients(x, kernel, weights):
        return jax.grad(lambda *args: (weights * layers.conv(*args, stride, padding)).sum(), (0, 1))(
            x, kernel
        )

    got = jax.jit(jax.vmap(gradients))(x, kernel, weights)
    for column in range(2):
        want = conv_gradients(x[column], kernel[column], stride, padding, weights[column])
        assert_near(got[0][column], want[0])
        assert_near(got[1][column], want[1])


def lrn_loops(a, n, k, alpha, beta):
    a = a.astype(np.float64)
    maps = a.shape[-1]
    b = np.empty_like(a)
    for i in range(maps):
        total = np.zeros(a.shape[:-1])
        for j in range(max(0, i - n // 2), min(maps - 1, i + n // 2) + 1):
            total += a[..., j] ** 2
        b[..., i] = a[..., i] / (k + alpha * total) ** beta
    return b


LRN = {  # maps, scale of the activations, (n, k, alpha, beta)
    "paper": (11, 100.0, (5, 2.0, 1e-4, 0.75)),
    "large alpha": (7, 1.0, (5, 1.0, 0.5, 0.75)),
    "other size": (6, 1.0, (3, 2.0, 0.5, 1.5)),
    "fewer maps than the window": (2, 1.0, (5, 2.0, 0.5, 0.75)),
    "one map": (4, 1.0, (1, 2.0, 0.5, 0.75)),
}


@pytest.mark.parametrize("case", LRN.values(), ids=LRN)
def test_local_response_norm_equals_the_formula(case):
    maps, scale, numbers = case
    x = scale * draw(0, 2, 3, 4, maps)
    got = jax.jit(lambda x: layers.local_response_norm(x, *numbers))(x)
    assert_near(got, lrn_loops(x, *numbers))


def test_local_response_norm_of_one_nan_is_as_before_elsewhere():
    x = draw(0, 2, 3, 4, 11)
    want = np.asarray(jax.jit(lambda x: layers.local_response_norm(x, 5, 2.0, 0.5, 0.75))(x))
    x[0, 0, 0, 0] = np.nan
    got = np.array(jax.jit(lambda x: layers.local_response_norm(x, 5, 2.0, 0.5, 0.75))(x))
    assert np.isnan(got[0, 0, 0, :3]).all()
    got[0, 0, 0, :3] = want[0, 0, 0, :3]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("case", LRN.values(), ids=LRN)
def test_gradient_of_local_response_norm_equals_finite_differences(case):
    maps, scale, numbers = case
    x, weights = scale * draw(0, 1, 1, 2, maps), draw(1, 1, 1, 2, maps)
    step = 1e-5 * scale
    want = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        d = np.zeros(x.shape)
        d[index] = step
        change = lrn_loops(x + d, *numbers) - lrn_loops(x - d, *numbers)
        want[index] = (weights * change).sum() / (2 * step)
    got = jax.jit(jax.grad(lambda x: (weights * layers.local_response_norm(x, *numbers)).sum()))(x)
    assert_near(got, want)


def test_local_response_norm_of_bfloat16_sums_in_float32():
    x = jnp.asarray(100 * draw(0, 2, 3, 3, 16), jnp.bfloat16)
    got = layers.local_response_norm(x, *LRN["paper"][2])
    assert got.dtype == jnp.bfloat16
    # Half a unit in the last place of bfloat16: only the result is rounded.
    want = lrn_loops(np.asarray(x, np.float64), *LRN["paper"][2])
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=1.01 * 2.0**-8, equal_nan=False)


def pool_loops(x, size, stride, weights=None):
    """Maxima, and the gradient of sum(weights * maxima), which a window's first maximum gets, row by row."""
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    out, gradient = np.empty((x.shape[0], rows, columns, x.shape[3]), x.dtype), np.zeros(x.shape)
    for index in np.ndindex(out.shape):
        b, i, j, c = index
        best = (i * stride, j * stride)
        for row in range(i * stride, i * stride + size):
            for column in range(j * stride, j * stride + size):
                if x[b, row, column, c] > x[b, *best, c]:
                    best = (row, column)
        out[index] = x[b, *best, c]
        if weights is not None:
            gradient[b, *best, c] += weights[index]
    return out, gradient


POOLINGS = {  # input size, size, stride
    "overlapping": (7, 3, 2),
    "overlapping, last row not covered": (8, 3, 2),
    "apart": (6, 2, 2),
    "apart, last row not covered": (7, 2, 2),
    "gaps": (8, 2, 3),
    "one window": (3, 3, 2),
}


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("case", POOLINGS.values(), ids=POOLINGS)
def test_max_pool_equals_loops(case):
    input_size, size, stride = case
    x = draw(0, 2, input_size, input_size + 2, 3)
    got = jax.jit(lambda x: layers.max_pool(x, size, stride))(x)
    np.testing.assert_array_equal(got, pool_loops(x, size, stride)[0])


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("case", POOLINGS.values(), ids=POOLINGS)
def test_gradient_of_max_pool_goes_to_the_first_maximum(case):
    input_size, size, stride = case
    x = np.random.default_rng(0).integers(0, 3, (2, input_size, input_size, 3)).astype(np.float32)
    rows = (input_size - size) // stride + 1
    weights = draw(1, 2, rows, rows, 3)
    got = jax.jit(jax.grad(lambda x: (weights * layers.max_pool(x, size, stride)).sum()))(x)
    assert_near(got, pool_loops(x, size, stride, weights)[1], 1e-6)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_max_pool_of_a_window_with_a_nan_is_nan_wherever_it_is(ceil, dtype):
    x = draw(0, 64, 8, 8, 1).astype(dtype)
    for place in range(64):  # an image with one NaN, in each of its places
        x[place, place // 8, place % 8] = np.nan
    whole = padded(x, 3, 2, -np.inf) if ceil else x
    windows = np.lib.stride_tricks.sliding_window_view(whole.astype(np.float32), (3, 3), (1, 2))[:, ::2, ::2]
    got = np.asarray(jax.jit(lambda x: layers.max_pool(x, 3, 2, ceil))(x))
    np.testing.assert_array_equal(got.astype(np.float32), windows.max(axis=(4, 5)))  # NumPy's propagates
    assert np.isnan(got.astype(np.float32)).any(axis=(1, 2, 3)).sum() == (64 if ceil else 49)


CUT_OFF = {  # input size, size, stride: the last window reaches over the border
    "of the CIFAR-10 networks": (8, 3, 2),
    "a window of one row": (7, 2, 2),
    "nothing to cut": (7, 3, 2),
}


def padded(x, size, stride, value):
    lacking = -(x.shape[1] - size) % stride
    return np.pad(x, ((0, 0), (0, lacking), (0, lacking), (0, 0)), constant_values=value)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("case", CUT_OFF.values(), ids=CUT_OFF)
def test_max_pool_of_windows_that_are_cut_off_equals_loops(case):
    side, size, stride = case
    x = np.random.default_rng(0).integers(-3, 0, (2, side, side, 3)).astype(np.float32)
    want, _ = pool_loops(padded(x, size, stride, -np.inf), size, stride)
    weights = draw(1, *want.shape)
    _, gradient = pool_loops(padded(x, size, stride, -np.inf), size, stride, weights)

    def pool(x):
        return layers.max_pool(x, size, stride, ceil=True)

    np.testing.assert_array_equal(jax.jit(pool)(x), want)
    got = jax.jit(jax.grad(lambda x: (weights * pool(x)).sum()))(x)
    assert_near(got, gradient[:, :side, :side], 1e-6)


@pytest.mark.parametrize("case", CUT_OFF.values(), ids=CUT_OFF)
def test_average_pool_counts_what_a_window_covers(case):
    side, size, stride = case
    x = draw(0, 2, side, side, 3)
    windows = -(-(side - size) // stride) + 1
    spans = [slice(i * stride, min(i * stride + size, side)) for i in range(windows)]
    want = np.stack([np.stack([x[:, r, c].mean((1, 2)) for c in spans], 1) for r in spans], 1)
    weights, gradient = draw(1, *want.shape), np.zeros(x.shape)
    for i, r in enumerate(spans):
        for j, c in enumerate(spans):
            covered = (r.stop - r.start) * (c.stop - c.start)
            gradient[:, r, c] += weights[:, i : i + 1, j : j + 1] / covered

    def pool(x):
        return layers.average_pool(x, size, stride, ceil=True)

    assert_near(jax.jit(pool)(x), want)
    assert_near(jax.jit(jax.grad(lambda x: (weights * pool(x)).sum()))(x), gradient)


def test_spatial_norm_equals_the_formula_with_its_gradient():
    x, (size, k, alpha, beta) = draw(0, 1, 6, 6, 2), (5, 1.0, 0.2, 0.75)

    def loops(a):
        b = np.empty_like(a)
        for _, i, j, _ in np.ndindex(a.shape):
            near = a[:, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
            b[:, i, j] = a[:, i, j] / (k + alpha * (near**2).sum((1, 2))) ** beta
        return b

    got = layers.spatial_norm(jnp.asarray(x), size, k, alpha, beta)
    assert_near(got, loops(x.astype(np.float64)))
    weights, want = draw(1, *x.shape), np.empty(x.shape)
    for index in np.ndindex(x.shape):
        d = np.zeros(x.shape)
        d[index] = 1e-5
        want[index] = (weights * (loops(x + d) - loops(x - d))).sum() / 2e-5
    got = jax.jit(jax.grad(lambda x: (weights * layers.spatial_norm(x, size, k, alpha, beta)).sum()))(x)
    assert_near(got, want)


def keys(*seeds):
    return jax.vmap(jax.random.key)(jnp.array(seeds))


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_dropout_in_training_drops_at_its_rate_and_does_not_rescale(rate):
    x = jnp.asarray(draw(0, 20, 5000))
    got = np.asarray(layers.dropout(x, rate, keys(*range(20))))
    kept = got != 0
    np.testing.assert_array_equal(got[kept], x[kept])
    # Five standard deviations of the mean of x.size Bernoulli draws.
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / x.size)


def test_dropout_at_test_multiplies_by_what_was_kept():
    x = draw(0, 3, 4, 4, 2)
    np.testing.assert_allclose(layers.dropout(jnp.asarray(x), 0.2, None), x * np.float32(0.8), rtol=1e-6)


def test_inverted_dropout_scales_in_training_and_not_at_test():
    x = jnp.asarray(draw(0, 2, 1000))
    plain, inverted = (np.asarray(layers.dropout(x, 0.2, keys(0, 1), scale)) for scale in ("test", "train"))
    np.testing.assert_allclose(inverted, plain / np.float32(0.8), rtol=1e-6)
    np.testing.assert_array_equal(layers.dropout(x, 0.2, None, "train"), x)


def test_dropout_of_a_row_depends_on_its_own_key_only():
    x = jnp.ones((4, 300))
    together = np.asarray(layers.dropout(x, 0.5, keys(7, 8, 9, 7)))
    np.testing.assert_array_equal(together[0], together[3])
    assert (together[0] != together[1]).any() and (together[1] != together[2]).any()
    alone = layers.dropout(x[:1], 0.5, keys(8))
    np.testing.assert_array_equal(alone[0], together[1])
    swapped = np.asarray(layers.dropout(x[:2], 0.5, keys(9, 7)))
    np.testing.assert_array_equal(swapped, together[[2, 0]])


def test_gradient_of_dropout_passes_through_what_was_kept():
    x = jnp.asarray(draw(0, 2, 100))
    got = layers.dropout(x, 0.5, keys(0, 1))
    gradient = jax.jit(jax.grad(lambda x: layers.dropout(x, 0.5, keys(0, 1)).sum()))(x)
    np.testing.assert_array_equal(gradient, np.asarray(got) != 0)


FUSED = {
    "gpu": functools.partial(norm_pool.on_gpu, interpret=True),
    "tpu": norm_pool.on_tpu,
}
PAPER = norm_pool.Norm(5, 2.0, 1e-4, 0.75), norm_pool.Pool(3, 2)
STRONG = norm_pool.Norm(3, 1.0, 0.5, 0.9), norm_pool.Pool(2, 2)


@pytest.mark.parametrize("numbers", [PAPER, STRONG], ids=["paper", "strong"])
@pytest.mark.parametrize("fused", FUSED)
def test_fused_layers_equal_the_plain_ones_with_their_gradients(fused, numbers):
    """The inputs are whole numbers; many of them tie, and many are negative."""
    norm, pool = numbers
    x = np.round(2 * draw(0, 2, 9, 7, 6))

    def plain(x):
        return layers.max_pool(layers.local_response_norm(jax.nn.relu(x), *norm), *pool)

    def own(x):
        return FUSED[fused](x, norm=norm, pool=pool)

    want, of_plain = jax.vjp(plain, x)
    got, of_own = jax.vjp(own, x)
    assert_near(got, want, 1e-6)
    weights = draw(1, *want.shape)
    assert_near(of_own(weights)[0], of_plain(weights)[0], 1e-6)


@pytest.mark.parametrize("fused", FUSED)
def test_fused_layers_in_bfloat16_round_once(fused):
    norm, pool = STRONG
    x, weights, results = draw(0, 1, 4, 4, 4), draw(1, 1, 2, 2, 4), []
    for dtype in (jnp.float32, jnp.bfloat16):
        run = functools.partial(FUSED[fused], norm=norm, pool=pool)
        y, backward = jax.vjp(run, x.astype(jnp.bfloat16).astype(dtype))
        results.append((y, backward(weights.astype(jnp.bfloat16).astype(dtype))[0]))
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == jnp.bfloat16
        assert_near(rounded, exact, 2**-7)


def test_fused_layers_are_the_plain_ones_on_a_cpu():
    (norm, pool), x = PAPER, jnp.asarray(draw(0, 1, 7, 7, 6))
    plain = layers.max_pool(layers.local_response_norm(jax.nn.relu(x), *norm), *pool)
    np.testing.assert_array_equal(layers.relu_norm_pool(x, norm, pool), plain)


@pytest.mark.parametrize("shape", [(4, 3, 3, 5), (6, 5)], ids=["maps", "units"])
def test_batch_norm_and_its_gradients_equal_the_closed_form(shape):
    x, weights = 3 + 2 * draw(0, *shape), draw(1, *shape)
    scale, shift = draw(2, 5), draw(3, 5)

    def total(x, scale, shift):
        mean, variance = layers.moments(x)
        return (weights * layers.batch_norm(x, mean, variance, scale, shift, 1e-2)).sum()

    got = jax.grad(total, (0, 1, 2))(*map(jnp.asarray, (x, scale, shift)))
    a, w = (array.astype(np.float64).reshape(-1, 5) for array in (x, weights))
    deviation = np.sqrt(a.var(axis=0) + 1e-2)
    unit = (a - a.mean(axis=0)) / deviation
    assert_near(total(*map(jnp.asarray, (x, scale, shift))), (w * (scale * unit + shift)).sum())
    assert_near(got[1], (w * unit).sum(axis=0))
    assert_near(got[2], w.sum(axis=0))
    back = scale / deviation * (w - w.mean(axis=0) - unit * (w * unit).mean(axis=0))
    assert_near(got[0].reshape(-1, 5), back)


def test_batch_norm_computes_bfloat16_in_float32():
    x = jnp.asarray(1000 + draw(0, 64, 2), jnp.bfloat16)
    mean, variance = layers.moments(x)
    assert mean.dtype == variance.dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var(axis=0), rtol=1e-4)
    assert layers.batch_norm(x, mean, variance, jnp.ones(2), jnp.zeros(2), 1e-4).dtype == jnp.bfloat16
