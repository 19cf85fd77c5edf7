"""python -m alexnet_jax.weights import FILE --workdir=DIR [--from=torchvision|caffe] [--labels=FILE]
                              [--mean=FILE] [--config=configs/NAME.py] [--config.FIELD=VALUE ...]
python -m alexnet_jax.weights export FILE.safetensors --workdir=DIR

import creates DIR with the weights of FILE (.pth, .safetensors or .caffemodel) at step 0, for
    python -m alexnet_jax.main --config=configs/torchvision.py --mode=eval --workdir=DIR
    --from      the naming in FILE: torchvision's, or one name per layer (conv1.weight, ..., fc8.bias), as in
                Caffe's networks
    --config    the network, if it is not configs/torchvision.py or configs/caffe.py
    --labels    the names of the classes, one per line
    --mean      the mean image: a .binaryproto, or the statistics.npz of another workdir
export writes the best checkpoint of DIR, with those names, and the run's configuration and statistics. To
import such a file, only --workdir is needed, and flags that contradict the file are rejected.

Nothing in a file is executed. Values that are not finite are rejected. Errors are one line on stderr, with
exit code 2.

Layouts: a kernel of this project is [columns, height, width, inputs, outputs of one column], and fully
connected layers have height * width * inputs as one axis. In PyTorch and Caffe it is [outputs, inputs,
height, width], with the outputs and inputs of column 0 first: a convolution with the columns as groups
wherever columns do not meet.
"""

import contextlib
import copy
import hashlib
import io
import itertools
import logging
import os
import shutil
from typing import Any

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.datasets import statistics
from alexnet_jax.pretrained import conversion, formats, metadata
from alexnet_jax.pretrained.normalization import published_statistics
from alexnet_jax.runtime import command_line, files
from alexnet_jax.runtime.errors import InputError, input_errors, reason
from alexnet_jax.runtime.object_store import is_url
from alexnet_jax.workdirs import identity, remote
from alexnet_jax.workdirs.workdir import read_statistics, write_config

log = logging.getLogger("alexnet_jax")

SOURCES = ("torchvision", "caffe")
KEY = "alexnet_jax"  # in an exported file's metadata, for the text of metadata.write
OLD_KEY = "alexnet_jax.config"  # in exports of earlier versions, for the name of the configuration
_LARGEST_LABELS = 16 << 20  # bytes; ImageNet's 22,000 names are 1 MB
_NONE: configuration.Overrides = {}


def import_weights(
    source: str | None,
    file: str,
    workdir: str,
    config=None,
    labels: str | None = None,
    mean: str | None = None,
    overrides: configuration.Overrides = _NONE,
) -> None:
    """Make a workdir with the weights of `file` at step 0.

    `source` is one of SOURCES; it and `config` may be None for a file that `export_weights` wrote. For other
    files, None as `config` means configs/SOURCE.py, and the file decides the number of classes. `overrides`
    are fields of the file's own configuration. Raises InputError, and then leaves nothing behind.
    """
    # Imported here, as below, so that a mistake in the flags is reported at once.
    from alexnet_jax.network import CLASSIFIER
    from alexnet_jax.table import layer_table

    _check_new(workdir)
    with formats.opened(file, caffe=source == "caffe") as weights:
        run = _run_of(file, weights)
        config = _config(file, source, config, overrides, run)
        names = conversion.module_names(layer_table(config))
        right = "torchvision" if names is conversion.TORCHVISION else "caffe"
        if source not in (right, None):
            remedy = f"give --from={right}" if run is None else "leave it out for an export of alexnet_jax"
            raise InputError(f"--from={source}: {config.name} is not such a network; {remedy}")
        classifier = None if run else names[CLASSIFIER]
        table = _check_network(file, weights, config, classifier)
        tensors = {name: weights.tensors[name].read() for name in conversion.torch_shapes(table)}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InputError(f"{file}: {name} has values that are not finite; it is damaged, get it again")
        if name.endswith(".running_var") and (tensor < 0).any():
            raise InputError(f"{file}: {name} has a negative variance; it is damaged, get it again")
    if weights.from_caffe:
        first = f"{next(iter(names.values()))}.weight"
        tensors[first] = tensors[first][:, ::-1]  # to red, green, blue
    stored = _statistics(file, right, config, labels, mean, run)
    origin = _origin(file, stored, run)
    _make_workdir(workdir, config, stored, origin, conversion.from_torch(table, tensors))
    count = sum(row.parameters for row in table)
    log.info(
        f"imported {file} into {workdir}: {count:,} parameters, {config.model.num_classes:,} classes;"
        f" evaluate it with --mode=eval --workdir={workdir}"
    )


