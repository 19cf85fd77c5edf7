"""What a configuration may hold, and which configuration a workdir belongs to.

    check                 every field: known, of its type, in its range; InputError otherwise
    differing_fields      where two configurations describe different runs
    load / save           config.json of a workdir

The values themselves are in configs/paper.py.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import ml_collections

from alexnet_jax.errors import InputError

OPS = ("activation", "lrn", "pool", "dropout")


def _whole(low: int, high: float = float("inf"), special: tuple[int, ...] = ()):
    limits = f"from {low} to {high}" if high != float("inf") else f"of at least {low}"
    text = f"a whole number {limits}" + "".join(f", or {value}" for value in special)
    return lambda v: type(v) is int and (low <= v <= high or v in special), text


def _number(low: float, high: float = float("inf"), above: bool = False, below: bool = False):
    text = f"a number {'above' if above else 'of at least'} {low:g}"
    if high != float("inf"):
        text += f" and {'below' if below else 'at most'} {high:g}"
    return (
        lambda v: (
            type(v) in (int, float)
            and math.isfinite(v)
            and (low < v if above else low <= v)
            and (v < high if below else v <= high)
        ),
        text,
    )


def _one_of(*choices):
    # `is` of the types too: True == 1.
    return (
        lambda v: any(v == c and type(v) is type(c) for c in choices),
        "one of " + ", ".join(str(c) for c in choices),
    )


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
_LAYER = {
    "enabled": _FLAG,
    "kernel": _whole(1),
    "stride": _whole(1),
    "padding": _PADDING,
    "features": _whole(1),
    "gather": _FLAG,
    "init_std": _number(0, above=True),
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
    "seed": _whole(0, 2**31 - 1),
    "num_epochs": _whole(1),
    "batch_size": _whole(1),
    "model.columns": _one_of(1, 2),
    "model.width": _number(0, above=True),
    "model.num_classes": _whole(1),
    "model.activation": _one_of("relu", "tanh"),
    "model.dropout_rate": _number(0, 1, below=True),
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.lrn.enabled": _FLAG,
    "model.lrn.size": (lambda v: type(v) is int and v > 0 and v % 2 == 1, "an odd whole number, such as 5"),
    "model.lrn.k": _number(0, above=True),
    "model.lrn.alpha": _number(0),
    "model.lrn.beta": _number(0),
    "model.lrn.across_columns": _FLAG,
    "model.pool.size": _whole(1),
    "model.pool.stride": _whole(1),
    "data.name": _TEXT,
    "data.dir": _PATH,
    "data.manual_dir": _PATH,
    "data.channels": _one_of(1, 3),
    "data.image_size": _whole(1),
    "data.crop_size": _whole(1),
    "data.normalization": _one_of("mean_image", "channel_mean_std"),
    "data.train_split": _TEXT,
    "data.val_split": _TEXT,
    "data.test_split": _TEXT,
    "data.threads": _whole(1, 256),
    "augment.crop": _FLAG,
    "augment.flip": _FLAG,
    "augment.pca_std": _number(0),
    "optimizer.learning_rate": _number(0, above=True),
    "optimizer.momentum": _number(0, 1, below=True),
    "optimizer.weight_decay": _number(0),
    "optimizer.plateau.factor": _number(0, 1, above=True),
    "optimizer.plateau.patience": _whole(1),
    "optimizer.plateau.max_drops": _whole(0),
    "mesh.column": _one_of(-1, 1, 2),
    "mesh.data": _whole(1, special=(-1,)),
    "checkpoint.every_steps": _whole(0),
    "checkpoint.keep": _whole(1),
    "eval.views": _one_of(1, 10),
    "eval.batch_size": _whole(1),
    "eval.step": _whole(0, special=(-1,)),
}
# What decides a run's parameters: a workdir belongs to these values.
_RUN_FIELDS = re.compile(
    r"seed|batch_size|model\..*|augment\..*|optimizer\..*"
    r"|data\.(name|channels|image_size|crop_size|normalization|\w+_split)"
)


def flatten(config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | ml_collections.FrozenConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _rules(config) -> dict[str, tuple]:
    rules = dict(_FIELDS)
    layers = config.get("model", {}).get("layers", {})
    for name in (*layers, "fc8"):
        kind = name if name == "fc8" else re.sub(r"\d+$", "", name)
        if not re.fullmatch(r"conv\d+|fc[1-8]", name):
            raise InputError(f"model.layers.{name}: a layer is named conv1, conv2, … or fc1 to fc8, the last")
        rules.update({f"model.layers.{name}.{field}": _LAYER[field] for field in _LAYER_FIELDS[kind]})
    return rules


def _known(field: str) -> dict[str, tuple]:
    """The rules of all fields that a configuration with the paper's layers, and the one named, may have."""
    names = [f"conv{n}" for n in range(1, 6)] + ["fc6", "fc7", "fc8"]
    named = re.match(r"model\.layers\.(conv\d+|fc[1-8])\.", field)
    layers = dict.fromkeys([*names, named[1]] if named else names)
    return _rules({"model": {"layers": layers}})


