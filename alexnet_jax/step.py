"""Where the columns run: the mesh, and the training and evaluation steps on it.

The mesh is `data x column`. `data` splits the batch; `column` puts each of the network's columns on a device
of its own (section 3.2). The network is the same `model.Column` everywhere:

    TrainState            all that decides how a run goes on
    make_mesh             devices as config.mesh asks; an axis `column` only where it splits the columns
    on_columns            runs one column's function: all columns in step, or as this device's part
    init_state            parameters and optimizer, each column's drawn from (seed, layer, column) (section 5)
    loss_and_gradients    views of the images, the loss, one mean of the gradients over `data` (shard_map)
    train_step            state, images, labels -> new state and the loss; section 5's update
    eval_step             images, labels -> sums of losses and errors over 1 or 10 views (section 4.1):
                          view_outputs, then score, which takes those of several networks too
    forward               views -> logits and every layer's activations by name

Parameters of a column are stacked on a leading axis: conv2/kernel is [2, 5, 5, 48, 128]. Only the
classifier's bias is shared by all columns. Collectives: over `column`, all_gather of the maps that meet and
psum of the logits (model.py); over `data`, one mean of the gradients (here).
"""

import functools

import flax.struct
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from alexnet_jax import augment, optimizer
from alexnet_jax.model import AXIS, Column
from alexnet_jax.runtime.mesh import block_on_cpu, replicated


class TrainState(flax.struct.PyTreeNode):
    """All that decides how a run goes on."""

    step: Int[Array, ""]  # updates made
    params: dict
    opt_state: dict
    loss_sum: Float[Array, ""]  # of the batches since the last validation
    error_sum: Float[Array, ""]  # of their top-1 errors
    loss_count: Int[Array, ""]  # their number


def column_axes(params):
    """For each parameter the axis of its columns: 0, or None for the classifier's bias, which they share."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: None if [key.key for key in path[-2:]] == ["fc8", "bias"] else 0, params
    )


def _split(mesh: Mesh) -> bool:
    """Whether each device holds one column, not all."""
    return AXIS in mesh.axis_names


def _specs(params, mesh: Mesh):
    # The map over `params` keeps None, the axis of what is shared, from being taken for an empty tree.
    return jax.tree.map(
        lambda _, axis: P(AXIS) if axis == 0 and _split(mesh) else P(), params, column_axes(params)
    )


def on_columns(config, mesh: Mesh, function):
    """`function(params, *args) -> (shared, own)` of one column, run on all columns, inside shard_map.

    The result is for stacked params: `shared` as it is (it must be the same in all columns), and `own`
    with a leading axis of the columns that are on this device.
    """

    def of_column(params, column):
        return jax.tree.map(lambda x, axis: x if axis is None else x[column], params, column_axes(params))

    def this_device(params, *args):
        args = jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), args)
        shared, own = function(of_column(params, 0), *args)
        return shared, jax.tree.map(lambda x: x[None], own)

    def all_here(params, *args):
        columns = range(config.model.columns)
        results = _in_step(function, [(of_column(params, column), *args) for column in columns])
        return results[0][0], jax.tree.map(lambda *own: jnp.stack(own), *[own for _, own in results])

    return this_device if _split(mesh) else all_here


def _in_step(function, columns: list[tuple]) -> list:
    """`function(*args)` for the args of each column, its collectives over AXIS taken among them.

    The program of one column is traced once. Each of its operations is then done for one column after the
    other, and each collective for all at once. vmap of the whole would be shorter; but it makes
    grouped convolutions, 5 to 9 times slower on a CPU, and sums in another order. This way a device does for
    each column exactly what it would do for that column alone: on a CPU (1, 1) and (1, 2) give the same bits.
    """
    size = len(columns)
    jaxpr, shape = jax.make_jaxpr(function, axis_env=[(AXIS, size)], return_shape=True)(*columns[0])
    inputs = [*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars]
    values = [dict(zip(inputs, [*jaxpr.consts, *jax.tree.leaves(args)], strict=True)) for args in columns]

    def read(column, atom):
        return atom.val if isinstance(atom, jax.extend.core.Literal) else values[column][atom]

    for eqn in jaxpr.jaxpr.eqns:
        operands = [[read(column, atom) for atom in eqn.invars] for column in range(size)]
        if any(getattr(effect, "name", None) == AXIS for effect in eqn.effects):
            outputs = _collective(eqn, operands)
        else:
            params = eqn.primitive.get_bind_params(eqn.params)
            outputs = [eqn.primitive.bind(*own, **params) for own in operands]
            if not eqn.primitive.multiple_results:
                outputs = [[out] for out in outputs]
        for column in range(size):
            values[column].update(zip(eqn.outvars, outputs[column], strict=True))
    treedef = jax.tree.structure(shape)
    return [treedef.unflatten([read(c, atom) for atom in jaxpr.jaxpr.outvars]) for c in range(size)]


def _collective(eqn, operands: list[list]) -> list[list]:
    """What each column gets of a collective over AXIS, given what each one gives."""
    size = len(operands)
    match eqn.primitive.name:
        case "all_gather" if eqn.params["tiled"]:
            joined = jnp.concatenate([x for (x,) in operands], eqn.params["all_gather_dimension"])
            return [[joined]] * size
        case "psum":
            return [[sum(x for (x,) in operands)]] * size
        case "axis_index":
            return [[jnp.int32(column)] for column in range(size)]
    raise NotImplementedError(eqn.primitive.name)


def _shard_map(mesh: Mesh, function, in_specs, out_specs):
    # Checking which values vary over the mesh, jax 0.10 refuses collectives over any other axis. Without a
    # mesh axis `column` no derivative passes through a collective of the mesh, and nothing needs the check.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=_split(mesh))


def _init_params(config):
    """Stacked parameters; a column's are drawn from (seed, layer, column) (section 5)."""
    image = jnp.zeros((1, config.data.crop_size, config.data.crop_size, config.data.channels))
    root = jax.random.fold_in(jax.random.key(config.seed), 0)
    keys = jax.vmap(lambda column: jax.random.fold_in(root, column))(jnp.arange(config.model.columns))
    stacked = jax.vmap(lambda key: Column(config).init(key, image)["params"], axis_name=AXIS)(keys)
    return jax.tree.map(lambda x, axis: x[0] if axis is None else x, stacked, column_axes(stacked))