def _run_of(file: str, weights: formats.Weights) -> metadata.Run | None:
    """Return the run in a file of `export_weights`, or None. Raises InputError if it cannot be used."""
    if KEY not in weights.metadata:
        return None
    run = metadata.read(weights.metadata[KEY])
    try:
        configuration.check_stored(run.config)
    except InputError as error:
        raise InputError(f"{file}: its configuration cannot be used ({error}); export it again") from None
    if not statistics.fits(run.statistics, run.config.data):
        raise InputError(f"{file}: its statistics do not fit its network's images; export it again")
    return run


def _config(file: str, source: str | None, config, overrides, run: metadata.Run | None):
    """Return the configuration of the network. Raises InputError if the flags contradict the file's."""
    if run is None:
        if source is None:
            raise InputError(f"--from: missing; give one of {', '.join(SOURCES)}")
        if config is None and overrides:
            configuration.load(None, overrides)  # raises
        return config or configuration.load(f"configs/{source}.py")
    if config is None:
        config = copy.deepcopy(run.config)
        configuration.override(config, overrides, file)
    configuration.check(config)
    differing = configuration.differences(config, run.config)
    if differing:
        raise InputError(f"{file}: has another configuration: {differing}; leave --config out")
    return config


def _statistics(file: str, source: str, config, labels, mean, run: metadata.Run | None) -> dict:
    """Return the content of statistics.npz. Raises InputError if the flags contradict the file's."""
    if run is None:
        stored = published_statistics(source, config.data, mean)
        stored["label_names"] = np.array(_label_names(config, labels, stored))
        return stored
    stored = run.statistics
    if mean is not None:
        given = published_statistics(source, config.data, mean)
        for name in statistics.ARRAYS if mean.endswith(".npz") else ("mean_image",):
            if not np.array_equal(given[name], stored[name]):
                raise InputError(
                    f"--mean={mean}: {name} has the mean {stored[name].mean():.9g} in {file},"
                    f" {given[name].mean():.9g} here, and other values; leave --mean out"
                )
    if labels is not None:
        names = _read_labels(labels, config.model.num_classes)
        there = list(stored.get("label_names", ())) or names
        for number, (one, other) in enumerate(itertools.zip_longest(there, names), 1):
            if one != other:
                raise InputError(
                    f"--labels={labels}: line {number} is {str(one)!r} in {file}, {str(other)!r} here;"
                    " leave --labels out"
                )
        stored |= {"label_names": np.array(names)}
    return stored


def _check_new(workdir: str) -> None:
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise InputError(f"--workdir={workdir}: is a file; give a new folder")
    if os.path.isdir(workdir) and os.listdir(workdir):
        raise InputError(f"--workdir={workdir}: is not empty; give a new folder")


def _check_network(file: str, weights: formats.Weights, config, classifier: str | None) -> list:
    """Return the network's layer_table. Raises InputError if the weights do not belong to this network.

    The number of classes becomes that of the layer `classifier`, or stays unchanged if it is None.
    """
    from alexnet_jax.table import layer_table

    advice = f"give weights of the network {config.name}, or its --config"
    exported_from = weights.metadata.get(OLD_KEY, config.name)
    if exported_from != config.name:
        raise InputError(f"{file}: belongs to the network {exported_from!r:.60}; {advice}")
    there = weights.tensors
    bias = there.get(f"{classifier}.bias")
    if bias is not None and len(bias.shape) == 1 and bias.shape[0] > 0:
        config.model.num_classes = bias.shape[0]
    table = layer_table(config)
    shapes = conversion.torch_shapes(table)
    norms = [name.removesuffix("running_var") for name in shapes if name.endswith(".running_var")]
    unused = {f"{norm}num_batches_tracked" for norm in norms}  # a count of PyTorch's
    for name in [*shapes, *(name for name in there if name not in unused)]:
        if name not in there:
            raise InputError(f"{file}: has no {name}; {advice}")
        if name not in shapes:
            raise InputError(f"{file}: has {ascii(name)[:60]}, which {config.name} lacks; {advice}")
        if there[name].shape != shapes[name]:
            here = "x".join(map(str, shapes[name]))
            shape = "x".join(map(str, there[name].shape[:8]))
            raise InputError(f"{file}: {name} is {shape}, but {here} in {config.name}; {advice}")
        if there[name].dtype != "float32":
            raise InputError(f"{file}: {name} is of type {there[name].dtype}; convert it to float32")
    # Caffe's two networks have the same shapes, and differ only in this order.
    order = tuple(op for row in table for op in row.then if op in ("lrn", "pool"))
    if weights.order not in ((), order):
        raise InputError(
            f"{file}: has its lrn and pool layers in another order ({', '.join(weights.order)[:60]}) than"
            f" {config.name}; give model.layers.conv1.then and conv2.then as there, with --config"
        )
    return table


