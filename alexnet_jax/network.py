"""The network, top to bottom (sections 3.1 to 3.5, figure 2).

`maps` is a list with one array for each column that this device holds. The columns meet in two places only:

    gather          before conv3, fc6 and fc7 each column gets the maps of both
    sum_columns     the logits are the sum of the columns' partial logits

With one device per column the list has one entry, and both are collectives over the mesh axis `column`. On
one device the list has both columns, and they are a concatenation and a sum. A device computes a column in
the same way in both cases, so that on CPUs one device and two give the same bits. Plain convolutions, one
column after the other, are also 5 to 9 times faster on a CPU than the grouped ones of `vmap` over columns.

The formulas of the layers are in layers.py, all numbers in configs/paper.py.
"""

import functools
import math
import zlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax
from jaxtyping import Array, Float, Key

from alexnet_jax import layers
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.mesh import AXIS

CLASSIFIER = "fc8"
RUNNING = ("mean", "variance")  # averages of batch normalisation, stored with a layer's parameters
AVERAGES = "averages"  # the Flax collection of their new values in training
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}
POOLING = ("pool", "average_pool")

Columns = list[Float[Array, "batch ..."]]


class Hidden(NamedTuple):
    """A hidden layer of a configuration."""

    name: str
    spec: Any  # its part of model.layers
    then: tuple[str, ...]  # the operations after it


def hidden_layers(model) -> list[Hidden]:
    """Return the enabled hidden layers in order: conv1, conv2, …, conv10, …, fc6, fc7.

    Disabling a layer removes its weights and the operations after it, except pooling, which moves to the
    previous layer: without conv5, fc6 still sees 6x6 maps.
    """
    found: list[Hidden] = []
    for name in sorted(model.layers, key=lambda name: (name.rstrip("0123456789"), int(name.lstrip("convf")))):
        spec = model.layers[name]
        if name == CLASSIFIER:
            continue
        then = tuple(op for op in spec.then if op != "lrn" or model.lrn.enabled)
        if spec.enabled:
            found.append(Hidden(name, spec, then))
        elif found:
            last = found.pop()
            found.append(last._replace(then=last.then + tuple(op for op in then if op in POOLING)))
    return found


def init_stds(model) -> dict[str, float]:
    """Return the standard deviation of every layer's initial weights (section 5).

    A scaled-down network keeps each layer's gain: `init_std` is multiplied by the square root of the fan-in
    at width 1 over the fan-in at `model.width`.
    """
    stds, gain = {}, 1.0
    for name, spec, _ in hidden_layers(model):
        stds[name] = spec.init_std * gain
        gain = math.sqrt(spec.features / max(1, round(spec.features * model.width)))
    return stds | {CLASSIFIER: model.layers[CLASSIFIER].init_std * gain}


@functools.lru_cache(maxsize=4)  # a start asks several times, and tracing takes 0.2 s
def network_shapes(
    config: ml_collections.FrozenConfigDict,
) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]], Any]:
    """Return the shapes of an image, of its activations with all columns joined, and of the parameters.

    Nothing is computed. Raises InputError for a layer that does not fit its input.
    """
    data, network = config.data, Network(config, config.model.columns)
    shape = data.crop_size, data.crop_size, data.channels
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    (logits, activations), variables = jax.eval_shape(
        lambda image: network.init_with_output(jax.random.key(0), image), image
    )
    own = activations | {CLASSIFIER: [logits]}
    joined = {name: (*maps[0].shape[1:-1], maps[0].shape[-1] * len(maps)) for name, maps in own.items()}
    return shape, joined, variables["params"]


