"""alexnet_jax/network.py and table.py: sizes, initial weights, and a whole forward pass against NumPy."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from helpers.arrays import assert_near

from alexnet_jax import optimizer
from alexnet_jax.config import check
from alexnet_jax.network import Network, init_stds
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import abstract_state, init_state, loss_and_gradients, make_activations
from alexnet_jax.table import describe, layer_table
from configs import paper, quickstart

PAPER = {  # FACTS A.1: output, inputs of one kernel, parameters, multiply-adds, after pooling
    "conv1": ((55, 55, 96), 3, 34_944, 105_415_200, (27, 27, 96)),
    "conv2": ((27, 27, 256), 48, 307_456, 223_948_800, (13, 13, 256)),
    "conv3": ((13, 13, 384), 256, 885_120, 149_520_384, (13, 13, 384)),
    "conv4": ((13, 13, 384), 192, 663_936, 112_140_288, (13, 13, 384)),
    "conv5": ((13, 13, 256), 192, 442_624, 74_760_192, (6, 6, 256)),
    "fc6": ((4096,), 9216, 37_752_832, 37_748_736, (4096,)),
    "fc7": ((4096,), 4096, 16_781_312, 16_777_216, (4096,)),
    "fc8": ((1000,), 2048, 4_097_000, 4_096_000, (1000,)),  # each column's half of the 4096 inputs
}
ONE_COLUMN = {"conv2": 614_656, "conv4": 1_327_488, "conv5": 884_992}
BIASES = {"conv1": 0, "conv2": 1, "conv3": 0, "conv4": 1, "conv5": 1, "fc6": 1, "fc7": 1, "fc8": 0}


def paper_config(columns=2, **fields):
    config = paper.get_config()
    config.model.columns = columns
    config.update_from_flattened_dict(fields)
    return ml_collections.FrozenConfigDict(config)


def small_config(columns=2, without=(), **fields):
    """The quickstart's network with a quarter of the features: 4 to 12 maps a column."""
    config = quickstart.get_config()
    config.model.columns, config.model.width = columns, 0.25
    config.mesh.update(data=1, column=1)
    for name in without:
        config.model.layers[name].enabled = False
    config.update_from_flattened_dict(fields)
    return ml_collections.FrozenConfigDict(config)


def state_shapes(config):
    return abstract_state(config, make_mesh(config), optimizer.make(config))


def draw_params(config):
    """Kernels as wide as the configuration's, biases that differ from map to map."""
    draw, stds = np.random.default_rng(0), init_stds(config.model)

    def array(path, shape):
        name, kind = (key.key for key in path)
        std = stds[name] if kind == "kernel" else 0.5
        return draw.normal(0, std, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(array, state_shapes(config).params)


def draw_views(config, number=2):
    size, channels = config.data.crop_size, config.data.channels
    return np.random.default_rng(1).uniform(-120, 120, (number, size, size, channels)).astype(np.float32)


def parameter_count(config):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state_shapes(config).params))


@pytest.mark.parametrize(
    "columns, parameters, multiply_adds", [(2, 60_965_224, 724_406_816), (1, 62_378_344, 1_135_256_096)]
)
def test_paper_network_has_the_papers_size(columns, parameters, multiply_adds):
    config = paper_config(columns)
    assert parameter_count(config) == parameters
    assert sum(layer.parameters for layer in layer_table(config)) == parameters
    assert sum(layer.multiply_adds for layer in layer_table(config)) == multiply_adds
    total = f"total: {parameters:,} parameters, {multiply_adds:,} multiply-adds"
    assert describe(config).splitlines()[-1] == total


def test_each_layer_of_the_paper_is_as_in_its_table():
    shapes = layer_table(paper_config())
    assert [shape.name for shape in shapes] == list(PAPER)
    for s in shapes:
        assert (s.output, s.kernel[-2], s.parameters, s.multiply_adds, s.after) == PAPER[s.name], s.name
    single = {s.name: s.parameters for s in layer_table(paper_config(1))}
    assert single == {name: ONE_COLUMN.get(name, row[2]) for name, row in PAPER.items()}