def _label_names(config, labels: str | None, arrays: dict) -> list[str]:
    """Return a name for each class, from --labels, the run of --mean or ILSVRC-2012, or else numbers."""
    from alexnet_jax.datasets.labels import imagenet_classes

    classes = config.model.num_classes
    if labels is not None:
        return _read_labels(labels, classes)
    known = list(arrays.get("label_names", ()))
    # The published networks are of ILSVRC-2012, even if --config names other data for further training.
    published = config.name in SOURCES and "2010" not in config.data.name
    if not known and classes == 1000 and (published or "2012" in config.data.name):
        known = imagenet_classes()
    return known if len(known) == classes else [f"class {number}" for number in range(classes)]


def _read_labels(labels: str, classes: int) -> list[str]:
    """Return the lines of --labels. Raises InputError unless there is one per class."""
    with input_errors(f"--labels={labels}: cannot be read", "give a text file"):
        text = files.read_file(labels, _LARGEST_LABELS).decode("utf-8-sig")
        names = io.StringIO(text, newline=None).read().rstrip("\n").split("\n")
    if len(names) != classes:
        raise InputError(
            f"--labels={labels}: has {len(names)} lines for {classes} classes; give one per class"
        )
    return [name.strip() for name in names]


def _origin(file: str, stored: dict, run: metadata.Run | None) -> dict[str, Any]:
    """Return the origin of the weights for identity.json: their file and, for an export, their run."""
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    origin = {"kind": "file", "content": digest, "statistics": statistics.fingerprint(stored)}
    return origin | ({"run": run.run, "step": run.step} if run else {})


def _make_workdir(workdir: str, config, arrays: dict, origin: dict, params: dict) -> None:
    from alexnet_jax import optimizer
    from alexnet_jax.step import new_state
    from alexnet_jax.workdirs.checkpoint import Checkpoints

    there = os.path.isdir(workdir)
    try:
        os.makedirs(workdir, exist_ok=True)
        with Checkpoints(workdir, config.checkpoint.keep) as checkpoints:
            checkpoints.save(new_state(params, optimizer.make(config)))
        statistics.save(os.path.join(workdir, "statistics.npz"), arrays)
        fields = configuration.run_fields(config)
        of_run = identity.of_run(fields, None, None, origin)
        identity.write(workdir, {**of_run, "statistics": statistics.fingerprint(arrays)})
        write_config(config, workdir)
    except BaseException as error:
        shutil.rmtree(os.path.realpath(workdir), ignore_errors=True)
        if there:  # and was empty
            os.makedirs(os.path.realpath(workdir), exist_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                f"--workdir={workdir}: cannot be written ({reason(error)}); give another"
            ) from None
        raise


def export_weights(file: str, workdir: str) -> None:
    """Write the best checkpoint of a workdir to a .safetensors file, with its configuration and statistics.

    The same checkpoint gives the same bytes. Raises InputError.
    """
    from alexnet_jax import evaluate
    from alexnet_jax.runtime.mesh import make_mesh
    from alexnet_jax.table import layer_table

    if not file.endswith(".safetensors"):
        raise InputError(f"{file}: is not the name of a .safetensors file; give one that ends so")
    if os.path.lexists(file):
        raise InputError(f"{file}: exists already; remove it, or give another name")
    config = configuration.of_run(workdir)
    own = copy.deepcopy(config)
    stored = read_statistics(workdir, config)
    config.mesh.update(data=1, column=1)  # this machine may lack the run's devices
    step, params = evaluate.stored_params(config, workdir, make_mesh(config))
    tensors = conversion.to_torch(layer_table(config), params)
    text = metadata.write(metadata.Run(own, identity.of_workdir(workdir), step, stored))
    with input_errors(f"{file}: cannot be written", "give another", (OSError,)):
        formats.write(file, tensors, {"format": "pt", KEY: text})
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
    parser.add_argument("--labels", metavar="FILE", help="a text file with one class name per line")
    parser.add_argument("--mean", metavar="FILE", help="a .binaryproto, or statistics.npz of another workdir")
    given = parser.parse(arguments)
    file, workdir = os.path.expanduser(given.file), os.path.expanduser(given.workdir)
    if given.command == "export":
        options = {"config": given.config, "from": given.source, "labels": given.labels, "mean": given.mean}
        options |= {f"config.{field}": text for field, text in given.overrides.items()}
        for name in (name for name, value in options.items() if value is not None):
            raise InputError(f"--{name}: is not for export, which takes everything from --workdir")
        with remote.copied(workdir) as folder:
            export_weights(file, folder)
        return
    config = configuration.load(given.config, given.overrides) if given.config else None
    labels, mean = (path and os.path.expanduser(path) for path in (given.labels, given.mean))
    there = remote.run_folder(workdir) if is_url(workdir) else contextlib.nullcontext(workdir)
    with there as folder:
        import_weights(given.source, file, folder, config, labels, mean, given.overrides)


if __name__ == "__main__":
    command_line.run(main)
