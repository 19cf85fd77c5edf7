"""One step of training or evaluation on a mesh of devices.

    loss_and_gradients    the batch's loss (section 3.5) and its gradients, inside `shard_map`
    make_train_step       the update of section 5: state, images, labels -> the next state, and the loss
    make_eval_step        images, labels -> sums of losses and errors over 1 or 10 views (section 4.1)

The mesh is `data x column` (runtime/mesh.py). Each device passes its part of the batch through the columns
that it holds (network.py). The collectives over `column` are those of the network; over `data` there is one
mean of the gradients, and of batch normalisation's statistics if these are synchronized. Random numbers are
drawn from (seed, step, index of the example in the global batch), for dropout also from (layer, column), and
initial weights from (seed, layer, column). Nothing depends on the device that computes it, except statistics
of batch normalisation that are not synchronized.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from alexnet_jax import augment, optimizer
from alexnet_jax.network import AVERAGES, CLASSIFIER, RUNNING, Network, network_shapes
from alexnet_jax.runtime.mesh import AXIS, block_on_cpu, replicated


class TrainState(flax.struct.PyTreeNode):
    """All that decides how a run continues: arrays or, in an abstract state, their shapes and shardings."""

    step: Any  # updates made, int32
    params: dict
    opt_state: Any
    loss_sum: Any  # over the batches since the last validation, float32
    error_sum: Any  # of their top-1 errors, float32
    loss_count: Any  # number of these batches, int32
    low_sums: Any  # rounding errors of loss_sum and error_sum, float32 [2]


def _network(config, mesh: Mesh) -> Network:
    """Return the columns that one device of the mesh holds."""
    here = 1 if AXIS in mesh.axis_names else config.model.columns
    over = "data" if config.model.batch_norm.synchronized and mesh.shape["data"] > 1 else None
    return Network(ml_collections.FrozenConfigDict(config), here, over)


def with_precision(config, function):
    """Return `function` with all its products, including those of gradients, in `model.precision`."""
    if config.model.precision == "default":
        return function

    @functools.wraps(function)
    def precise(*args):
        with jax.default_matmul_precision(config.model.precision):
            return function(*args)

    return precise


def _on_mesh(config, mesh: Mesh, on_device, in_specs, out_specs):
    """Return `on_device` as a function of global arrays, in `model.precision`."""
    precise = with_precision(config, on_device)
    return jax.shard_map(precise, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def _compiler_options(config, mesh: Mesh) -> dict[str, Any] | None:
    """Return XLA's options for `mesh.deterministic` on GPUs; None elsewhere."""
    on_gpus = mesh.devices.flat[0].platform in ("gpu", "cuda")
    return {"xla_gpu_deterministic_ops": True} if on_gpus and config.mesh.deterministic else None


def _is_shared(path) -> bool:
    """Return whether all columns share a parameter: the classifier's bias."""
    return [key.key for key in path[-2:]] == [CLASSIFIER, "bias"]


def column_specs(tree, mesh: Mesh):
    """Return the PartitionSpec of each array of parameters, or of a state.

    Parameters and their velocities are split over their leading axis, the columns; other arrays are on every
    device.
    """

    def spec(path, _):
        is_param = getattr(path[-1], "key", None) in ("kernel", "bias", "scale", "shift", *RUNNING)
        return P(AXIS) if is_param and not _is_shared(path) and AXIS in mesh.axis_names else P()

    return jax.tree_util.tree_map_with_path(spec, tree)


def _init_params(config):
    """Draw the parameters, each column's from (seed, layer, column) (section 5)."""
    image = jnp.zeros((1, config.data.crop_size, config.data.crop_size, config.data.channels))
    root = jax.random.fold_in(jax.random.key(config.seed), 0)
    keys = jax.vmap(lambda column: jax.random.fold_in(root, column))(jnp.arange(config.model.columns))
    column = Network(ml_collections.FrozenConfigDict(config), here=1)
    params = jax.vmap(lambda key: column.init(key, image)["params"], axis_name=AXIS)(keys)
    return jax.tree_util.tree_map_with_path(lambda path, x: x[0] if _is_shared(path) else x[:, 0], params)


