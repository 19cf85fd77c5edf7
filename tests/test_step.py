"""alexnet_jax/step.py: the same step on every mesh, and what evaluation counts."""

import math
import re
import types
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from helpers.arrays import assert_near, assert_same_trees
from helpers.views import mean_of_softmax, ten_views

from alexnet_jax import optimizer
from alexnet_jax.kernels import cpu, winograd
from alexnet_jax.network import init_stds
from alexnet_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from alexnet_jax.step import (
    TrainState,
    _add,
    _compiler_options,
    abstract_state,
    init_state,
    loss_and_gradients,
    make_activations,
    make_eval_step,
    make_train_step,
    new_state,
    training_means,
)
from configs import paper, quickstart
from experiments.benchmarks import compiled


@pytest.fixture(scope="module", autouse=True)
def compiled_in_half_the_time():
    """Without LLVM's optimizations: what is tested here is who computes what, and who holds what."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


EACH_ONCE = ("conv1", "conv2", "conv3", "conv5", "fc6")  # conv4 and fc7 are like conv5 and fc6
MESHES = [(1, 1), (1, 2), (2, 1), (2, 2)]
BATCH = 16
BOTH = ("batch_size", "eval.batch_size")


def small_config(mesh=(1, 1), only=None, **fields):
    """The quickstart's network with a quarter of the features, in colour; dropout and augmentation on."""
    config = quickstart.get_config()
    config.model.width, config.batch_size, config.eval.batch_size = 0.25, BATCH, BATCH
    config.data.channels = 3
    config.mesh.data, config.mesh.column = mesh
    for name in config.model.layers:
        if only and name not in (*only, "fc8"):
            config.model.layers[name].enabled = False
    config.update_from_flattened_dict(fields)
    return ml_collections.FrozenConfigDict(config)


def statistics():
    draw = np.random.default_rng(1)
    vectors, _ = np.linalg.qr(draw.normal(size=(3, 3)))
    arrays = {
        "mean_image": draw.uniform(100, 140, (28, 28, 3)),
        "eigenvectors": vectors,
        "standard_deviations": np.array([10.0, 30.0, 100.0]),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def batch(seed=0, number=BATCH):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (number, 28, 28, 3), dtype=np.uint8)
    return images, draw.integers(0, 10, number).astype(np.int32)


def state_of(config, mesh, rule, seed=0):
    """As init_state, with weights of NumPy's: compiling the draws takes longer than all else here."""
    shapes = abstract_state(config, mesh, rule)
    stds = init_stds(config.model)
    draw = np.random.default_rng(seed)

    def array(path, leaf):
        name, kind = (key.key for key in path)
        std = stds[name] if kind == "kernel" else 0.3
        return draw.normal(0, std, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(array, shapes.params)
    state = new_state(params, rule)
    return jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), state, shapes)


def params_of(config, mesh):
    return state_of(config, mesh, optimizer.make(config)).params


def assert_trees_close(got, want, tolerance=1e-5):
    """Each leaf to its own largest value: float32 sums of some thousand terms, in another order."""
    jax.tree_util.tree_map_with_path(
        lambda path, x, y: assert_near(x, y, tolerance, jax.tree_util.keystr(path)), got, want
    )


def three_steps(mesh):
    config = small_config(mesh, only=EACH_ONCE)
    devices = make_mesh(config)
    # A trace without decay keeps the gradients that it is given.
    rule = optax.chain(optax.trace(0.0), optimizer.make(config))
    step, state, history = make_train_step(config, devices, rule), state_of(config, devices, rule), []
    for number in range(3):
        state, loss = step(state, *batch(number), statistics())
        history.append((loss, jax.tree.map(np.asarray, state)))
    views = np.random.default_rng(5).uniform(-120, 120, (4, 24, 24, 3)).astype(np.float32)
    params = params_of(config, devices)
    images, labels = batch(3)
    return {
        "history": history,
        "state": state,
        "forward": make_activations(config, devices)(params, views),
        "eval": make_eval_step(config, devices, 10)(params, images, labels, labels != 3, statistics()),
    }