class Network(nn.Module):
    """The columns that one device holds: all of `model.columns`, or one of them, inside `shard_map`.

    Parameters carry a leading axis of the columns here: conv2/kernel is [2, 5, 5, 48, 128] on one device and
    [1, 5, 5, 48, 128] on each of two. The classifier's bias, [classes], is shared.

    A layer with "batch_norm" in its `then` also has `scale` and `shift`, and the running averages `mean`
    and `variance`. Training does not normalise by the averages; it puts their new values into the collection
    AVERAGES.
    """

    config: ml_collections.FrozenConfigDict
    here: int
    batch_axis: str | None = None  # axis of the mesh for batch normalisation's statistics

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channel"],
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Columns]]:
        """Return the logits, float32, and the activations of the columns here by name.

        `conv1` is the layer's linear output; `conv1/activation`, `conv1/lrn` and `conv1/pool` follow it.
        `dropout_keys`, one per example, selects training; None selects test (section 4.2). Raises InputError
        for a layer that does not fit its input.
        """
        model = self.config.model
        maps = [images.astype(model.dtype)] * self.here
        activations, stds = {}, init_stds(model)
        for name, spec, then in hidden_layers(model):
            if spec.gather and model.gather:
                if not activations:
                    field = f"model.layers.{name}.gather"
                    raise InputError(f"{field}: expected False, got True; every column sees the whole image")
                maps = self.gather(maps)
            layer = Linear(spec, self.features(name, spec), stds[name], "batch_norm" in then, name=name)
            linear, norms = layer(maps)
            maps = activations[name] = linear
            for op in then:
                with jax.named_scope(f"{name}/{op}"):
                    if op == "batch_norm":
                        maps = self.normalize(name, maps, norms, training=dropout_keys is not None)
                    else:
                        maps = self.after(op, name, maps, dropout_keys)
                activations[f"{name}/{op}"] = maps
            if self.fuses(then):
                with jax.named_scope(f"{name}/pool"):
                    maps = activations[f"{name}/pool"] = [self.relu_norm_pool(x) for x in linear]
        spec = model.layers[CLASSIFIER]
        classifier = Classifier(spec, model.num_classes, stds[CLASSIFIER], name=CLASSIFIER)
        return classifier(maps, self.sum_columns), activations

    @property
    def split(self) -> bool:
        """Return whether other columns are on other devices."""
        return self.here < self.config.model.columns

    def gather(self, maps: Columns) -> Columns:
        """Give each column the maps of all, those of column 0 first (section 3.5)."""
        joined = jnp.concatenate(maps, axis=-1)
        return [lax.all_gather(joined, AXIS, axis=-1, tiled=True) if self.split else joined] * self.here

    def sum_columns(self, parts: Columns) -> Array:
        """Return the sum over all columns."""
        total: Any = sum(parts)
        return lax.psum(total, AXIS) if self.split else total

    def column(self, place: int) -> Array | int:
        """Return the number of the column at a position in the list."""
        return lax.axis_index(AXIS) if self.split else place

    def features(self, name: str, spec) -> int:
        """Return the number of features of one column of a hidden layer."""
        model = self.config.model
        features = round(spec.features * model.width)
        if features == 0 or features % model.columns:
            raise InputError(
                f"model.layers.{name}.features: {spec.features} times model.width {model.width:g} is"
                f" {features} features, which {model.columns} columns do not divide; choose a multiple of"
                f" {model.columns}"
            )
        return features // model.columns

    def after(self, op: str, name: str, maps: Columns, dropout_keys) -> Columns:
        """Apply one operation that follows the layer `name`."""
        model = self.config.model
        pool, lrn, norm = model.pool, model.lrn, model.spatial_norm
        if op not in ("activation", "dropout") and maps[0].ndim != 4:
            raise InputError(
                f"model.layers.{name}.then: {op!r} needs maps, and cannot follow a fully connected layer"
            )
        if op in POOLING and pool.size > maps[0].shape[1]:
            side = maps[0].shape[1]
            raise InputError(
                f"model.pool.size: {pool.size} does not fit the {side}x{side} maps of {name}; choose a larger"
                " data.crop_size"
            )
        match op:
            case "activation":
                return [ACTIVATIONS[model.activation](x) for x in maps]
            case "lrn" if lrn.across_columns:
                return self.norm_across_columns(maps)
            case "lrn":
                return [layers.local_response_norm(x, lrn.size, lrn.k, lrn.alpha, lrn.beta) for x in maps]
            case "spatial_norm":
                return [layers.spatial_norm(x, norm.size, norm.k, norm.alpha, norm.beta) for x in maps]
            case "pool":
                return [layers.max_pool(x, pool.size, pool.stride, pool.ceil) for x in maps]
            case "average_pool":
                return [layers.average_pool(x, pool.size, pool.stride, pool.ceil) for x in maps]
            case "dropout":
                keys = [self.layer_keys(name, place, dropout_keys) for place in range(self.here)]
                rate, scale = model.dropout_rate, model.dropout_scale
                return [layers.dropout(x, rate, key, scale) for x, key in zip(maps, keys, strict=True)]
        raise ValueError(op)

    def fuses(self, then: tuple[str, ...]) -> bool:
        """Return whether `mesh.fused` replaces these operations.

        The plain ones are then computed only if their own activations are used.
        """
        model = self.config.model
        plain = model.lrn.across_columns or model.pool.ceil or model.activation != "relu"
        plain |= model.pool.size > 15  # the kernel keeps a place in the window in one byte
        return self.config.mesh.fused and then == ("activation", "lrn", "pool") and not plain

    def relu_norm_pool(self, x: Array) -> Array:
        """Apply ReLU, response normalisation and pooling at once to one column's maps."""
        lrn, pool = self.config.model.lrn, self.config.model.pool
        return layers.relu_norm_pool(x, (lrn.size, lrn.k, lrn.alpha, lrn.beta), (pool.size, pool.stride))

    def normalize(self, name: str, maps: Columns, norms: dict[str, Array], training: bool) -> Columns:
        """Normalise by the batch's statistics in training, and by their running averages at test.

        Each column has its own statistics. As in PyTorch, the running average is of unbiased variances.
        """
        fields, averages = self.config.model.batch_norm, {name: norms[name] for name in RUNNING}
        used = averages
        if training:
            found = [layers.moments(x, self.batch_axis) for x in maps]
            used = dict(zip(RUNNING, map(jnp.stack, zip(*found, strict=True)), strict=True))
            number = maps[0].size // maps[0].shape[-1]
            if self.batch_axis:
                number *= lax.axis_size(self.batch_axis)
            if number == 1:
                raise InputError(
                    f"model.layers.{name}.then: batch_norm has one value per unit to normalise; lower"
                    " micro_batches, or raise batch_size"
                )
            new = used | {"variance": used["variance"] * (number / (number - 1))}
            mixed = {key: fields.momentum * averages[key] + (1 - fields.momentum) * new[key] for key in new}
            self.put_variable(AVERAGES, name, mixed)
        each = used["mean"], used["variance"], norms["scale"], norms["shift"]
        return [
            layers.batch_norm(x, mean, variance, scale, shift, fields.epsilon)
            for x, mean, variance, scale, shift in zip(maps, *each, strict=True)
        ]

    def norm_across_columns(self, maps: Columns) -> Columns:
        """Normalise over the maps of all columns, and keep each column's own."""
        lrn, own = self.config.model.lrn, maps[0].shape[-1]

        def of_column(column_and_maps):
            column, x = column_and_maps
            x = layers.local_response_norm(x, lrn.size, lrn.k, lrn.alpha, lrn.beta)
            return lax.dynamic_slice_in_dim(x, column * own, own, axis=-1)

        joined = self.gather(maps)
        if self.split:
            return [of_column((self.column(0), joined[0]))]
        # In a loop: outside one, XLA adds the columns' gradients in the kernel that computes them, which
        # rounds differently from two devices.
        return list(lax.map(of_column, (jnp.arange(self.here), jnp.stack(joined))))

    def layer_keys(self, name: str, place: int, keys):
        """Return the keys of a layer's masks in one column; they do not depend on the other layers."""
        if keys is None:
            return None
        stream, column = zlib.crc32(name.encode()), self.column(place)
        return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, stream), column))(keys)


