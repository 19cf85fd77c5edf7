"""What a configuration may hold, and which configuration a workdir belongs to.

    check             every field: known, of its type, in its range; InputError otherwise
    check_same_run    a workdir belongs to one configuration; InputError for another
    load / save       config.json of a workdir
    of_run            the same with overrides
    override          FIELD=VALUE into a configuration

The values themselves are in configs/paper.py.
"""

import ast
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections

from alexnet_jax.runtime.errors import InputError, nearest
from alexnet_jax.workdirs.workdir import read_config

OPS = ("activation", "lrn", "spatial_norm", "pool", "average_pool", "dropout")


# A rule: does a value work, and what would.
def _whole(works, text: str):
    return lambda v: type(v) is int and works(v), f"a whole number {text}"


def _number(works, text: str):
    return lambda v: type(v) in (int, float) and math.isfinite(v) and works(v), f"a number {text}"


def _one_of(*choices):
    # `is` of the types too: True == 1.
    return (
        lambda v: any(v == c and type(v) is type(c) for c in choices),
        "one of " + ", ".join(str(c) for c in choices),
    )


_COUNT = _whole(lambda v: v >= 1, "of at least 1")
_POSITIVE = _number(lambda v: v > 0, "above 0")
_NOT_NEGATIVE = _number(lambda v: v >= 0, "of at least 0")
_BELOW_1 = _number(lambda v: 0 <= v < 1, "of at least 0 and below 1")
_FLAG = _one_of(True, False)
_TEXT = (lambda v: isinstance(v, str) and v != "", "a text that is not empty")
_PATH = (lambda v: isinstance(v, str), "a path")
_PADDING = (
    lambda v: isinstance(v, tuple) and len(v) == 2 and all(type(n) is int and n >= 0 for n in v),
    "two whole numbers of zeros (before, after), such as (2, 2)",
)
_THEN = (
    lambda v: isinstance(v, tuple) and all(op in OPS for op in v),
    f"a tuple of {', '.join(OPS)}, such as ('activation', 'pool')",
)
_LAYERS = (
    lambda v: isinstance(v, tuple) and all(isinstance(name, str) for name in v),
    "a tuple of layers, such as ('conv1', 'conv2')",
)
_EPOCHS = (
    lambda v: (
        isinstance(v, tuple) and all(type(n) is int and n >= 1 for n in v) and list(v) == sorted(set(v))
    ),
    "a tuple of rising epochs, such as (30, 60), or () for the plateau",
)
_EPOCH_OR_NEVER = _whole(lambda v: v >= 0 or v == -1, "of at least 0, or -1 for never")
_ODD = (lambda v: type(v) is int and v > 0 and v % 2 == 1, "an odd whole number, such as 5")
_LAYER = {
    "enabled": _FLAG,
    "kernel": _COUNT,
    "stride": _COUNT,
    "padding": _PADDING,
    "features": _COUNT,
    "gather": _FLAG,
    "init_std": _POSITIVE,
    "bias": (lambda v: type(v) in (int, float) and math.isfinite(v), "a number"),
    "then": _THEN,
}
_LAYER_FIELDS = {
    "conv": tuple(_LAYER),
    "fc": ("enabled", "features", "gather", "init_std", "bias", "then"),
    "fc8": ("init_std", "bias"),
}
_FIELDS = {
    "name": _TEXT,
    "seed": _whole(lambda v: 0 <= v < 2**31, "from 0 to 2147483647"),
    "init_from": _PATH,
    "init_layers": _LAYERS,
    "num_epochs": _COUNT,
    "batch_size": _COUNT,
    "model.columns": _one_of(1, 2),
    "model.width": _POSITIVE,
    "model.num_classes": _COUNT,
    "model.activation": _one_of("relu", "tanh"),
    "model.gather": _FLAG,
    "model.dropout_rate": _BELOW_1,
    "model.dropout_scale": _one_of("test", "train"),
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.lrn.enabled": _FLAG,
    "model.lrn.size": _ODD,
    "model.lrn.k": _POSITIVE,
    "model.lrn.alpha": _NOT_NEGATIVE,
    "model.lrn.beta": _NOT_NEGATIVE,
    "model.lrn.across_columns": _FLAG,
    "model.pool.size": _COUNT,
    "model.pool.stride": _COUNT,
    "model.pool.ceil": _FLAG,
    "model.spatial_norm.size": _ODD,
    "model.spatial_norm.k": _POSITIVE,
    "model.spatial_norm.alpha": _NOT_NEGATIVE,
    "model.spatial_norm.beta": _NOT_NEGATIVE,
    "data.name": _TEXT,
    "data.dir": _PATH,
    "data.manual_dir": _PATH,
    "data.store": _one_of("raw", "jpeg"),
    "data.channels": _one_of(1, 3),
    "data.image_size": _COUNT,
    "data.crop_size": _COUNT,
    "data.normalization": _one_of("mean_image", "channel_mean_std"),
    "data.train_split": _TEXT,
    "data.val_split": _TEXT,
    "data.test_split": _TEXT,
    "data.reshuffle": _FLAG,
    "data.threads": _whole(lambda v: 1 <= v <= 256, "from 1 to 256"),
    "augment.crop": _FLAG,
    "augment.crop_group": _COUNT,
    "augment.flip": _FLAG,
    "augment.mean_crop": _one_of("image", "centre"),
    "augment.pca_std": _NOT_NEGATIVE,
    "augment.pca_divisor": _POSITIVE,
    "augment.pca_epochs": _EPOCH_OR_NEVER,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.momentum": _BELOW_1,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.decay_biases": _FLAG,
    "optimizer.bias_rate": _NOT_NEGATIVE,
    "optimizer.bias_rate_drops": _FLAG,
    "optimizer.drop_epochs": _EPOCHS,
    "optimizer.conv1_drop_epoch": _EPOCH_OR_NEVER,
    "optimizer.conv1_freeze_epoch": _EPOCH_OR_NEVER,
    "optimizer.plateau.factor": _number(lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "optimizer.plateau.patience": _COUNT,
    "optimizer.plateau.max_drops": _whole(lambda v: v >= 0, "of at least 0"),
    "mesh.column": _one_of(-1, 1, 2),
    "mesh.data": _whole(lambda v: v >= 1 or v == -1, "of at least 1, or -1"),
    "checkpoint.every_steps": _whole(lambda v: v >= 0, "of at least 0"),
    "checkpoint.keep": _COUNT,
    "eval.views": _one_of(1, 10),
    "eval.batch_size": _COUNT,
    "eval.step": _whole(lambda v: v >= -1, "of at least 0, or -1"),
}
# What decides a run's parameters: a workdir belongs to these values.
_RUN_FIELDS = re.compile(
    r"seed|batch_size|init_\w+|model\..*|augment\..*|optimizer\..*"
    r"|data\.(name|channels|image_size|crop_size|normalization|reshuffle|\w+_split)"
)
_DATA_FIELDS = re.compile(r"data\.(name|\w+_split)")


def flatten(config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | ml_collections.FrozenConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _rules(layers: Iterable[str]) -> dict[str, tuple]:
    """The rules of all fields that a configuration with these layers has."""
    rules = dict(_FIELDS)
    for name in (*layers, "fc8"):
        kind = name if name == "fc8" else name.rstrip("0123456789")
        if not re.fullmatch(r"conv\d+|fc[1-8]", name):
            raise InputError(f"model.layers.{name}: a layer is named conv1, conv2, … or fc1 to fc8, the last")
        rules.update({f"model.layers.{name}.{field}": _LAYER[field] for field in _LAYER_FIELDS[kind]})
    return rules


def _known(field: str) -> dict[str, tuple]:
    """The rules of the paper's fields, and of the layer that `field` names."""
    named = re.match(r"model\.layers\.(conv\d+|fc[1-8])\.", field)
    paper = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    return _rules((*paper, named[1]) if named else paper)


def unknown(field: str) -> str:
    """One line if there is no such field, else nothing."""
    known = _known(field)
    return "" if field in known else f"{field}: there is no such field{nearest(field, known)}"


def what_works(field: str) -> str:
    known = _known(field)
    return f"give {known[field][1]}" if field in known else unknown(field).partition(": ")[2]


def check(config) -> None:
    """Raises InputError for the first field that is unknown, missing, of a wrong type or out of range."""
    rules, given = _rules(config.get("model", {}).get("layers", {})), dict(flatten(config))
    for field in given:
        if field not in rules:
            raise InputError(unknown(field))
    for field, (works, text) in rules.items():
        if field not in given:
            raise InputError(f"{field}: missing from the configuration; configs/paper.py has all fields")
        if not works(given[field]):
            raise InputError(f"{field}: {given[field]!r} does not work; give {text}")
    data = config.data
    if data.crop_size > data.image_size:
        raise InputError(
            f"data.crop_size: {data.crop_size} is larger than data.image_size, {data.image_size};"
            f" give at most {data.image_size}"
        )
    pool = config.model.pool
    if pool.ceil and pool.stride > pool.size:
        raise InputError(
            f"model.pool.stride: {pool.stride} is above the size, {pool.size}, and with model.pool.ceil a"
            " window may lie outside; give at most the size"
        )


def of_run(workdir: str, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """config.json of a workdir, changed by `overrides`, texts FIELD=VALUE, in what a run may change.

    Raises InputError.
    """
    config = read_config(workdir)
    if config is None:
        raise InputError(f"{workdir}: has no config.json; give the workdir of a run")
    check(config)
    override(config, overrides, f"{workdir}/config.json")
    check(config)
    check_same_run(config, workdir, data=False)
    return config


def override(config, overrides: Iterable[str], where: str) -> None:
    """Puts texts FIELD=VALUE into `config`, which comes from `where`. Raises InputError; does not `check`."""
    fields = dict(flatten(config))
    for field, _, text in (override.partition("=") for override in overrides):
        if field not in fields:
            raise InputError(unknown(field) or f"{field}: there is no such field in {where}")
        try:
            value = text if isinstance(fields[field], str) else ast.literal_eval(text)
            config.update_from_flattened_dict({field: value})
        except (ValueError, SyntaxError, TypeError):
            raise InputError(f"{field}: {text!r} does not work; {what_works(field)}") from None


def check_same_run(config, workdir: str, data: bool = True) -> None:
    """Raises InputError if `workdir` holds a run of another configuration, naming the fields that differ.

    Without `data`, the data set and its splits may be others: a network can be evaluated on any.
    """
    theirs = read_config(workdir)
    if theirs is None:
        if os.path.exists(workdir) and not os.path.isdir(workdir):
            raise InputError(f"--workdir={workdir}: is a file; give a folder")
        if os.path.isdir(os.path.join(workdir, "checkpoints")):
            raise InputError(f"{workdir}/config.json: missing beside its checkpoints; give another --workdir")
        return
    here, there = dict(flatten(config)), dict(flatten(theirs))
    differing = sorted(
        field
        for field in here.keys() | there.keys()
        if _RUN_FIELDS.fullmatch(field)
        and here.get(field) != there.get(field)
        and (data or not _DATA_FIELDS.fullmatch(field))
    )
    if differing:
        fields = "; ".join(f"{f} is {there.get(f)!r} there, {here.get(f)!r} here" for f in differing[:5])
        fields += f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise InputError(
            f"--workdir={workdir}: belongs to another configuration: {fields}; give another --workdir"
        )
    if config.num_epochs < theirs.num_epochs:
        raise InputError(
            f"num_epochs: {config.num_epochs}, but {workdir} was started with {theirs.num_epochs};"
            " it may grow, not shrink"
        )