def gradients(state):
    return state.opt_state[0].trace


def velocity(state):
    return state.opt_state[1]["momentum"].trace


@pytest.fixture(scope="module")
def runs():
    with pytest.MonkeyPatch.context() as patch:  # a few images at a time, and by Winograd's algorithm
        patch.setattr(cpu, "CACHE_BYTES", 1)
        patch.setattr(cpu, "MOST_GROUPS", 3)
        patch.setattr(cpu, "WINOGRAD_INPUTS", 1)
        patch.setattr(winograd, "TILES", 1)
        return {mesh: three_steps(mesh) for mesh in MESHES}


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_every_mesh_gives_the_same_losses_gradients_and_states(runs, mesh):
    for step, (got, want) in enumerate(zip(runs[mesh]["history"], runs[1, 1]["history"], strict=True)):
        (loss, state), (want_loss, want_state) = got, want
        assert_trees_close(loss, want_loss)
        assert_trees_close(gradients(state), gradients(want_state))
        assert_trees_close(state.params, want_state.params)
        assert_trees_close(velocity(state), velocity(want_state))
        assert state.step == state.loss_count == step + 1
    assert_trees_close(state.loss_sum, sum(loss for loss, _ in runs[mesh]["history"]), 1e-6)
    assert state.error_sum == runs[1, 1]["history"][-1][1].error_sum


def test_one_device_and_one_per_column_give_the_same_bits(runs):
    for name in ("history", "forward", "eval"):
        assert_same_trees(runs[1, 2][name], runs[1, 1][name])


def test_every_parameter_is_trained(runs):
    (_, first), (_, second), _ = runs[1, 1]["history"]
    for before, after in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        assert (before != after).any()


def test_loss_is_a_function_of_seed_and_step():
    def loss(step, seed):
        config = small_config(only=("fc7",), **{"model.layers.fc7.gather": False, "seed": seed})
        mesh = make_mesh(config)
        run = jax.jit(loss_and_gradients(config, mesh))
        return [float(run(params_of(config, mesh), *batch(), n, statistics())[0]) for n in step]

    first, second, again = loss((0, 1, 0), seed=0)
    assert first == again != second
    assert loss((0,), seed=1) != [first]


def spread(params, factor=1e3):
    """Remove the biases, and scale the logits, so that the views of an image differ."""
    params = {layer: own | {"bias": 0 * own["bias"]} for layer, own in params.items()}
    return params | {"fc8": params["fc8"] | {"kernel": factor * params["fc8"]["kernel"]}}


def test_images_of_a_group_have_one_crop_and_flip():
    """exp(-mean loss) of one image, over all labels, sums to 1 if the views are equal, and to less if not."""

    def total(group):
        fields = {"augment.crop_group": group, "augment.pca_std": 0.0, "model.dropout_rate": 0.0}
        config = small_config(only=("conv1", "fc6"), **fields)
        mesh = make_mesh(config)
        differentiate = jax.jit(loss_and_gradients(config, mesh))
        params, image = spread(params_of(config, mesh), 0.1), np.repeat(batch(0, 1)[0], BATCH, axis=0)
        labels = [np.full(BATCH, label, np.int32) for label in range(10)]
        return sum(np.exp(-differentiate(params, image, own, 0, statistics())[0]) for own in labels)

    assert total(BATCH) == pytest.approx(1, abs=1e-5)
    assert total(1) < 1 - 1e-3


def test_groups_that_share_a_crop_do_not_depend_on_the_mesh():
    fields = {"augment.crop_group": 5, "model.dropout_rate": 0.0}
    losses = []
    for mesh in ((1, 1), (2, 1)):
        config = small_config(mesh, only=("conv1", "fc6"), **fields)
        devices = make_mesh(config)
        differentiate = jax.jit(loss_and_gradients(config, devices))
        losses.append(differentiate(params_of(config, devices), *batch(0), 0, statistics()))
    assert_trees_close(losses[0], losses[1])


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_every_mesh_gives_the_same_activations(runs, mesh):
    assert_trees_close(runs[mesh]["forward"], runs[1, 1]["forward"])


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_every_mesh_gives_the_same_evaluation(runs, mesh):
    assert_trees_close(runs[mesh]["eval"], runs[1, 1]["eval"])