def unknown(field: str) -> str:
    """One line if there is no such field, else nothing."""
    known = _known(field)
    return "" if field in known else f"{field}: there is no such field{nearest(field, known)}"


def what_works(field: str) -> str:
    known = _known(field)
    return f"give {known[field][1]}" if field in known else unknown(field).partition(": ")[2]


def nearest(field: str, known) -> str:
    """'; did you mean X?', or nothing."""
    last = field.split(".")[-1]
    same_name = [name for name in known if name.split(".")[-1] == last]
    close = same_name or difflib.get_close_matches(field, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def check(config) -> None:
    """Raises InputError for the first field that is unknown, missing, of a wrong type or out of range."""
    rules, given = _rules(config), dict(flatten(config))
    for field in given:
        if field not in rules:
            raise InputError(f"{field}: there is no such field{nearest(field, rules)}")
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


def save(config, workdir: str) -> None:
    """Writes config.json, whole or not at all; one that is the same already is left alone."""
    stored = load(workdir)
    if stored is None or stored.to_dict() != config.to_dict():
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        write_atomically(os.path.join(workdir, "config.json"), text)


def write_atomically(path: str, text: str) -> None:
    with open(path + ".part", "w") as file:
        file.write(text)
    os.replace(path + ".part", path)


def _tuples(value):
    """JSON has lists where a configuration has tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def load(workdir: str) -> ml_collections.ConfigDict | None:
    """The configuration of a workdir, or None where it has none. Raises InputError if it cannot be read."""
    path = os.path.join(workdir, "config.json")
    try:
        with open(path) as file:
            return ml_collections.ConfigDict(_tuples(json.load(file)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: is not a configuration ({error}); give another --workdir") from None


def differing_fields(ours, theirs) -> list[tuple[str, Any, Any]]:
    """(field, ours, theirs) wherever the two describe different runs."""
    ours, theirs = dict(flatten(ours)), dict(flatten(theirs))
    fields = sorted(field for field in ours.keys() | theirs.keys() if _RUN_FIELDS.fullmatch(field))
    return [
        (field, ours.get(field), theirs.get(field))
        for field in fields
        if ours.get(field) != theirs.get(field)
    ]


def check_same_run(config, workdir: str) -> None:
    """Raises InputError if `workdir` holds a run of another configuration, naming the fields that differ."""
    theirs = load(workdir)
    if theirs is None:
        if os.path.exists(workdir) and not os.path.isdir(workdir):
            raise InputError(f"--workdir={workdir}: is a file; give a folder")
        if os.path.isdir(os.path.join(workdir, "checkpoints")):
            raise InputError(f"{workdir}/config.json: missing beside its checkpoints; give another --workdir")
        return
    differing = differing_fields(config, theirs)
    if differing:
        fields = "; ".join(f"{field} is {b!r} there, {a!r} here" for field, a, b in differing[:5])
        fields += f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise InputError(
            f"--workdir={workdir}: belongs to another configuration: {fields}; give another --workdir"
        )
    if config.num_epochs < theirs.num_epochs:
        raise InputError(
            f"num_epochs: {config.num_epochs}, but {workdir} was started with {theirs.num_epochs};"
            " it may grow, not shrink"
        )
