"""One column of the network (sections 3.1 to 3.5, figure 2), and the arithmetic of its shapes.

    Column          the network as one of its columns sees it; reads top to bottom like section 3.5
    layer_shapes    every layer's kernel, inputs, output, parameters and multiply-adds, computing nothing
    describe        these as a table

`Column` is run once for each column under the axis name "column": by `shard_map` where each has a device of
its own, in step where one device has them all (parallel.py). Where the paper's columns meet (conv3, fc6,
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
CLASSIFIER = "fc8"
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}
POOLS = {"pool": layers.max_pool, "average_pool": layers.average_pool}


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
        *hidden, classifier = layer_shapes(self.config)
        for layer in hidden:
            if layer.gather:
                x = lax.all_gather(x, AXIS, axis=-1, tiled=True)
            x = activations[layer.name] = Linear(layer, name=layer.name)(x)
            for op in layer.then:
                x = activations[f"{layer.name}/{op}"] = self._apply_op(op, layer.name, x, dropout_keys)
        return Linear(classifier, name=classifier.name)(x), activations

    def _apply_op(self, op, name, x, dropout_keys):
        model = self.config.model
        if op == "activation":
            return ACTIVATIONS[model.activation](x)
        if op == "lrn":
            return self._response_norm(x)
        if op == "spatial_norm":
            norm = model.spatial_norm
            return layers.spatial_norm(x, norm.size, norm.k, norm.alpha, norm.beta)
        if op in POOLS:
            return POOLS[op](x, model.pool.size, model.pool.stride, model.pool.ceil)
        if dropout_keys is None:
            return layers.dropout(x, model.dropout_rate, None, model.dropout_scale)
        stream = zlib.crc32(name.encode())  # a layer's masks do not depend on which other layers there are
        column = lax.axis_index(AXIS)
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, stream), column))(dropout_keys)
        return layers.dropout(x, model.dropout_rate, keys, model.dropout_scale)

    def _response_norm(self, x):
        lrn, maps = self.config.model.lrn, x.shape[-1]
        if lrn.across_columns:
            x = lax.all_gather(x, AXIS, axis=-1, tiled=True)
        x = layers.local_response_norm(x, lrn.size, lrn.k, lrn.alpha, lrn.beta)
        if lrn.across_columns:
            x = lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * maps, maps, axis=-1)
        return x


def _normal(std: float):
    """N(0, std^2), drawn flat, which XLA compiles 20 times faster for a CPU than a kernel's shape."""
    return lambda key, shape: std * jax.random.normal(key, (math.prod(shape),)).reshape(shape)


