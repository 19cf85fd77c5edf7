"""The network as a table: the sizes of every layer, for `describe`, imports of weights and early checks.

The sizes are the shapes of the network itself (`network.network_shapes`).
"""

import math
from typing import Any, NamedTuple

import ml_collections

from alexnet_jax.network import CLASSIFIER, Hidden, hidden_layers, network_shapes


class Row(NamedTuple):
    """The sizes of a layer, all columns together."""

    name: str
    spec: Any  # its part of model.layers
    then: tuple[str, ...]  # the operations after it
    kernel: tuple[int, ...]  # the parameter: [columns, (height, width,) inputs, outputs of one column]
    bias: tuple[int, ...]  # [columns, outputs of one column]; the classifier's, shared, is [classes]
    norm: tuple[int, ...]  # batch normalisation's scale and shift: [2, columns, outputs of one], or [0]
    input: tuple[int, ...]  # (height, width, channels) or (units,)
    output: tuple[int, ...]  # of the linear layer
    after: tuple[int, ...]  # of the operations after it

    @property
    def parameters(self) -> int:
        """Return the number of weights and biases, and of batch normalisation's scales and shifts."""
        return math.prod(self.kernel) + math.prod(self.bias) + math.prod(self.norm)

    @property
    def multiply_adds(self) -> int:
        """Return the number of multiply-adds for one image."""
        return math.prod(self.kernel) * math.prod(self.output[:-1])


def layer_table(config) -> list[Row]:
    """Return the sizes of every layer, the classifier's last, from the network's own shapes.

    Raises InputError for a layer that does not fit its input or that `model.columns` does not divide.
    """
    image, joined, params = network_shapes(ml_collections.FrozenConfigDict(config))
    rows: list[Row] = []
    classifier = Hidden(CLASSIFIER, config.model.layers[CLASSIFIER], ())
    for name, spec, then in [*hidden_layers(config.model), classifier]:
        kernel, bias = (params[name][part].shape for part in ("kernel", "bias"))
        norm = (2, *params[name]["scale"].shape) if "scale" in params[name] else (0,)
        before = rows[-1].after if rows else image
        after = f"{name}/{then[-1]}" if then else name
        rows.append(Row(name, spec, then, kernel, bias, norm, before, joined[name], joined[after]))
    return rows


def activation_shapes(config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every activation of one image by name, all columns together."""
    return network_shapes(ml_collections.FrozenConfigDict(config))[1]


def describe(config) -> str:
    """Return the network as a table; the last line is `total: N parameters, M multiply-adds`."""
    model, table = config.model, layer_table(config)

    def cells(row: Row) -> tuple[str, ...]:
        columns, *window, inputs, _ = row.kernel
        kernel = f"{window[0]}x{window[1]} / {row.spec.stride}" if window else "full"
        seen = inputs * columns if row.name == CLASSIFIER else inputs
        both = " (both columns)" * (columns > 1 and model.gather and row.spec.get("gather", False))
        output, after = ("x".join(map(str, shape)) for shape in (row.output, row.after))
        then = ", ".join(model.activation if op == "activation" else op for op in row.then) or "softmax"
        numbers = f"{row.parameters:,}", f"{row.multiply_adds:,}"
        return row.name, kernel, f"{seen}{both}", output, then, after, *numbers

    head = ("layer", "kernel", "inputs", "output", "then", "after", "parameters", "multiply-adds")
    lines = [head, *map(cells, table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, "<<<<<<>>", widths, strict=True))
        for line in lines
    ]
    parameters, work = sum(row.parameters for row in table), sum(row.multiply_adds for row in table)
    return "\n".join([*text, f"total: {parameters:,} parameters, {work:,} multiply-adds"])