def normal(std: float):
    """Return an initializer N(0, std^2). XLA compiles its flat draw 20 times faster on a CPU."""
    return lambda key, shape: std * jax.random.normal(key, (math.prod(shape),)).reshape(shape)


class Linear(nn.Module):
    """A convolution, or a fully connected layer over flattened maps, for every column here."""

    spec: Any
    features: int  # of one column
    std: float
    normalized: bool  # whether batch normalisation follows

    @nn.compact
    def __call__(self, maps: Columns) -> tuple[Columns, dict[str, Array]]:
        """Return each column's share of the outputs, and the parameters of batch normalisation.

        The latter are scale, shift, mean and variance, each [columns, features]; {} if not `normalized`.
        """
        spec, window = self.spec, ()
        if "kernel" in spec:
            window = (spec.kernel, spec.kernel)
            self.check_fits(maps[0].shape[1:3])
        else:
            maps = [x.reshape(len(x), -1) for x in maps]
        shape = (len(maps), *window, maps[0].shape[-1], self.features)
        kernels = self.param("kernel", normal(self.std), shape)
        biases = self.param("bias", nn.initializers.constant(spec.bias), (len(maps), self.features))

        def of_column(x, kernel, bias):
            kernel = kernel.astype(x.dtype)
            x = layers.conv(x, kernel, spec.stride, tuple(spec.padding)) if window else x @ kernel
            return x + bias.astype(x.dtype)

        starts = {"scale": 1.0, "shift": 0.0, "mean": 0.0, "variance": 1.0} if self.normalized else {}
        norms = {
            name: self.param(name, nn.initializers.constant(start), (len(maps), self.features))
            for name, start in starts.items()
        }
        return [of_column(*column) for column in zip(maps, kernels, biases, strict=True)], norms

    def check_fits(self, sides: tuple[int, ...]) -> None:
        """Raise InputError if the layer's kernel does not fit maps with these sides."""
        kernel = self.spec.kernel
        if kernel > sides[0] + sum(self.spec.padding):
            raise InputError(
                f"model.layers.{self.name}.kernel: {kernel} does not fit its {sides[0]}x{sides[1]} input;"
                " choose a larger data.crop_size or a smaller kernel"
            )


class Classifier(nn.Module):
    """The last layer, split over its inputs: the columns' partial logits are summed, and share one bias."""

    spec: Any
    classes: int
    std: float

    @nn.compact
    def __call__(self, maps: Columns, sum_columns) -> Float[Array, "batch classes"]:
        """Return the logits, float32, which are the same in all columns."""
        maps = [x.reshape(len(x), -1) for x in maps]
        kernels = self.param("kernel", normal(self.std), (len(maps), maps[0].shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.constant(self.spec.bias), (self.classes,))
        parts = [(x @ k.astype(x.dtype)).astype(jnp.float32) for x, k in zip(maps, kernels, strict=True)]
        return sum_columns(parts) + bias