def test_real_parameters_have_the_shapes_of_one_column_each():
    params = state_shapes(paper_config()).params
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "conv1": (2, 11, 11, 3, 48),
        "conv2": (2, 5, 5, 48, 128),
        "conv3": (2, 3, 3, 256, 192),
        "conv4": (2, 3, 3, 192, 192),
        "conv5": (2, 3, 3, 192, 128),
        "fc6": (2, 9216, 2048),
        "fc7": (2, 4096, 2048),
        "fc8": (2, 2048, 1000),
    }
    assert params["fc7"]["bias"].shape == (2, 2048)
    assert params["fc8"]["bias"].shape == (1000,)


@pytest.mark.parametrize("columns", [1, 2])
def test_activations_of_the_paper_network_by_name_and_shape(columns):
    config = paper_config(columns, **{"mesh.data": 1, "mesh.column": 1})
    mesh = make_mesh(config)
    views = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    logits, activations = jax.eval_shape(make_activations(config, mesh), state_shapes(config).params, views)
    norm_pool, maps = ("activation", "lrn", "pool"), ("activation",)
    then = {"conv1": norm_pool, "conv2": norm_pool, "conv3": maps, "conv4": maps, "conv5": (*maps, "pool")}
    then |= dict.fromkeys(("fc6", "fc7"), ("activation", "dropout"))
    want = {}
    for name, (output, _, _, _, pooled) in PAPER.items():
        want[name] = (2, *output)
        for op in then.get(name, ()):
            want[f"{name}/{op}"] = (2, *(pooled if op == "pool" else output))
    assert {name: value.shape for name, value in activations.items()} == want
    assert logits.shape == (2, 1000)