def abstract_state(config, mesh: Mesh, rule: optax.GradientTransformation) -> TrainState:
    """Shapes, types and shardings of the state, computing nothing."""
    state = jax.eval_shape(lambda: new_state(_init_params(config), rule))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(state.params, mesh))
    everywhere = replicated(mesh)
    like_params = optax.tree_map_params(
        rule, lambda _, s: s, state.opt_state, shardings, transform_non_params=lambda _: everywhere
    )
    shardings = TrainState(everywhere, shardings, like_params, everywhere, everywhere, everywhere)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def new_state(params, rule: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with these parameters."""
    # Each zero is an array of its own: a step gives away the buffers of its state, none of them twice.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=rule.init(params),
        loss_sum=jnp.zeros(()),
        error_sum=jnp.zeros(()),
        loss_count=jnp.zeros((), jnp.int32),
    )


def init_state(config, mesh: Mesh, rule: optax.GradientTransformation) -> TrainState:
    """The state before the first step; no device ever holds more than its own columns."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh, rule))
    return jax.jit(lambda: new_state(_init_params(config), rule), out_shardings=shardings)()


def loss_and_gradients(config, mesh: Mesh):
    """(params, images, labels, step, statistics, coloured=True) -> the global batch's loss, gradients, error.

    images uint8 [batch, image_size, image_size, channels], labels int32 [batch], both split over `data`;
    gradients like params; the error is top-1's. All randomness is drawn from (seed, step, index in the global
    batch), dropout also from (layer, column). A scalar `coloured` of False turns the colour noise off.
    """

    def logits(params, views, dropout_keys):
        return Column(config).apply({"params": params}, views, dropout_keys)[0], ()

    run = on_columns(config, mesh, logits)
    split = mesh.shape["data"] > 1  # where it is not, a mean over `data` would copy all gradients

    def local(params, images, labels, step, statistics, coloured):
        batch, group = images.shape[0], config.augment.crop_group
        root = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), step)

        def keys(examples):
            return jax.vmap(lambda example: jax.random.split(jax.random.fold_in(root, example)), 0, 1)(
                examples
            )

        examples = (lax.axis_index("data") if split else 0) * batch + jnp.arange(batch)
        view_keys, dropout_keys = keys(examples)
        crop_keys, _ = keys(examples // group * group)
        views = augment.train_views(images, view_keys, statistics, config, crop_keys, coloured)
        if split:  # Without this cast jax would sum the gradients over `data` leaf by leaf as it meets them.
            params = jax.tree.map(lambda x: lax.pcast(x, "data", to="varying"), params)

        def loss(params):
            """The mean cross entropy over this device's examples (section 3.5), the same in both columns."""
            logits, _ = run(params, views, dropout_keys)
            error = (logits.argmax(axis=1) != labels).mean()
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), error

        (mean, error), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        results = mean, gradients, error
        return lax.pmean(results, "data") if split else results

    def whole(params, images, labels, step, statistics, coloured=True):
        specs, examples = _specs(params, mesh), P("data") if split else P()
        in_specs, out_specs = (specs, examples, examples, P(), P(), P()), (P(), specs, P())
        run = _shard_map(mesh, local, in_specs, out_specs)
        return run(params, images, labels, step, statistics, jnp.asarray(coloured))

    return whole


