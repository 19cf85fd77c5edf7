"""python -m alexnet_jax.weights import --from=torchvision|caffe FILE --workdir=DIR [--labels=FILE]
                              [--mean=FILE] [--config=configs/NAME.py [--config.FIELD=VALUE ...]]
python -m alexnet_jax.weights export FILE.safetensors --workdir=DIR

import makes DIR, whose step 0 is the weights of FILE (.pth, .safetensors or .caffemodel), for
    python -m alexnet_jax.main --config=configs/torchvision.py --mode=eval --workdir=DIR
    --from      whose names FILE uses: torchvision's, or one name a layer (conv1.weight, ..., fc8.bias), as in
                Caffe's networks and in what export writes of networks with two columns
    --config    the network, if it is not configs/torchvision.py or configs/caffe.py
    --labels    the names of the classes, one a line
    --mean      the mean image: a .binaryproto, or the statistics.npz of another workdir
export writes the best checkpoint of DIR, with those names.

Nothing that a file holds is executed. Values that are not finite are refused. Errors are one line on stderr
and exit code 2.

Layouts: a kernel of this project is [columns, height, width, inputs, outputs of one column], fully connected
layers have height * width * inputs as one axis. In PyTorch and Caffe it is [outputs, inputs, height, width],
outputs and inputs of column 0 first, which is a convolution with columns as groups where columns do not meet.
"""

import logging
import os
import pathlib
import shutil

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.pretrained import formats
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.shapes import CLASSIFIER, layer_shapes
from alexnet_jax.workdirs.workdir import write_config

log = logging.getLogger("alexnet_jax")

SOURCES = ("torchvision", "caffe")

_MODULES = {
    "conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8",
    "conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6",
}  # fmt: skip

# What torchvision's weights were trained with (ImageClassification in transforms/_presets.py), for 0 to 255.
_MEAN = 255 * np.array([0.485, 0.456, 0.406])
_STD = 255 * np.array([0.229, 0.224, 0.225])
# Means of Caffe's ilsvrc12 mean image, RGB (its examples give them as blue 104.00698793, ...).
_CAFFE_MEAN = np.array([122.67891434, 116.66876762, 104.00698793])
# Of ImageNet's colours: eigenvectors of their covariance and the deviations along them, as cuda-convnet2
# ships them (make-data/input_meta). Evaluation does not need them; training on with colour noise does.
_EIGENVECTORS = np.array(
    [[0.41796, -0.71258, -0.56351], [-0.81698, -0.02354, -0.57618], [0.39731, 0.70120, -0.59200]]
)
_DEVIATIONS = np.array([19.7208, 37.0939, 121.7801])


def module_names(config) -> dict[str, str]:
    """What each layer is called in PyTorch: as in torchvision where the network is like torchvision's.

    That is one column of its eight layers without normalisation; elsewhere the names are those here.
    """
    layers = layer_shapes(config)
    plain = not any("norm" in op or op == "lrn" for layer in layers for op in layer.then)
    if config.model.columns == 1 and plain and [layer.name for layer in layers] == list(_MODULES):
        return _MODULES
    return {layer.name: layer.name for layer in layers}


def _with_sides(config):
    """Each layer, with the height and width of its kernel, or of the maps that it is flattened from."""
    before = (config.data.crop_size, config.data.crop_size, config.data.channels)
    for layer in layer_shapes(config):
        yield layer, layer.kernel or (before[:2] if len(before) == 3 else (1, 1))
        before = layer.pooled


def torch_shapes(config) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in PyTorch's layout, by its name there."""
    shapes, names = {}, module_names(config)
    for layer in layer_shapes(config):
        inputs = layer.inputs * (config.model.columns if layer.name == CLASSIFIER else 1)
        shapes[f"{names[layer.name]}.weight"] = (layer.features, inputs, *layer.kernel)
        shapes[f"{names[layer.name]}.bias"] = (layer.features,)
    return shapes


def to_torch(config, params: dict) -> dict[str, np.ndarray]:
    """Parameters of this project in PyTorch's names and layout."""
    tensors, names, shapes = {}, module_names(config), torch_shapes(config)
    for layer, sides in _with_sides(config):
        kernel, bias = (np.asarray(params[layer.name][part]) for part in ("kernel", "bias"))
        kernel = kernel.reshape(config.model.columns, *sides, -1, layer.column_features)
        # The classifier's columns share its outputs and have inputs of their own.
        axes = (4, 0, 3, 1, 2) if layer.name == CLASSIFIER else (0, 4, 3, 1, 2)
        weight = f"{names[layer.name]}.weight"
        tensors[weight] = kernel.transpose(axes).reshape(shapes[weight])
        tensors[f"{names[layer.name]}.bias"] = bias.reshape(-1)
    return tensors