def reference(config, params, views):
    """Every activation, from the text of sections 3 and 4.2: both columns side by side, in float64."""
    model, columns = config.model, range(config.model.columns)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    record = {}

    def note(name, xs):
        record[name] = np.concatenate(xs, axis=-1)
        return xs

    def convolution(x, kernel, stride, padding):
        x = np.pad(x, ((0, 0), padding, padding, (0, 0)))
        taps = kernel.shape[0]
        side = (x.shape[1] - taps) // stride + 1
        out = 0
        for i in range(taps):
            for j in range(taps):
                seen = x[:, i : i + stride * side : stride, j : j + stride * side : stride][:, :side, :side]
                out = out + np.einsum("bhwc,cf->bhwf", seen, kernel[i, j])
        return out

    def normalize(x, n):
        lrn, maps = model.lrn, x.shape[-1]
        total = np.stack(
            [
                (x[..., max(0, i - n // 2) : min(maps - 1, i + n // 2) + 1] ** 2).sum(axis=-1)
                for i in range(maps)
            ],
            axis=-1,
        )
        return x / (lrn.k + lrn.alpha * total) ** lrn.beta

    def pool(x, size, stride):
        side = (x.shape[1] - size) // stride + 1
        out = np.empty((x.shape[0], side, side, x.shape[3]))
        for i in range(side):
            for j in range(side):
                window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
                out[:, i, j] = window.max(axis=(1, 2))
        return out

    def nonlinear(x):
        return np.maximum(x, 0) if model.activation == "relu" else np.tanh(x)

    xs = [views.astype(np.float64)] * config.model.columns
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        spec, kernel, bias = model.layers[name], params[name]["kernel"], params[name]["bias"]
        if name == "conv3":
            xs = [np.concatenate(xs, axis=-1)] * config.model.columns
        xs = [convolution(xs[c], kernel[c], spec.stride, spec.padding) + bias[c] for c in columns]
        note(name, xs)
        xs = note(f"{name}/activation", [nonlinear(x) for x in xs])
        if name in ("conv1", "conv2"):
            if model.lrn.across_columns:
                joined = normalize(np.concatenate(xs, axis=-1), model.lrn.size)
                xs = note(f"{name}/lrn", np.split(joined, len(xs), axis=-1))
            else:
                xs = note(f"{name}/lrn", [normalize(x, model.lrn.size) for x in xs])
        if name in ("conv1", "conv2", "conv5"):
            xs = note(f"{name}/pool", [pool(x, model.pool.size, model.pool.stride) for x in xs])
    for name in ("fc6", "fc7"):
        everything = np.concatenate(xs, axis=-1).reshape(len(views), -1)
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        xs = note(name, [everything @ kernel[c] + bias[c] for c in columns])
        xs = note(f"{name}/activation", [nonlinear(x) for x in xs])
        xs = note(f"{name}/dropout", [(1 - model.dropout_rate) * x for x in xs])
    record["fc8"] = sum(xs[c] @ params["fc8"]["kernel"][c] for c in columns) + params["fc8"]["bias"]
    return record


FORWARD = {
    "two columns": (2, {"model.dropout_rate": 0.5}),
    "one column, tanh, apart pooling": (1, {"model.activation": "tanh", "model.pool.size": 2}),
    "normalised across columns": (2, {"model.lrn.across_columns": True, "model.dropout_rate": 0.2}),
}


@pytest.mark.parametrize("case", FORWARD.values(), ids=FORWARD)
def test_forward_pass_equals_numpy(case):
    config = small_config(case[0], **case[1])
    params, views = draw_params(config), draw_views(config)
    logits, got = make_activations(config, make_mesh(config))(params, views)
    want = reference(config, params, views)
    assert set(got) == set(want)
    for name, value in want.items():
        assert_near(got[name], value, name=name)
    np.testing.assert_array_equal(logits, got["fc8"])


def test_gradients_equal_finite_differences_of_the_numpy_network():
    config = small_config(
        **{"model.dropout_rate": 0.0, "augment.crop": False, "augment.flip": False, "augment.pca_std": 0.0}
    )
    params, draw = draw_params(config), np.random.default_rng(2)
    images, labels = draw.integers(0, 256, (4, 28, 28, 1), dtype=np.uint8), np.array([0, 3, 3, 9], np.int32)
    mean = draw.uniform(80, 160, (28, 28, 1)).astype(np.float32)
    views = (images - mean)[:, 2:26, 2:26]

    def reference_loss(params):
        logits = reference(config, params, views)["fc8"]
        log_sum = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1)
        return (log_sum - logits[np.arange(len(labels)), labels]).mean()

    run = jax.jit(loss_and_gradients(config, make_mesh(config)))
    loss, gradients, _ = run(params, images, labels, 0, {"mean_image": mean})
    assert abs(loss - reference_loss(params)) < 1e-5 * loss

    for name, layer in params.items():
        for kind in layer:
            gradient = np.asarray(gradients[name][kind], np.float64)
            noise = draw.normal(size=gradient.shape)
            # Along the gradient, where a wrong factor shows, and across it, where a wrong direction does.
            direction = gradient / np.linalg.norm(gradient) + noise / np.linalg.norm(noise)
            step = 1e-6 * np.linalg.norm(layer[kind])

            def loss_at(sign, name=name, kind=kind, change=step * direction):
                changed = {**params[name], kind: params[name][kind].astype(np.float64) + sign * change}
                return reference_loss({**params, name: changed})

            want = (loss_at(1) - loss_at(-1)) / (2 * step)
            assert abs((gradient * direction).sum() - want) < 1e-5 * np.linalg.norm(gradient), (name, kind)


def test_zeros_of_conv1_are_at_the_bottom_and_right():
    without = {f"model.layers.{name}.enabled": False for name in PAPER if name not in ("conv1", "fc8")}
    config = paper_config(**without, **{"model.layers.conv1.features": 4, "model.num_classes": 2})
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), state_shapes(config).params)
    params["conv1"]["kernel"] += 1
    views = np.ones((1, 224, 224, 3), np.float32)
    _, activations = make_activations(config, make_mesh(config))(params, views)
    inside = np.array([11] * 54 + [8])
    want = 3 * np.outer(inside, inside)
    np.testing.assert_array_equal(activations["conv1"][0], np.broadcast_to(want[:, :, None], (55, 55, 4)))