NORMALIZED = {"model.layers.conv1.then": ("batch_norm", "activation", "pool"), "optimizer.name": "lars"}
NORMALIZED |= {"optimizer.schedule": "polynomial", "optimizer.warmup_epochs": 1.0}


def two_steps(mesh, only=("conv1", "fc6"), **fields):
    """Return the losses of two steps, and the parameters and velocities after them.

    The bias of a normalised layer is left out: its gradient is the rounding error of a zero.
    """
    config = small_config(mesh, only=only, **fields)
    devices = make_mesh(config, BOTH)
    tx = optimizer.make(config, 3 * BATCH)
    step, state = make_train_step(config, devices, tx), state_of(config, devices, tx)
    losses = []
    for number in range(2):
        state, loss = step(state, *batch(number), statistics())
        losses.append(float(loss))
    params, velocities = jax.tree.map(np.asarray, (state.params, state.opt_state["momentum"].trace))
    if "scale" in params["conv1"]:
        assert np.abs(velocities["conv1"].pop("bias")).max() < 1e-5
        assert not any(velocities["conv1"].pop(name).any() for name in ("mean", "variance"))
        del params["conv1"]["bias"]
    return losses, params, velocities


@pytest.fixture(scope="module")
def normalized():
    """Two steps of LARS on each mesh, with batch normalisation over the whole batch."""
    return {mesh: two_steps(mesh, **NORMALIZED) for mesh in MESHES}


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_every_mesh_gives_the_same_steps_of_lars_with_synchronized_statistics(normalized, mesh):
    assert set(normalized[mesh][1]["conv1"]) == {"kernel", "scale", "shift", "mean", "variance"}
    assert_trees_close(normalized[mesh], normalized[1, 1], 3e-5)


def test_parts_of_a_batch_have_the_same_examples_on_every_mesh():
    one, two = (two_steps(mesh, micro_batches=2, **NORMALIZED) for mesh in ((1, 1), (2, 1)))
    assert_trees_close(one, two, 3e-5)


def test_statistics_of_a_device_are_those_of_a_part_with_the_same_examples():
    """Without random numbers, which belong to an example's place in the batch."""
    still = {"augment.crop": False, "augment.flip": False, "augment.pca_std": 0.0, "model.dropout_rate": 0.0}
    by_halves = np.arange(BATCH).reshape(2, -1).T.ravel()  # part 0, every second one, is the first half
    results = []
    for mesh, order, parts in (((2, 1), slice(None), 1), ((1, 1), by_halves, 2)):
        own = {"micro_batches": parts, "model.batch_norm.synchronized": False}
        config = small_config(mesh, only=("conv1", "fc6"), **NORMALIZED, **still, **own)
        devices = make_mesh(config)
        images, labels = batch(0)
        loss, gradients, (error, averages) = jax.jit(loss_and_gradients(config, devices))(
            params_of(config, devices), images[order], labels[order], 0, statistics()
        )
        for name in (
            "bias",
            "mean",
            "variance",
        ):  # the first is the rounding error of a zero, the others are 0
            del gradients["conv1"][name]
        results.append((loss, gradients, error, averages))
    assert_trees_close(*results, 3e-5)


def test_running_averages_are_of_the_views_of_the_batch():
    """They are 0.9 of the former average and 0.1 of the batch's; the variance is unbiased."""
    fields = {"augment.crop": False, "augment.flip": False, "augment.pca_std": 0.0}
    config = small_config(only=("conv1", "fc6"), **NORMALIZED, **fields)
    mesh = make_mesh(config)
    params = params_of(config, mesh)
    _, _, (_, averages) = jax.jit(loss_and_gradients(config, mesh))(params, *batch(0), 0, statistics())
    views = (batch(0)[0] - statistics()["mean_image"])[:, 2:26, 2:26]
    _, activations = make_activations(config, mesh)(params, views)
    outputs = np.asarray(activations["conv1"], np.float64).reshape(-1, 6)
    for name, own in (("mean", outputs.mean(axis=0)), ("variance", outputs.var(axis=0, ddof=1))):
        former = np.asarray(params["conv1"][name]).reshape(6)
        assert_near(averages["conv1"][name].reshape(6), 0.9 * former + 0.1 * own, 1e-4)


