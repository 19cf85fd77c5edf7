"""Random weights for the networks that others' code runs too, in their layout and in ours.

Theirs is PyTorch's, ONNX's and Caffe's: convolutions [outputs, inputs, height, width], full layers [outputs,
inputs], maps before height and width where a full layer sees maps. All numbers are written out here, from
the sources that FIDELITY.md names, and none is read from configs/.
"""

import functools
import importlib
import math

import ml_collections
import numpy as np

from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import make_activations
from helpers.arrays import assert_near

TWO_COLUMNS = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 256 * 6 * 6),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}
ONE_COLUMN = TWO_COLUMNS | {
    "conv2": (256, 96, 5, 5),
    "conv4": (384, 384, 3, 3),
    "conv5": (256, 384, 3, 3),
}
ONE_WEIRD_TRICK = TWO_COLUMNS | {
    "conv1": (64, 3, 11, 11),
    "conv2": (192, 64, 5, 5),
    "conv3": (384, 192, 3, 3),
    "conv4": (256, 384, 3, 3),
    "conv5": (256, 256, 3, 3),
}
NETWORKS = {  # kernels, columns, side of the input, its scale
    "paper": (TWO_COLUMNS, 2, 224, 100.0),
    "caffe": (TWO_COLUMNS, 2, 227, 100.0),
    "single_tower": (ONE_COLUMN, 1, 227, 100.0),
    "torchvision": (ONE_WEIRD_TRICK, 1, 224, 2.0),
}


def config_of(name, **fields):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.mesh.update(data=1, column=1)
    config.update_from_flattened_dict(fields)
    return ml_collections.FrozenConfigDict(config)


def draw_weights(shapes, seed=0):
    """{"conv1.weight": …, "conv1.bias": …}. Kernels keep the scale of what they see: every layer counts."""
    draw, weights = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        gain = 0.1 if name == "fc8" else 1.0  # no class is sure: every class has a gradient
        std = gain * math.sqrt(2 / math.prod(shape[1:]))
        weights[f"{name}.weight"] = draw.standard_normal(shape, np.float32) * np.float32(std)
        weights[f"{name}.bias"] = draw.normal(0, 0.5 * gain, shape[0]).astype(np.float32)
    return weights


def draw_views(name, number=2):
    _, _, side, scale = NETWORKS[name]
    return np.random.default_rng(1).uniform(-scale, scale, (number, side, side, 3)).astype(np.float32)


def to_ours(weights, columns):
    """Our params: {"conv2": {"kernel": [columns, 5, 5, 48, 128], "bias": [columns, 128]}, …}."""
    params = {}
    for name in (key.removesuffix(".weight") for key in weights if key.endswith(".weight")):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if name == "fc6":
            weight = weight.reshape(len(weight), -1, 6, 6)
        kernel = np.moveaxis(weight, (1, 0), (-2, -1))  # [(height, width,) inputs, outputs]
        if name == "fc6":
            kernel = kernel.reshape(-1, len(weight))
        if name == "fc8":  # split over its inputs; one bias
            kernel = kernel.reshape(columns, -1, len(weight))
        else:
            kernel = np.stack(np.split(kernel, columns, axis=-1))
            bias = bias.reshape(columns, -1)
        params[name] = {"kernel": np.ascontiguousarray(kernel), "bias": bias}
    return params


def to_theirs(params):
    """The opposite of `to_ours`."""
    weights = {}
    for name, layer in params.items():
        kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
        kernel = np.concatenate(list(kernel), axis=0 if name == "fc8" else -1)
        if name == "fc6":
            kernel = kernel.reshape(6, 6, -1, kernel.shape[-1])
        weight = np.moveaxis(kernel, (-2, -1), (1, 0))
        weights[f"{name}.weight"] = weight.reshape(len(weight), -1) if name == "fc6" else weight
        weights[f"{name}.bias"] = bias.reshape(-1)
    return weights


@functools.cache
def forward(config):
    return make_activations(config, make_mesh(config))


def our_activations(name, weights, views, config=None):
    """Every layer's, maps first, as others have them."""
    config = config or config_of(name)
    params = to_ours(weights, NETWORKS[name][1])
    _, activations = forward(config)(params, views)
    return {key: np.moveaxis(np.asarray(x), -1, 1) for key, x in activations.items()}


def assert_close(got, want, tolerance=1e-5):
    """Every tensor of a dictionary, by name."""
    assert set(got) == set(want)
    for name, value in want.items():
        assert_near(got[name], value, tolerance, name)