def initial_params(config):
    mesh = make_mesh(config)
    return jax.tree.map(np.asarray, init_state(config, mesh, optimizer.make(config)).params)


@pytest.fixture(scope="module")
def initial():
    config = small_config(without=("conv2", "conv5", "fc7"), **{"model.width": 1.0})
    return config, initial_params(config)


def test_initial_weights_are_normal_with_the_layers_deviation(initial):
    config, params = initial
    for name, std in init_stds(config.model).items():
        kernel = params[name]["kernel"] / std
        # Five standard errors of the mean, and of the deviation, of as many draws.
        assert abs(kernel.mean()) < 5 / np.sqrt(kernel.size), name
        assert abs(kernel.std() - 1) < 5 / np.sqrt(2 * kernel.size), name
        # Not truncated at two deviations, as flax's default is: 1.2 % of a normal's draws are beyond 2.5.
        if kernel.size > 2000:
            assert 0.5 < (np.abs(kernel) > 2.5).mean() / 0.01242 < 1.5, name


def test_initial_biases_are_the_papers(initial):
    for name, layer in initial[1].items():
        np.testing.assert_array_equal(layer["bias"], BIASES[name])
    assert {name: layer.bias for name, layer in paper_config().model.layers.items()} == BIASES


def test_columns_are_drawn_apart(initial):
    for name, layer in initial[1].items():
        first, second = layer["kernel"].reshape(2, -1)
        correlation = np.corrcoef(first, second)[0, 1]
        assert abs(correlation) < 5 / np.sqrt(first.size), name


def test_another_seed_draws_other_weights(initial):
    config = small_config(without=("conv2", "conv5", "fc7"), **{"model.width": 1.0, "seed": 1})
    for name, layer in initial_params(config).items():
        first, second = layer["kernel"].ravel(), initial[1][name]["kernel"].ravel()
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(first.size), name


def test_initial_weights_depend_on_neither_the_mesh_nor_the_other_layers(initial):
    without = ("conv2", "conv4", "conv5", "fc7")
    fewer = initial_params(small_config(without=without, **{"model.width": 1.0, "mesh.column": 2}))
    assert set(fewer) == set(initial[1]) - {"conv4"}
    for name, layer in fewer.items():
        jax.tree.map(np.testing.assert_array_equal, layer, initial[1][name])


def test_paper_draws_all_weights_with_its_deviation_at_full_width():
    assert set(init_stds(paper_config().model).values()) == {0.01}