def make_train_step(config, mesh: Mesh, rule: optax.GradientTransformation):
    """Compiled (state, images, labels, statistics) -> (the state after it, loss). The state is donated."""
    differentiate = loss_and_gradients(config, mesh)

    def step(state, images, labels, statistics):
        epochs, last = optax.tree.get(state.opt_state, "epochs"), config.augment.pca_epochs
        coloured = last == -1 or epochs < last
        loss, gradients, error = differentiate(state.params, images, labels, state.step, statistics, coloured)
        updates, opt_state = rule.update(gradients, state.opt_state, state.params)
        params = optimizer.apply_updates(config, state.params, updates, epochs)
        sums = state.loss_sum + loss, state.error_sum + error, state.loss_count + 1
        return TrainState(state.step + 1, params, opt_state, *sums), loss

    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh, rule))
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


@jax.jit
def all_finite(params) -> Bool[Array, ""]:
    return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()


def make_eval_step(config, mesh: Mesh, views: int):
    """(params, images, labels, real, statistics) -> sums over the examples that are `real`.

    `loss`, `top1_errors`, `top5_errors`, `examples`. The softmax outputs of 1 or 10 views are averaged
    (section 4.1); the loss is of that average.
    """
    outputs, sums = make_view_outputs(config, mesh, views), make_top_k_sums(mesh)
    return lambda params, images, labels, real, statistics: sums(
        outputs(params, images, statistics), labels, real
    )


def make_view_outputs(config, mesh: Mesh, views: int):
    """(params, images, statistics) -> the logarithm of the softmax output of each of 1 or 10 views, a list.

    One view is compiled, and run for each: in a loop of the compiled program XLA's convolutions would run on
    one core of a CPU.
    """
    run = on_columns(
        config, mesh, lambda params, views: (Column(config).apply({"params": params}, views)[0], ())
    )
    places = [np.array(view, np.int32) for view in augment.test_views(config, views)]

    def local(params, images, view, statistics):
        logits, _ = run(params, augment.test_view(images, view, statistics, config))
        return jax.nn.log_softmax(logits)

    @jax.jit
    def log_softmax(params, images, view, statistics):
        in_specs = (_specs(params, mesh), P("data"), P(), P())
        return _shard_map(mesh, local, in_specs, P("data"))(params, images, view, statistics)

    return lambda params, images, statistics: [
        block_on_cpu(mesh, log_softmax(params, images, view, statistics)) for view in places
    ]


def mean_output(log_probs: list) -> Float[Array, "batch classes"]:
    """The logarithm of the mean of softmax outputs, of views and of networks alike."""
    return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs))


def make_top_k_sums(mesh: Mesh):
    """Compiled (outputs, labels, real) -> eval_step's sums, of the mean of the outputs."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(log_probs, labels, real):
        log_probs = mean_output(log_probs)
        own = jnp.take_along_axis(log_probs, labels[:, None], axis=1)
        # Where classes tie, the lower label comes first, as in argmax: a constant network scores by chance.
        # What is not behind is ahead, so that an output that is not a number is an error.
        higher_label = jnp.arange(log_probs.shape[1]) > labels[:, None]
        behind = (log_probs < own) | ((log_probs == own) & higher_label)
        rank = log_probs.shape[1] - 1 - behind.sum(axis=1)
        values = {"loss": -own[:, 0], "top1_errors": rank >= 1, "top5_errors": rank >= 5, "examples": real}
        # `where`, not a product: padding may give anything, NaN included.
        return {name: jnp.where(real, value, 0).sum(dtype=jnp.float32) for name, value in values.items()}

    return sums


def make_activations(config, mesh: Mesh):
    """Compiled (params, views) -> logits and the activations of every layer by name, of all columns.

    views: float [batch, crop, crop, channels], normalized. `conv2/pool` is [batch, 13, 13, 256] of the
    paper's network, column 0's maps first. Evaluation mode: dropout scales.
    """
    run = on_columns(config, mesh, lambda params, views: Column(config).apply({"params": params}, views))

    def whole(params, views):
        out_specs = (P("data"), P(AXIS, "data") if _split(mesh) else P(None, "data"))
        logits, own = _shard_map(mesh, run, (_specs(params, mesh), P("data")), out_specs)(params, views)
        joined = {name: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1) for name, x in own.items()}
        return logits, {**joined, "fc8": logits}

    return jax.jit(whole)