@pytest.mark.parametrize("mesh, parts", [((1, 1), 4), ((2, 2), 2)])
def test_micro_batches_give_the_steps_of_the_whole_batch(mesh, parts):
    """Crops, flips, colours and dropout included; the network has no batch normalisation."""
    whole, in_parts = two_steps((1, 1)), two_steps(mesh, micro_batches=parts)
    assert_trees_close(in_parts[0], whole[0])
    assert_trees_close(in_parts[1], whole[1])


def test_evaluation_of_an_example_depends_on_no_other_one():
    """It uses running averages, not the batch's statistics; NaN in other examples changes nothing."""
    config = small_config(only=("conv1", "fc6"), **NORMALIZED)
    mesh = make_mesh(config)
    params = params_of(config, mesh)
    zero = jnp.zeros_like(params["conv1"]["mean"])
    params["conv1"] |= {"mean": zero + 3, "variance": zero + 9, "scale": zero + 2, "shift": zero - 1}
    forward = make_activations(config, mesh)
    views = np.random.default_rng(0).normal(0, 50, (4, 24, 24, 3)).astype(np.float32)
    logits, activations = forward(params, views)
    want = 2 * (activations["conv1"] - 3) / np.sqrt(9 + config.model.batch_norm.epsilon) - 1
    assert_near(activations["conv1/batch_norm"], want)
    views[2:] = np.nan
    np.testing.assert_array_equal(forward(params, views)[0][:2], logits[:2])


def held(x):
    """The shapes of what devices hold, and how many different slices there are."""
    shards = x.addressable_shards
    return {shard.data.shape for shard in shards}, len({str(shard.index) for shard in shards})


@pytest.mark.parametrize("mesh", [(1, 2), (2, 2)])
def test_each_device_holds_its_own_column_only(runs, mesh):
    state = runs[mesh]["state"]
    for params in (state.params, gradients(state), velocity(state)):
        assert held(params["conv2"]["kernel"]) == ({(1, 5, 5, 3, 6)}, 2)
        assert held(params["fc6"]["bias"]) == ({(1, 64)}, 2)
        assert held(params["fc8"]["kernel"]) == ({(1, 64, 10)}, 2)
        assert held(params["fc8"]["bias"]) == ({(10,)}, 1)
        assert len(params["conv2"]["kernel"].addressable_shards) == mesh[0] * mesh[1]


def test_initial_state_is_on_the_devices_of_its_columns():
    config = small_config((1, 2), only=("fc7",), **{"model.layers.fc7.gather": False})
    state = init_state(config, make_mesh(config), optimizer.make(config))
    for params in (state.params, state.opt_state["momentum"].trace):
        assert held(params["fc7"]["kernel"]) == ({(1, 24 * 24 * 3, 64)}, 2)
        assert held(params["fc8"]["bias"]) == ({(10,)}, 1)


def test_loss_does_not_depend_on_the_order_of_the_devices(runs):
    config = small_config((2, 2), only=EACH_ONCE)
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    devices = np.array(jax.devices())[[3, 0, 2, 1]].reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("data", "column"), axis_types=axis_types)
    run = jax.jit(lambda *args: loss_and_gradients(config, mesh)(*args)[0])
    loss = run(params_of(config, mesh), *batch(0), 0, statistics())
    assert_trees_close(loss, runs[2, 2]["history"][0][0], 1e-6)


ACROSS = {"model.lrn.across_columns": True, "model.lrn.alpha": 0.01, "augment.pca_std": 0.0}


@pytest.fixture(scope="module")
def across():
    results = []
    for mesh in ((1, 1), (1, 2)):
        config = small_config(mesh, only=("conv1",), **ACROSS)
        devices = make_mesh(config)
        params = params_of(config, devices)
        views = batch(0, 2)[0][:, 2:26, 2:26].astype(np.float32) - 128
        run = jax.jit(loss_and_gradients(config, devices))
        results.append(
            (make_activations(config, devices)(params, views)[1], run(params, *batch(0), 0, statistics()))
        )
    return results