@pytest.mark.parametrize("of", [paper_config, small_config])
@pytest.mark.parametrize("columns", [1, 2])
def test_width_keeps_the_gain_of_each_layer(of, columns):
    def gains(width):
        config = of(columns, **{"model.width": width})
        stds = init_stds(config.model)
        return {s.name: stds[s.name] * math.sqrt(math.prod(s.kernel[1:-1])) for s in layer_table(config)}

    for width in (0.25, 0.5, 2.0):
        assert gains(width) == pytest.approx(gains(1.0), rel=1e-12)
    quarter, full = (of(columns, **{"model.width": width}) for width in (0.25, 1.0))
    stds, full_stds = (init_stds(config.model) for config in (quarter, full))
    assert stds["conv1"] == full_stds["conv1"]
    assert stds["fc7"] == pytest.approx(2 * full_stds["fc7"])
    units, full_units = ({s.name: s.output[-1] for s in layer_table(config)} for config in (quarter, full))
    assert units["fc7"] * 4 == full_units["fc7"]
    assert units["fc8"] == full_units["fc8"]


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"model.layers.conv3.features": 385}, r"model\.layers\.conv3\.features: 385 .* 2"),
        ({"model.width": 0.0001}, r"model\.layers\.conv1\.features: .* model\.width"),
        ({"data.crop_size": 7}, r"model\.layers\.conv1\.kernel: 11 .* 7x7"),
        ({"model.layers.conv2.kernel": 32}, r"model\.layers\.conv2\.kernel: 32 .* 27x27"),
        ({"model.pool.size": 56}, r"model\.pool\.size: 56 .* 55x55 .* conv1"),
        ({"model.layers.conv1.gather": True}, r"model\.layers\.conv1\.gather"),
        ({"model.layers.fc6.then": ("activation", "pool")}, r"model\.layers\.fc6\.then: 'pool'"),
    ],
)
def test_network_that_does_not_fit_names_the_field(fields, named):
    with pytest.raises(InputError, match=f"^{named}") as raised:
        layer_table(paper_config(**fields))
    assert "\n" not in str(raised.value)


def with_layer(added, like):
    config = quickstart.get_config()
    config.model.layers[added] = config.model.layers[like].copy_and_resolve_references()
    return config


def test_layers_run_in_the_order_of_their_numbers():
    config = with_layer("conv10", "conv4")
    check(config)
    want = ["conv1", "conv2", "conv3", "conv4", "conv5", "conv10", "fc6", "fc7", "fc8"]
    assert [layer.name for layer in layer_table(config)] == want


def test_a_layer_after_the_classifier_is_refused():
    with pytest.raises(InputError, match=r"model\.layers\.fc9: "):
        check(with_layer("fc9", "fc7"))


def test_description_has_a_row_for_each_layer():
    rows = describe(paper_config()).splitlines()
    assert [row.split()[0] for row in rows] == ["layer", *PAPER, "total:"]
    for row, (output, _, parameters, multiply_adds, pooled) in zip(rows[1:], PAPER.values(), strict=False):
        cells = row.split()
        assert cells[-2:] == [f"{parameters:,}", f"{multiply_adds:,}"]
        assert "x".join(map(str, output)) in cells and "x".join(map(str, pooled)) in cells


def test_bfloat16_computes_near_float32_with_float32_parameters():
    config, half = small_config(), small_config(**{"model.dtype": "bfloat16"})
    assert {leaf.dtype for leaf in jax.tree.leaves(state_shapes(half).params)} == {np.dtype(np.float32)}
    params, views = draw_params(config), draw_views(config, 8)
    logits, activations = make_activations(half, make_mesh(half))(params, views)
    assert logits.dtype == jnp.float32
    assert {value.dtype for name, value in activations.items() if name != "fc8"} == {np.dtype(jnp.bfloat16)}
    want = reference(config, params, views)["fc8"]
    # Each of the eight layers rounds its inputs, weights and outputs to 2^-9 of themselves on average: the
    # errors, independent, add up to about sqrt(24) * 2^-9 = 1 % of a typical logit.
    error = np.sqrt(np.mean((np.asarray(logits) - want) ** 2))
    assert 0 < error < 0.02 * want.std()


def test_dropout_masks_differ_between_layers_columns_and_examples():
    config = small_config(
        without=("conv1", "conv2", "conv3", "conv4", "conv5"), **{"model.layers.fc6.gather": False}
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), state_shapes(config).params)
    for name in ("fc6", "fc7"):
        params[name]["bias"] += 1
    views, keys = draw_views(config, 2), jax.random.split(jax.random.key(0), 2)

    _, activations = jax.jit(Network(config, here=2).apply)({"params": params}, views, keys)
    masks = np.stack([activations["fc6/dropout"], activations["fc7/dropout"]]).reshape(8, -1)
    assert set(np.unique(masks)) == {0, 1}
    assert len(np.unique(masks, axis=0)) == 8