class Linear(nn.Module):
    """A convolution, or a fully connected layer over flattened maps: this column's share of the outputs.

    The classifier is split over its inputs instead: the columns' partial logits are summed, in float32, and
    one bias is shared.
    """

    layer: "LayerShape"

    @nn.compact
    def __call__(self, x):
        layer = self.layer
        kernel_shape = layer.kernel + (layer.inputs, layer.column_features)
        kernel = self.param("kernel", _normal(layer.init_std), kernel_shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.constant(layer.bias), (layer.column_features,))
        if layer.kernel:
            x = layers.conv(x, kernel, layer.stride, layer.padding)
        else:
            x = x.reshape(x.shape[0], -1) @ kernel
        if layer.name == CLASSIFIER:
            x = lax.psum(x.astype(jnp.float32), AXIS)
        return x + bias.astype(x.dtype)


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

    What is removed with a layer is its kernels and all that follows them but the pooling, which is left to
    the layer before: without conv5, fc6 still sees 6x6 maps.

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
    shape = (config.data.crop_size, config.data.crop_size, config.data.channels)
    shapes = []
    for name in names:
        spec, field, classifier = model.layers[name], f"model.layers.{name}", name == CLASSIFIER
        if not spec.get("enabled", True):
            pools = tuple(op for op in spec.then if op in POOLS)
            if shapes and pools:
                pooled = _after(config, pools, shape, name)
                shapes[-1] = dataclasses.replace(shapes[-1], then=shapes[-1].then + pools, pooled=pooled)
                shape = pooled
            continue
        gather = spec.get("gather", False) and model.gather
        if gather and not shapes:
            raise InputError(f"{field}.gather: True, but every column sees the whole image; use False")
        parts = 1 if gather or not shapes else columns  # of its input, of which the layer sees one

        features = model.num_classes if classifier else round(spec.features * width)
        if not classifier and (features == 0 or features % columns):
            raise InputError(
                f"{field}.features: {spec.features} times model.width {width:g} is {features} features, which"
                f" {columns} columns do not divide; choose a multiple of {columns}"
            )
        if "kernel" in spec:
            if len(shape) != 3:
                raise InputError(f"{field}: a convolution cannot follow a fully connected layer")
            kernel, stride, padding = (spec.kernel, spec.kernel), spec.stride, tuple(spec.padding)
            side = _positions(
                shape[0] + sum(padding), spec.kernel, stride,
                f"{field}.kernel: {spec.kernel} does not fit its {shape[0]}x{shape[1]} input; choose a larger"
                " data.crop_size or a smaller kernel",
            )  # fmt: skip
            inputs, output = shape[2] // parts, (side, side, features)
        else:
            kernel, stride, padding = (), 1, (0, 0)
            inputs, output = math.prod(shape) // parts, (features,)

        then = () if classifier else tuple(op for op in spec.then if op != "lrn" or model.lrn.enabled)
        shape = _after(config, then, output, name)

        # The classifier's inputs are split over the columns: together they see all of them, once.
        weights = math.prod(kernel) * inputs * features * (columns if classifier else 1)
        shapes.append(
            LayerShape(
                name=name, kernel=kernel, stride=stride, padding=padding, inputs=inputs, features=features,
                column_features=features if classifier else features // columns, gather=gather,
                init_std=spec.init_std, bias=spec.bias, then=then, output=output, pooled=shape,
                parameters=weights + features, multiply_adds=weights * math.prod(output[:-1]),
            )
        )  # fmt: skip
    return shapes


def _after(config, then: tuple[str, ...], shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape of a layer's output after what follows it."""
    pool = config.model.pool
    for op in then:
        if op not in ("activation", "dropout") and len(shape) != 3:
            raise InputError(
                f"model.layers.{name}.then: {op!r} works on maps, not after a fully connected layer"
            )
        if op in POOLS:
            side = _positions(
                shape[0], pool.size, pool.stride,
                f"model.pool.size: {pool.size} does not fit the {shape[0]}x{shape[1]} maps of {name};"
                " choose a larger data.crop_size", pool.ceil,
            )  # fmt: skip
            shape = (side, side, shape[2])
    return shape


def _positions(side: int, window: int, stride: int, misfit: str, ceil: bool = False) -> int:
    """How many windows lie along a side. Raises InputError(misfit) where not even one does."""
    if window > side:
        raise InputError(misfit)
    return (side - window + (stride - 1) * ceil) // stride + 1


def describe(config) -> str:
    """The network as a table; the last line is `total: N parameters, M multiply-adds`."""
    shapes, columns = layer_shapes(config), config.model.columns
    rows = [("layer", "kernel", "inputs", "output", "then", "after", "parameters", "multiply-adds")]
    for layer in shapes:
        kernel = "x".join(map(str, layer.kernel)) + f" / {layer.stride}" if layer.kernel else "full"
        joined = " (both columns)" if layer.gather and columns > 1 else ""
        inputs = layer.inputs * (columns if layer.name == CLASSIFIER else 1)
        then = [config.model.activation if op == "activation" else op for op in layer.then]
        rows.append(
            (layer.name, kernel, f"{inputs}{joined}", "x".join(map(str, layer.output)),
             ", ".join(then) or "softmax", "x".join(map(str, layer.pooled)), f"{layer.parameters:,}",
             f"{layer.multiply_adds:,}")
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:6], widths[:6], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[6:], widths[6:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    parameters, work = sum(s.parameters for s in shapes), sum(s.multiply_adds for s in shapes)
    return "\n".join([*lines, f"total: {parameters:,} parameters, {work:,} multiply-adds"])
