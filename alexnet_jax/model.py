"""One column of the network (sections 3.1 to 3.5, figure 2), and the arithmetic of its shapes.

    Column          the network as one of its columns sees it; reads top to bottom like section 3.5
    layer_shapes    every layer's kernel, inputs, output, parameters and multiply-adds, without jax
    describe        these as a table

`Column` is run once for each column under the axis name "column": by `shard_map` where each has a device of
its own, by `vmap` where one device has them all (parallel.py). Where the paper's columns meet (conv3, fc6,
fc7) it gathers the other column's maps; the last layer is split over its inputs and summed over the columns.
Layers (response normalisation, pooling, dropout) are in layers.py, all numbers in configs/paper.py.
"""

import dataclasses
import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax
from jaxtyping import Array, Float, Key

from alexnet_jax import layers
from alexnet_jax.errors import InputError

AXIS = "column"
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


class Column(nn.Module):
    """One of `model.columns` columns.

    Parameters are of this column alone: conv2/kernel is [5, 5, 48, 128] of the paper's network.
    """

    config: ml_collections.FrozenConfigDict

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channel"],
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """Logits (the same in all columns, float32), and this column's activations by name.

        `conv1` is the layer's linear output; `conv1/activation`, `conv1/lrn`, `conv1/pool` what follows it.
        Keys, one an example, mean training; None means test (section 4.2).
        """
        model = self.config.model
        x = x.astype(model.dtype)
        activations = {}
        for layer in layer_shapes(self.config)[:-1]:
            if layer.gather:
                x = lax.all_gather(x, AXIS, axis=-1, tiled=True)
            x = activations[layer.name] = Linear(layer, model.dtype, name=layer.name)(x)
            for op in layer.then:
                x = activations[f"{layer.name}/{op}"] = self._follow(op, layer.name, x, dropout_keys)
        return Classifier(layer_shapes(self.config)[-1], name="fc8")(x), activations

    def _follow(self, op, name, x, dropout_keys):
        model = self.config.model
        if op == "activation":
            return ACTIVATIONS[model.activation](x)
        if op == "lrn":
            return self._response_norm(x)
        if op == "pool":
            return layers.max_pool(x, model.pool.size, model.pool.stride)
        if dropout_keys is None:
            return layers.dropout(x, model.dropout_rate, None)
        stream = zlib.crc32(name.encode())  # a layer's masks do not depend on which other layers there are
        column = lax.axis_index(AXIS)
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, stream), column))(dropout_keys)
        return layers.dropout(x, model.dropout_rate, keys)

    def _response_norm(self, x):
        lrn = self.config.model.lrn
        if not lrn.across_columns:
            return layers.local_response_norm(x, lrn.size, lrn.k, lrn.alpha, lrn.beta)
        maps = x.shape[-1]
        everything = lax.all_gather(x, AXIS, axis=-1, tiled=True)
        everything = layers.local_response_norm(everything, lrn.size, lrn.k, lrn.alpha, lrn.beta)
        return lax.dynamic_slice_in_dim(everything, lax.axis_index(AXIS) * maps, maps, axis=-1)


def _normal(std: float):
    """N(0, std^2), drawn flat, which XLA compiles 20 times faster for a CPU than a kernel's shape."""
    return lambda key, shape: std * jax.random.normal(key, (math.prod(shape),)).reshape(shape)