@pytest.mark.parametrize("mesh", [0, 1], ids=["1x1", "1x2"])
def test_normalisation_across_columns_is_over_the_joined_maps(across, mesh):
    activations, _ = across[mesh]
    a = np.asarray(activations["conv1/activation"], np.float64)
    maps = a.shape[-1]
    assert maps == 6
    want = np.empty_like(a)
    for i in range(maps):
        neighbours = a[..., max(0, i - 2) : min(maps - 1, i + 2) + 1]
        want[..., i] = a[..., i] / (2 + 0.01 * (neighbours**2).sum(axis=-1)) ** 0.75
    assert_trees_close(activations["conv1/lrn"], want)


def test_normalisation_across_columns_gives_one_device_and_two_the_same_bits(across):
    jax.tree.map(np.testing.assert_array_equal, across[1], across[0])


@pytest.mark.parametrize("mesh", [(1, 1), (1, 2)], ids=["1x1", "1x2"])
def test_operations_carry_the_names_of_their_layers_in_profiles(mesh):
    config = small_config(mesh, only=("conv1", "fc6"))
    devices = make_mesh(config)
    args = abstract_state(config, devices, optimizer.make(config)).params, *batch(0), 0, statistics()
    lowered = jax.jit(loss_and_gradients(config, devices)).lower(*args)
    text = lowered.as_text(debug_info=True)
    for name in ("conv1", "conv1/activation", "conv1/lrn", "conv1/pool", "fc6", "fc6/dropout", "fc8"):
        assert re.search(rf'"[^"]*/{name}/[^"]*"', text), name


def mean_softmax(config, mesh, params, images):
    """The mean over the ten views, cut out by NumPy, of the softmax of what `forward` gives."""
    forward = make_activations(config, mesh)
    return mean_of_softmax(forward(params, view)[0] for view in ten_views(images, statistics(), 24))


def test_ten_view_evaluation_is_of_the_mean_softmax_over_the_examples_that_are_real():
    config = small_config((2, 2))
    mesh = make_mesh(config)
    (images, labels), real = batch(7), np.arange(BATCH) < 11
    params = spread(params_of(config, mesh))  # other means than that of softmax outputs are far away
    probabilities = mean_softmax(config, mesh, params, images)[real]
    own = probabilities[np.arange(11), labels[real]]
    rank = (probabilities > own[:, None]).sum(axis=1)
    assert 0 < (rank >= 5).sum() < (rank >= 1).sum() <= 11

    step = make_eval_step(config, mesh, 10)
    sums = step(params, images, labels, real, statistics())
    np.testing.assert_allclose(sums["loss"], -np.log(own).sum(), rtol=1e-5)
    assert sums["top1_errors"] == (rank >= 1).sum()
    assert sums["top5_errors"] == (rank >= 5).sum()
    assert sums["examples"] == 11

    images, labels = images.copy(), labels.copy()
    images[~real], labels[~real] = 255, [-1, 10, 999, -(2**31), 2**31 - 1]
    garbage = step(params, images, labels, real, statistics())
    assert {name: float(x) for name, x in garbage.items()} == {name: float(x) for name, x in sums.items()}

    none = step(params, images, labels, np.zeros(BATCH, bool), statistics())
    assert {float(x) for x in none.values()} == {0.0}


@pytest.fixture(scope="module")
def two_layers():
    """The evaluation step of a network of fc7 and fc8, and parameters that are all zero."""
    config = small_config(only=("fc7",), **{"model.layers.fc7.gather": False})
    mesh = make_mesh(config)
    return make_eval_step(config, mesh, 10), jax.tree.map(jnp.zeros_like, params_of(config, mesh))


