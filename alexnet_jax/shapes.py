"""The arithmetic of the network's shapes, which computes nothing.

layer_shapes    every layer's kernel, inputs, output, parameters and multiply-adds
describe        these as a table
"""

import dataclasses
import math

from alexnet_jax.runtime.errors import InputError

CLASSIFIER = "fc8"
POOLING = ("pool", "average_pool")


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
            pools = tuple(op for op in spec.then if op in POOLING)
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
        if op in POOLING:
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
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, "<<<<<<>>", widths, strict=True))
        for row in rows
    ]
    parameters, work = sum(s.parameters for s in shapes), sum(s.multiply_adds for s in shapes)
    return "\n".join([*lines, f"total: {parameters:,} parameters, {work:,} multiply-adds"])