def new_state(params, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step, with these parameters."""
    # Each zero is a separate array: a step donates the buffers of its state, none of them twice.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        loss_sum=jnp.zeros(()),
        error_sum=jnp.zeros(()),
        loss_count=jnp.zeros((), jnp.int32),
        low_sums=jnp.zeros(2),
    )


def abstract_state(config, mesh: Mesh, tx: optax.GradientTransformation) -> TrainState:
    """Return the state's shapes, types and shardings without computing anything."""
    *_, params = network_shapes(ml_collections.FrozenConfigDict(config))
    state = jax.eval_shape(lambda params: new_state(params, tx), params)

    def placed(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, state, column_specs(state, mesh))


def init_state(config, mesh: Mesh, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step. No device ever holds more than its own columns."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh, tx))
    return jax.jit(lambda: new_state(_init_params(config), tx), out_shardings=shardings)()


def loss_and_gradients(config, mesh: Mesh):
    """Return (params, images, labels, step, statistics, colored=True) -> loss, gradients, (error, averages).

    images uint8 [batch, image_size, image_size, channels] and labels int32 [batch] are split over `data`.
    Gradients have the structure of params; the loss and the top-1 error are means over the global batch.
    `averages` are the new running averages of batch normalisation, {layer: {mean, variance}}, averaged over
    devices. `colored`, a scalar, turns the colour noise on or off.

    A device passes its part of the batch through the network in `micro_batches` parts, one after the other,
    and takes the mean of the results. Batch normalisation uses the statistics of one part.
    """
    network = _network(config, mesh)
    split = mesh.shape["data"] > 1  # otherwise a mean over `data` would copy all gradients

    def of_part(params, images, labels, examples, step, statistics, colored):
        group = config.augment.crop_group
        root = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), step)
        keys = jax.vmap(lambda example: jax.random.split(jax.random.fold_in(root, example)), out_axes=1)
        view_keys, dropout_keys = keys(examples)
        crop_keys, _ = keys(examples // group * group)
        views = augment.train_views(images, view_keys, statistics, config, crop_keys, colored)

        def loss(params):
            """Return the mean cross entropy over these examples (section 3.5), the error and averages."""
            outputs, new = network.apply({"params": params}, views, dropout_keys, mutable=[AVERAGES])
            logits, _ = outputs
            error = (logits.argmax(axis=1) != labels).mean()
            mean = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return mean, (error, new.get(AVERAGES, {}))

        (mean, others), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return mean, gradients, others

    def on_device(params, images, labels, step, statistics, colored):
        batch = images.shape[0]
        examples = (lax.axis_index("data") if split else 0) * batch + jnp.arange(batch)
        if split:  # without this cast JAX would sum the gradients over `data` one leaf at a time
            params = jax.tree.map(lambda x: lax.pcast(x, "data", to="varying"), params)

        def results_of(images, labels, examples):
            return of_part(params, images, labels, examples, step, statistics, colored)

        results = _mean_over_parts(results_of, config.micro_batches, images, labels, examples)
        return lax.pmean(results, "data") if split else results

    def on_mesh(params, images, labels, step, statistics, colored=True):
        specs, examples = column_specs(params, mesh), P("data") if split else P()
        averages = P(AXIS) if AXIS in mesh.axis_names else P()
        in_specs, out_specs = (specs, examples, examples, P(), P(), P()), (P(), specs, (P(), averages))
        run = _on_mesh(config, mesh, on_device, in_specs, out_specs)
        return run(params, images, labels, step, statistics, jnp.asarray(colored))

    return on_mesh


def _mean_over_parts(function, number: int, *arrays):
    """Return the mean of `function`'s results, trees of arrays, over `number` equal parts of `arrays`.

    Part i has the examples i, i + number, …: the same ones on every mesh, since `number` divides a device's.
    """
    if number == 1:
        return function(*arrays)
    parts = [x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1) for x in arrays]
    shapes = jax.eval_shape(function, *(x[0] for x in parts))

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(*part)), None

    total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, shapes), parts)
    return jax.tree.map(lambda x: x / number, total)


def make_train_step(config, mesh: Mesh, tx: optax.GradientTransformation):
    """Compile (state, images, labels, statistics) -> (next state, loss). The state is donated."""
    differentiate = loss_and_gradients(config, mesh)

    def step(state, images, labels, statistics):
        epochs, last = optax.tree.get(state.opt_state, "epochs"), config.augment.pca_epochs
        colored = last == -1 or epochs < last
        loss, gradients, (error, averages) = differentiate(
            state.params, images, labels, state.step, statistics, colored
        )
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optimizer.apply_updates(config, state.params, updates, epochs)
        params = params | {layer: params[layer] | new for layer, new in averages.items()}
        former, new = jnp.stack([state.loss_sum, state.error_sum]), jnp.stack([loss, error])
        sums, lost = _add(former, new)
        sums = *sums, state.loss_count + 1, state.low_sums + lost
        return TrainState(state.step + 1, params, opt_state, *sums), loss

    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh, tx))
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=_compiler_options(config, mesh),
    )