def from_torch(config, tensors: dict[str, np.ndarray]) -> dict:
    """The reverse of `to_torch`."""
    params, names, columns = {}, module_names(config), config.model.columns
    for layer, sides in _with_sides(config):
        weight, bias = (tensors[f"{names[layer.name]}.{part}"] for part in ("weight", "bias"))
        if layer.name == CLASSIFIER:
            kernel = weight.reshape(layer.features, columns, -1, *sides).transpose(1, 3, 4, 2, 0)
        else:
            kernel = weight.reshape(columns, layer.column_features, -1, *sides).transpose(0, 3, 4, 2, 1)
            bias = bias.reshape(columns, -1)
        shape = (columns, *layer.kernel, layer.inputs, layer.column_features)
        params[layer.name] = {"kernel": np.ascontiguousarray(kernel).reshape(shape), "bias": bias}
    return params


def import_weights(
    source: str, file: str, workdir: str, config=None, labels: str | None = None, mean: str | None = None
) -> None:
    """Makes a workdir with the weights of `file` at step 0.

    `config` is changed to the file's number of classes; None is configs/SOURCE.py. Raises InputError, and
    leaves nothing behind then.
    """
    _check_new(workdir)
    config = config or configuration.load(f"configs/{source}.py")
    configuration.check(config)
    names = module_names(config)
    if (names is _MODULES) != (source == "torchvision"):
        right = "torchvision" if names is _MODULES else "caffe"
        raise InputError(f"--from={source}: {config.name} is not such a network; give --from={right}")
    with formats.opened(file, caffe=source == "caffe") as weights:
        _check_network(file, weights, config, names[CLASSIFIER])
        tensors = {name: weights.tensors[name].read() for name in torch_shapes(config)}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InputError(f"{file}: {name} holds values that are not finite; it is damaged, get it again")
    if weights.from_caffe:
        first = f"{next(iter(names.values()))}.weight"
        tensors[first] = tensors[first][:, ::-1]  # to red, green, blue
    arrays = _statistics(source, config, mean)
    arrays["label_names"] = np.array(_label_names(config.model.num_classes, labels, arrays))
    _make_workdir(workdir, config, arrays, from_torch(config, tensors))
    count = sum(tensor.size for tensor in tensors.values())
    log.info(
        f"imported {file} into {workdir}: {count:,} parameters, {config.model.num_classes:,} classes;"
        f" evaluate it with --mode=eval --workdir={workdir}"
    )


def _check_new(workdir: str) -> None:
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise InputError(f"--workdir={workdir}: is a file; give a new folder")
    if os.path.isdir(workdir) and os.listdir(workdir):
        raise InputError(f"--workdir={workdir}: is not empty; give a new folder")


def _check_network(file: str, weights: formats.Weights, config, classifier: str) -> None:
    """Sets the number of classes. Raises InputError if the weights are not those of this network."""
    advice = f"give weights of the network {config.name}, or its --config"
    if weights.exported_from not in ("", config.name):
        raise InputError(f"{file}: is of the network {weights.exported_from!r:.60}; {advice}")
    there = weights.tensors
    bias = there.get(f"{classifier}.bias")
    if bias is not None and len(bias.shape) == 1 and bias.shape[0] > 0:
        config.model.num_classes = bias.shape[0]
    shapes = torch_shapes(config)
    for name in [*shapes, *there]:
        if name not in there:
            raise InputError(f"{file}: has no {name}; {advice}")
        if name not in shapes:
            raise InputError(f"{file}: has {ascii(name)[:60]}, which {config.name} has not; {advice}")
        if there[name].shape != shapes[name]:
            here = "x".join(map(str, shapes[name]))
            shape = "x".join(map(str, there[name].shape[:8]))
            raise InputError(f"{file}: {name} is {shape}, and {here} in {config.name}; {advice}")
        if there[name].dtype != "float32":
            raise InputError(f"{file}: {name} is of type {there[name].dtype}; convert it to float32")
    # Caffe's two networks have the same shapes and differ in this order only.
    order = tuple(op for layer in layer_shapes(config) for op in layer.then if op in ("lrn", "pool"))
    if weights.order not in ((), order):
        raise InputError(
            f"{file}: has its lrn and pool layers in another order ({', '.join(weights.order)[:60]}) than"
            f" {config.name}; give model.layers.conv1.then and conv2.then as there, with --config"
        )


def _statistics(source: str, config, mean: str | None) -> dict[str, np.ndarray]:
    """What statistics.npz of the workdir holds, for the normalisation that the weights were trained with."""
    from alexnet_jax.datasets import statistics

    size, channels = config.data.image_size, config.data.channels
    if mean is not None and mean.endswith(".npz"):
        arrays = statistics.load(mean)
        if arrays is None or arrays["mean_image"].shape != (size, size, channels):
            raise InputError(
                f"--mean={mean}: has no statistics of {size}x{size}x{channels} images; give another"
            )
        return arrays
    if channels != 3:
        raise InputError(
            f"--mean: missing, and data.channels is {channels}; give the statistics.npz of the run"
        )
    covariance = _EIGENVECTORS * _DEVIATIONS**2 @ _EIGENVECTORS.T
    channel_mean, channel_std = _CAFFE_MEAN, np.sqrt(np.diag(covariance))
    if source == "torchvision":
        channel_mean, channel_std = _MEAN, _STD
    mean_image = np.broadcast_to(channel_mean, (size, size, 3))
    if mean is not None:
        blob = formats.caffe_blob(mean)
        if blob.shape[-3:] != (3, size, size) or blob.size != 3 * size * size or not np.isfinite(blob).all():
            raise InputError(f"--mean={mean}: is no mean image of 3x{size}x{size}; give another")
        mean_image = blob.reshape(3, size, size)[::-1].transpose(1, 2, 0)
        channel_mean = mean_image.mean(axis=(0, 1))
    arrays = mean_image, channel_mean, channel_std, covariance, _EIGENVECTORS, _DEVIATIONS
    return {k: np.array(array, np.float32) for k, array in zip(statistics.ARRAYS, arrays, strict=True)}


