"""One column of the network (sections 3.1 to 3.5, figure 2), top to bottom like section 3.5.

`Column` is run once for each column under the axis name "column": by `shard_map` where each has a device of
its own, in step where one device has them all (parallel.py). Where the paper's columns meet (conv3, fc6,
fc7) it gathers the other column's maps; the last layer is split over its inputs and summed over the columns.
Its operations (response normalisation, pooling, dropout) are in layers.py, the arithmetic of its shapes in
shapes.py, all numbers in configs/paper.py.
"""

import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax
from jaxtyping import Array, Float, Key

from alexnet_jax import layers
from alexnet_jax.runtime.mesh import AXIS
from alexnet_jax.shapes import CLASSIFIER, LayerShape, layer_shapes

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
        pool, norm = model.pool, model.spatial_norm
        match op:
            case "activation":
                return ACTIVATIONS[model.activation](x)
            case "lrn":
                return self._response_norm(x)
            case "spatial_norm":
                return layers.spatial_norm(x, norm.size, norm.k, norm.alpha, norm.beta)
            case "pool":
                return layers.max_pool(x, pool.size, pool.stride, pool.ceil)
            case "average_pool":
                return layers.average_pool(x, pool.size, pool.stride, pool.ceil)
            case "dropout":
                keys = None if dropout_keys is None else self._layer_keys(name, dropout_keys)
                return layers.dropout(x, model.dropout_rate, keys, model.dropout_scale)

    def _layer_keys(self, name, keys):
        stream = zlib.crc32(name.encode())  # a layer's masks do not depend on which other layers there are
        column = lax.axis_index(AXIS)
        return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, stream), column))(keys)

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

    layer: LayerShape

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
