"""Convert names and layouts of weights between PyTorch or Caffe and this project.

A kernel of this project is [columns, height, width, inputs, outputs of one column], and fully connected
layers have height * width * inputs as one axis. In PyTorch and Caffe it is [outputs, inputs, height, width],
with the outputs and inputs of column 0 first: a convolution with the columns as groups wherever columns do
not meet.

Batch normalisation after conv1 is a torch.nn.BatchNorm2d named conv1_norm.

`table` is table.layer_table of the configuration.
"""

import numpy as np

TORCHVISION = {
    "conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8",
    "conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6",
}  # fmt: skip

NORM = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}


def module_names(table) -> dict[str, str]:
    """Return the name of each layer in PyTorch: torchvision's if the network is like torchvision's.

    Such a network has one column of the eight layers without normalisation; others keep this project's names.
    """
    names, columns = [row.name for row in table], table[0].kernel[0]
    plain = not any("norm" in op or op == "lrn" for row in table for op in row.then)
    return (
        TORCHVISION
        if columns == 1 and plain and names == list(TORCHVISION)
        else {name: name for name in names}
    )


def torch_shapes(table) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in PyTorch's layout, by its name there."""
    shapes, names = {}, module_names(table)
    for row in table:
        columns, *window, inputs, _ = row.kernel
        split = _is_split_over_inputs(row)
        shapes[f"{names[row.name]}.weight"] = (row.output[-1], inputs * (columns if split else 1), *window)
        shapes[f"{names[row.name]}.bias"] = (row.output[-1],)
        shapes |= dict.fromkeys(_norm_names(row).values(), (row.output[-1],))
    return shapes


def _norm_names(row) -> dict[str, str]:
    """Return the name in PyTorch of each parameter of batch normalisation; {} without it."""
    if "batch_norm" not in row.then:
        return {}
    return {part: f"{row.name}_norm.{name}" for part, name in NORM.items()}


def to_torch(table, params: dict) -> dict[str, np.ndarray]:
    """Return the parameters of this project in PyTorch's names and layout."""
    tensors, names, shapes = {}, module_names(table), torch_shapes(table)
    for row in table:
        kernel, bias = (np.asarray(params[row.name][part]) for part in ("kernel", "bias"))
        shape, order = _axes(row)
        weight = f"{names[row.name]}.weight"
        tensors[weight] = kernel.reshape(shape).transpose(order).reshape(shapes[weight])
        tensors[f"{names[row.name]}.bias"] = bias.reshape(-1)
        tensors |= {
            name: np.asarray(params[row.name][part]).reshape(-1) for part, name in _norm_names(row).items()
        }
    return tensors


def from_torch(table, tensors: dict[str, np.ndarray]) -> dict:
    """Return the parameters of this project for tensors from `to_torch`."""
    params, names = {}, module_names(table)
    for row in table:
        weight, bias = (tensors[f"{names[row.name]}.{part}"] for part in ("weight", "bias"))
        shape, order = _axes(row)
        kernel = weight.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
        kernel = np.ascontiguousarray(kernel).reshape(row.kernel)
        norm = {part: tensors[name].reshape(row.bias) for part, name in _norm_names(row).items()}
        params[row.name] = {"kernel": kernel, "bias": bias.reshape(row.bias), **norm}
    return params


def _is_split_over_inputs(row) -> bool:
    """Return whether this is the classifier, whose columns share the outputs and have separate inputs."""
    return len(row.bias) == 1


def _axes(row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a kernel's shape as [columns, height, width, maps, outputs], and PyTorch's order of the axes.

    The height and width of a fully connected layer are those of its flattened input maps.
    """
    columns, *window, inputs, outputs = row.kernel
    height, width = window or (row.input[:2] if len(row.input) == 3 else (1, 1))
    maps = inputs if window else inputs // (height * width)
    order = (4, 0, 3, 1, 2) if _is_split_over_inputs(row) else (0, 4, 3, 1, 2)
    return (columns, height, width, maps, outputs), order