def _label_names(classes: int, labels: str | None, arrays: dict) -> list[str]:
    """A name for each class: of --labels, of --mean's run, ImageNet's where there are 1000, or numbers."""
    if labels is None:
        from alexnet_jax.datasets.labels import imagenet_classes

        known = list(arrays.get("label_names", ()))
        if not known and classes == 1000:
            known = imagenet_classes()
        return known if len(known) == classes else [f"class {number}" for number in range(classes)]
    try:
        names = pathlib.Path(labels).read_text().rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"--labels={labels}: cannot be read ({error}); give a text file") from None
    if len(names) != classes:
        raise InputError(f"--labels={labels}: has {len(names)} lines for {classes} classes; give one a class")
    return [name.strip() for name in names]


def _make_workdir(workdir: str, config, arrays: dict, params: dict) -> None:
    # Imported here, as above and below, so that a mistake in the flags is reported at once.
    from alexnet_jax import optimizer
    from alexnet_jax.datasets import statistics
    from alexnet_jax.step import new_state
    from alexnet_jax.workdirs.checkpoint import Checkpoints

    there = os.path.isdir(workdir)
    try:
        os.makedirs(workdir, exist_ok=True)
        with Checkpoints(workdir, config.checkpoint.keep) as checkpoints:
            checkpoints.save(new_state(params, optimizer.make(config)))
        statistics.save(os.path.join(workdir, "statistics.npz"), arrays)
        write_config(config, workdir)
    except BaseException as error:
        shutil.rmtree(os.path.realpath(workdir), ignore_errors=True)
        if there:  # and was empty
            os.makedirs(os.path.realpath(workdir), exist_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"--workdir={workdir}: cannot be written ({error}); give another") from None
        raise


def export_weights(file: str, workdir: str) -> None:
    """Writes the best checkpoint of a workdir to a .safetensors file. Raises InputError."""
    if not file.endswith(".safetensors"):
        raise InputError(f"{file}: is no name of a .safetensors file; give one that ends so")
    if os.path.lexists(file):
        raise InputError(f"{file}: exists already; remove it, or give another name")
    config = configuration.of_run(workdir)
    from alexnet_jax import evaluate
    from alexnet_jax.runtime.mesh import make_mesh

    config.mesh.update(data=1, column=1)  # the run's devices need not be here
    step, params = evaluate.stored_params(config, workdir, make_mesh(config))
    tensors = to_torch(config, params)
    try:
        formats.write(file, tensors, config.name)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}); give another") from None
    names = list(tensors)
    log.info(f"exported step {step} of {workdir} to {file}: {names[0]} to {names[-1]}")


def main(arguments: list[str]) -> None:
    """Import or export. Raises InputError."""
    parser = command_line.Parser(__doc__, config=True)
    command = command_line.one_of("import", "export")
    parser.add_argument("command", metavar="COMMAND", type=command, help="import or export")
    parser.add_argument("file", metavar="FILE", help="the weights")
    parser.add_argument("--workdir", metavar="DIR", required=True, help="the folder of a run")
    parser.add_argument(
        "--from", dest="source", metavar="NAME", type=command_line.one_of(*SOURCES), help=", ".join(SOURCES)
    )
    parser.add_argument("--labels", metavar="FILE", help="a text file, the name of a class on each line")
    parser.add_argument("--mean", metavar="FILE", help="a .binaryproto, or statistics.npz of another workdir")
    given = parser.parse(arguments)
    file, workdir = os.path.expanduser(given.file), os.path.expanduser(given.workdir)
    if given.command == "export":
        options = {"config": given.config, "from": given.source, "labels": given.labels, "mean": given.mean}
        options |= {f"config.{field}": text for field, text in given.overrides.items()}
        for name in (name for name, value in options.items() if value is not None):
            raise InputError(f"--{name}: is not for export, which takes all from --workdir")
        export_weights(file, workdir)
        return
    if given.source is None:
        raise InputError(f"--from: missing; give one of {', '.join(SOURCES)}")
    config = configuration.load(given.config, given.overrides) if given.config or given.overrides else None
    labels, mean = (path and os.path.expanduser(path) for path in (given.labels, given.mean))
    import_weights(given.source, file, workdir, config, labels, mean)


if __name__ == "__main__":
    command_line.run(main)