def test_padding_may_give_outputs_that_are_not_numbers(two_layers):
    step, params = two_layers
    params = jax.tree.map(lambda x: x, params)
    params["fc7"]["kernel"] += 3e38
    params["fc8"]["kernel"] += 1
    real = np.arange(BATCH) < 5
    black = np.zeros((BATCH, 28, 28, 3), np.uint8)
    mean = {**statistics(), "mean_image": np.zeros((28, 28, 3), np.float32)}
    sums = step(params, black, np.zeros(BATCH, np.int32), real, mean)
    assert float(sums["loss"]) == pytest.approx(5 * np.log(10), rel=1e-6)
    black[~real] = 255
    assert np.isnan(step(params, black, np.zeros(BATCH, np.int32), ~real, mean)["loss"])
    assert step(params, black, np.zeros(BATCH, np.int32), real, mean) == sums


@pytest.fixture(scope="module")
def errors_of_logits(two_layers):
    """(logits, label) -> top-1 and top-5 errors and loss, of a network whose logits are its last bias."""
    step, zeros = two_layers

    def run(logits, label):
        fc8 = {**zeros["fc8"], "bias": jnp.array(logits, jnp.float32)}
        real = np.arange(BATCH) == 0
        labels = np.full(BATCH, label, np.int32)
        sums = step({**zeros, "fc8": fc8}, batch()[0], labels, real, statistics())
        return int(sums["top1_errors"]), int(sums["top5_errors"]), float(sums["loss"])

    return run


def test_classes_that_tie_score_in_the_order_of_their_labels(errors_of_logits):
    for label in range(10):
        top1, top5, loss = errors_of_logits([0.0] * 10, label)
        assert (top1, top5) == (label > 0, label > 4), label
        assert loss == pytest.approx(np.log(10), rel=1e-6)


def test_top_five_counts_the_classes_ahead(errors_of_logits):
    logits = [1, 5, 3, 3, 9, 3, 3, 0, 5, -2]
    ranked = sorted(range(10), key=lambda label: (-logits[label], label))
    assert ranked == [4, 1, 8, 2, 3, 5, 6, 0, 7, 9]
    for label in range(10):
        rank = ranked.index(label)
        top1, top5, loss = errors_of_logits(logits, label)
        assert (top1, top5) == (rank >= 1, rank >= 5), label
        # One unit in the last place of the largest logit.
        assert loss == pytest.approx(np.log(np.exp(np.array(logits) - logits[label]).sum()), abs=1e-6)


def test_outputs_that_are_not_numbers_are_errors(errors_of_logits):
    top1, top5, loss = errors_of_logits([float("nan")] * 10, 0)
    assert (top1, top5) == (1, 1)
    assert np.isnan(loss)


@pytest.fixture(scope="module", params=[(1, 2), (2, 2)], ids=["1x2", "2x2"])
def paper_step(request):
    """The training step of configs/paper.py, compiled for two images a pair: (mesh, step, its arguments)."""
    config = paper.get_config()
    config.batch_size = 2 * request.param[0]
    config.mesh.data, config.mesh.column = request.param
    config = ml_collections.FrozenConfigDict(config)
    mesh, rule = make_mesh(config), optimizer.make(config)
    split, everywhere = batch_sharding(mesh), replicated(mesh)
    shapes = {"mean_image": (256, 256, 3), "eigenvectors": (3, 3), "standard_deviations": (3,)}
    arguments = (
        abstract_state(config, mesh, rule),
        jax.ShapeDtypeStruct((config.batch_size, 256, 256, 3), np.uint8, sharding=split),
        jax.ShapeDtypeStruct((config.batch_size,), np.int32, sharding=split),
        {
            name: jax.ShapeDtypeStruct(shape, np.float32, sharding=everywhere)
            for name, shape in shapes.items()
        },
    )
    return mesh, make_train_step(config, mesh, rule).lower(*arguments).compile(), arguments


def collectives(text, devices):
    """[(kind, groups of devices, shapes of its results)] of a compiled program, where a group has several."""
    found = []
    for line in text.splitlines():
        match = re.search(
            r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
            r"|collective-broadcast|send|recv)(?:-start)?\(",
            line,
        )
        if match:
            results, kind = match.groups()
            groups = compiled.groups_of(line, devices)
            shapes = [
                tuple(map(int, dims.split(","))) if dims else ()
                for dims in re.findall(r"\w\d+\[(.*?)\]", results)
            ]
            if len(groups[0]) > 1:
                found.append((kind, groups, shapes))
    return found