def _add(a, b):
    """Return the rounded sum of two arrays and its rounding error (Knuth's TwoSum)."""
    total = a + b
    rounded = total - a
    return total, (a - (total - rounded)) + (b - rounded)


def training_means(state: TrainState) -> tuple[float, float]:
    """Return the mean loss and top-1 error of the batches since the last validation; 0 without any."""
    sums = np.array(jax.device_get([state.loss_sum, state.error_sum]), np.float64)
    loss, error = (sums + jax.device_get(state.low_sums)) / max(int(state.loss_count), 1)
    return float(loss), float(error)


@jax.jit
def all_finite(params) -> Bool[Array, ""]:
    """Return whether every parameter is a finite number."""
    return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()


def make_eval_step(config, mesh: Mesh, views: int):
    """Return (params, images, labels, real, statistics) -> sums over the examples that are `real`.

    The sums are `loss`, `top1_errors`, `top5_errors` and `examples`. The softmax outputs of 1 or 10 views are
    averaged (section 4.1), and the loss is that of the average.
    """
    outputs, sums = make_view_outputs(config, mesh, views), make_top_k_sums(mesh)
    return lambda params, images, labels, real, statistics: block_on_cpu(
        mesh, sums(outputs(params, images, statistics), labels, real)
    )


def make_view_outputs(config, mesh: Mesh, views: int):
    """Return (params, images, statistics) -> a list of the log-softmax of each of 1 or 10 views.

    The program for one view is compiled, and run for each. In a compiled loop over views, XLA's convolutions
    would run on one core of a CPU.
    """
    output, places = make_view_output(config, mesh), augment.test_views(config, views)
    return lambda params, images, statistics: [
        block_on_cpu(mesh, output(params, images, np.array(view, np.int32), statistics)) for view in places
    ]


def make_view_output(config, mesh: Mesh):
    """Compile (params, images, view, statistics) -> the log-softmax of one of augment.test_views."""
    network = _network(config, mesh)

    def on_device(params, images, view, statistics):
        logits, _ = network.apply({"params": params}, augment.test_view(images, view, statistics, config))
        return jax.nn.log_softmax(logits)

    @functools.partial(jax.jit, compiler_options=_compiler_options(config, mesh))
    def log_softmax(params, images, view, statistics):
        in_specs = (column_specs(params, mesh), P("data"), P(), P())
        return _on_mesh(config, mesh, on_device, in_specs, P("data"))(params, images, view, statistics)

    return log_softmax


def mean_output(log_probs: list) -> Float[Array, "batch classes"]:
    """Return the logarithm of the mean of softmax outputs, of views and of networks alike."""
    return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs))


def make_top_k_sums(mesh: Mesh):
    """Compile (outputs, labels, real) -> the sums of `make_eval_step` for the mean of the outputs."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(log_probs, labels, real):
        log_probs = mean_output(log_probs)
        own = jnp.take_along_axis(log_probs, labels[:, None], axis=1)
        # If classes tie, the lower label comes first, as in argmax: a constant network scores by chance.
        # Classes that are not behind are ahead, so that a NaN output counts as an error.
        higher_label = jnp.arange(log_probs.shape[1]) > labels[:, None]
        behind = (log_probs < own) | ((log_probs == own) & higher_label)
        rank = log_probs.shape[1] - 1 - behind.sum(axis=1)
        values = {"loss": -own[:, 0], "top1_errors": rank >= 1, "top5_errors": rank >= 5, "examples": real}
        # `where`, not a product: padding may give any value, even NaN.
        return {name: jnp.where(real, value, 0).sum(dtype=jnp.float32) for name, value in values.items()}

    return sums


def make_activations(config, mesh: Mesh, names: tuple[str, ...] = ()):
    """Compile (params, views) -> logits and activations by name, of all columns, for `names` or all names.

    views: float [batch, crop, crop, channels], normalised. In the paper's network `conv2/pool` is
    [batch, 13, 13, 256], column 0's maps first. Dropout scales, as in evaluation.
    """
    network = _network(config, mesh)

    def on_device(params, views):
        logits, activations = network.apply({"params": params}, views)
        return logits, {name: jnp.stack(maps) for name, maps in activations.items()}

    @functools.partial(jax.jit, compiler_options=_compiler_options(config, mesh))
    def activations(params, views):
        columns = AXIS if AXIS in mesh.axis_names else None
        in_specs, out_specs = (column_specs(params, mesh), P("data")), (P("data"), P(columns, "data"))
        logits, own = _on_mesh(config, mesh, on_device, in_specs, out_specs)(params, views)
        joined = {name: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1) for name, x in own.items()}
        joined[CLASSIFIER] = logits
        return logits, {name: joined[name] for name in names or joined}

    return activations