class Linear(nn.Module):
    """A convolution, or a fully connected layer over flattened maps: this column's share of the outputs."""

    layer: "LayerShape"
    dtype: str

    @nn.compact
    def __call__(self, x):
        layer = self.layer
        kernel_shape = layer.kernel + (layer.inputs, layer.column_features)
        kernel = self.param("kernel", _normal(layer.init_std), kernel_shape)
        bias = self.param("bias", nn.initializers.constant(layer.bias), (layer.column_features,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        if layer.kernel:
            return layers.conv(x, kernel, layer.stride, layer.padding) + bias
        return x.reshape(x.shape[0], -1) @ kernel + bias


class Classifier(nn.Module):
    """The last layer, split over its inputs: the columns' partial logits are summed, one bias is shared."""

    layer: "LayerShape"

    @nn.compact
    def __call__(self, x):
        layer = self.layer
        kernel_shape = (layer.inputs, layer.column_features)
        kernel = self.param("kernel", _normal(layer.init_std), kernel_shape)
        bias = self.param("bias", nn.initializers.constant(layer.bias), (layer.column_features,))
        partial = x.reshape(x.shape[0], -1) @ kernel.astype(x.dtype)
        return lax.psum(partial.astype(jnp.float32), AXIS) + bias


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """One layer of a configuration. Features are of all columns, `column_features` of one."""

    name: str
    kernel: tuple[int, ...]  # (height, width), or () of a fully connected layer
    stride: int
    padding: tuple[int, int]
    inputs: int  # of one kernel: channels, or units
    features: int
    column_features: int
    gather: bool
    init_std: float
    bias: float
    then: tuple[str, ...]
    output: tuple[int, ...]  # of the linear layer, all columns: (height, width, features) or (features,)
    pooled: tuple[int, ...]  # of what follows it
    parameters: int
    multiply_adds: int  # for one image


def layer_shapes(config) -> list[LayerShape]:
    """The layers that are enabled, in order, the classifier last.

    Raises InputError where a layer does not fit its input or `model.columns` does not divide it.
    """
    narrow = _layer_shapes(config, config.model.width)
    wide = narrow if config.model.width == 1 else _layer_shapes(config, 1.0)
    # A kernel with fewer inputs gets larger weights, so that a scaled network keeps each layer's gain.
    return [
        dataclasses.replace(layer, init_std=layer.init_std * math.sqrt(full.inputs / layer.inputs))
        for layer, full in zip(narrow, wide, strict=True)
    ]


def _layer_shapes(config, width: float) -> list[LayerShape]:
    model, columns = config.model, config.model.columns
    # conv1, conv2, …, conv10, …, fc6, fc7, fc8
    names = sorted(model.layers, key=lambda name: (name.rstrip("0123456789"), int(name.lstrip("convf"))))
    specs = {name: model.layers[name] for name in names if model.layers[name].get("enabled", True)}
    shape = (config.data.crop_size, config.data.crop_size, config.data.channels)
    image = True  # all columns see the whole image
    shapes = []
    for name, spec in specs.items():
        classifier = name == "fc8"
        field = f"model.layers.{name}"
        if image and spec.get("gather"):
            raise InputError(f"{field}.gather: True, but every column sees the whole image; use False")
        own = 1 if image or spec.get("gather") else columns  # the part of its input that the layer sees
        features = model.num_classes if classifier else round(spec.features * width)
        if not classifier and (features == 0 or features % columns):
            raise InputError(
                f"{field}.features: {spec.features} times model.width {width:g} is {features} features, which"
                f" {columns} columns do not divide; choose a multiple of {columns}"
            )
        column_features = features if classifier else features // columns
        if "kernel" in spec:
            if len(shape) != 3:
                raise InputError(f"{field}: a convolution cannot follow a fully connected layer")
            inputs = shape[2] // own
            size = (shape[0] + sum(spec.padding) - spec.kernel) // spec.stride + 1
            if size < 1:
                raise InputError(
                    f"{field}.kernel: {spec.kernel} does not fit its {shape[0]}x{shape[1]} input; choose a"
                    " larger data.crop_size or a smaller kernel"
                )
            kernel, stride, padding = (spec.kernel, spec.kernel), spec.stride, tuple(spec.padding)
            output = (size, size, features)
        else:
            inputs = math.prod(shape) // own
            kernel, stride, padding = (), 1, (0, 0)
            output = (features,)
        then = () if classifier else tuple(op for op in spec.then if op != "lrn" or model.lrn.enabled)
        shape, image = output, False
        for op in then:
            if op in ("pool", "lrn") and len(shape) != 3:
                raise InputError(f"{field}.then: {op!r} works on maps, not after a fully connected layer")
            if op == "pool":
                size = (shape[0] - model.pool.size) // model.pool.stride + 1
                if size < 1:
                    raise InputError(
                        f"model.pool.size: {model.pool.size} does not fit the {shape[0]}x{shape[1]} maps of"
                        f" {name}; choose a larger data.crop_size"
                    )
                shape = (size, size, features)
        # The classifier's inputs are split over the columns: together they see all of them, once.
        fan_in = math.prod(kernel) * inputs
        weights = fan_in * features * (columns if classifier else 1)
        shapes.append(
            LayerShape(
                name=name, kernel=kernel, stride=stride, padding=padding, inputs=inputs, features=features,
                column_features=column_features, gather=spec.get("gather", False), init_std=spec.init_std,
                bias=spec.bias, then=then, output=output, pooled=shape, parameters=weights + features,
                multiply_adds=weights * math.prod(output[:-1]),
            )
        )  # fmt: skip
    return shapes


def describe(config) -> str:
    """The network as a table; the last line is `total: N parameters, M multiply-adds`."""
    titles = ("layer", "kernel", "inputs", "output", "then", "after", "parameters", "multiply-adds")
    rows = [titles]
    for layer in layer_shapes(config):
        kernel = "x".join(map(str, layer.kernel)) + f" / {layer.stride}" if layer.kernel else "full"
        joined = " (both columns)" if layer.gather and config.model.columns > 1 else ""
        total_inputs = layer.inputs * (config.model.columns if layer.name == "fc8" else 1)
        then = [config.model.activation if op == "activation" else op for op in layer.then]
        rows.append(
            (layer.name, kernel, f"{total_inputs}{joined}", "x".join(map(str, layer.output)),
             ", ".join(then) or "softmax", "x".join(map(str, layer.pooled)), f"{layer.parameters:,}",
             f"{layer.multiply_adds:,}")
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i >= 6 else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    shapes = layer_shapes(config)
    parameters, work = sum(s.parameters for s in shapes), sum(s.multiply_adds for s in shapes)
    lines.append(f"total: {parameters:,} parameters, {work:,} multiply-adds")
    return "\n".join(lines)