def test_columns_exchange_the_maps_of_the_paper_and_no_parameters(paper_step):
    """28,288 values of an image each way (section 3.2, figure 2), and the sums of the logits."""
    mesh, step, _ = paper_step
    data = mesh.shape["data"]
    pairs = [[2 * pair, 2 * pair + 1] for pair in range(data)]
    found = collectives(step.as_text(), 2 * data)
    over_column = [(kind, shapes) for kind, groups, shapes in found if groups == pairs]
    met = [(13, 13, 128), (6, 6, 128), (2048,)]
    assert sum(map(math.prod, met)) == 28_288
    forward = [("all-gather", [(2, *shape[:-1], 2 * shape[-1])]) for shape in met]
    backward = [("reduce-scatter", [(2, *shape)]) for shape in met]
    logits = [("all-reduce", [(2, 1000)])]
    assert sorted(over_column) == sorted(forward + backward + logits)

    others = [(kind, shapes) for kind, groups, shapes in found if groups != pairs]
    if data == 1:
        assert others == []
    else:  # one mean of the gradients, of the loss and of the training error
        ((kind, shapes),) = others
        parameters = sum(math.prod(layer.shape) for layer in own_params(paper_step))
        assert kind == "all-reduce" and sum(map(math.prod, shapes)) == parameters + 2


def own_params(paper_step):
    """The parameters as one device has them."""
    state = paper_step[2][0]
    return jax.tree.leaves(
        jax.tree.map(lambda x: np.broadcast_to(0, x.sharding.shard_shape(x.shape)), state.params)
    )


def test_each_device_holds_half_of_the_papers_parameters_and_optimizer_state(paper_step):
    mesh, step, arguments = paper_step
    zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), arguments)
    state, _ = step(*zeros)
    held = dict.fromkeys(mesh.devices.flat, 0)
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert whole > 2 * 4 * 60_965_224
    assert list(held.values()) == pytest.approx([whole / 2] * len(held), rel=0.01)
    # Of what the step is given and keeps besides, nothing is as large as another column.
    assert step.memory_analysis().argument_size_in_bytes < 0.51 * whole


def test_the_mean_loss_of_an_epoch_is_that_of_exact_sums():
    """Of losses near log(1000) float32 sums alone are off in the fourth digit after 10,000 steps."""
    losses = (6.9078 + 1e-3 * np.random.default_rng(0).normal(size=20_000)).astype(np.float32)
    errors = np.full(20_000, 0.9994, np.float32)

    @jax.jit
    def over_all(losses, errors):
        def one(carry, new):
            sums, low = carry
            sums, lost = _add(sums, jnp.stack(new))
            return (sums, low + lost), None

        return jax.lax.scan(one, (jnp.zeros(2), jnp.zeros(2)), (losses, errors))[0]

    sums, low = over_all(losses, errors)
    state = TrainState(0, {}, None, *sums, loss_count=np.int32(20_000), low_sums=low)
    np.testing.assert_allclose(
        training_means(state), [losses.mean(dtype=np.float64), errors.mean(dtype=np.float64)], rtol=1e-7
    )
    alone = [np.cumsum(x, dtype=np.float32)[-1] / 20_000 for x in (losses, errors)]
    assert abs(alone[0] - losses.mean(dtype=np.float64)) > 1e-5


@pytest.mark.parametrize("platform, asked", [("gpu", True), ("gpu", False), ("cpu", True), ("tpu", True)])
def test_gpus_are_asked_for_deterministic_operations(platform, asked):
    mesh = mock.create_autospec(jax.sharding.Mesh, instance=True)
    mesh.devices = np.array([types.SimpleNamespace(platform=platform)])
    options = _compiler_options(small_config(**{"mesh.deterministic": asked}), mesh)
    assert options == ({"xla_gpu_deterministic_ops": True} if platform == "gpu" and asked else None)
