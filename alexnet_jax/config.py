"""Define the fields of a configuration, and check that a workdir belongs to it.

    load              return the configuration of --config=FILE[:ARG], with overrides
    of_run            return the configuration in config.json of a workdir, with overrides
    override          put {FIELD: value} into a configuration
    typed             convert the texts of overrides to values
    check             check that every field is known, has its type and is in its range
    check_stored      check a stored configuration, perhaps of an older version
    check_same_run    check that a workdir belongs to a configuration

configs/paper.py lists the fields, and its values give their types; this module has only ranges and choices.
All of these raise InputError.
"""

import ast
import copy
import functools
import math
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_collections

from alexnet_jax.runtime.command_line import call_file
from alexnet_jax.runtime.errors import InputError, nearest, printable
from alexnet_jax.runtime.files import StrPath
from alexnet_jax.workdirs.workdir import read_config

OPS = ("activation", "lrn", "spatial_norm", "batch_norm", "pool", "average_pool", "dropout")

Overrides = Mapping[str, Any]  # field -> its value, or the value's text from a command line
_NONE: Overrides = {}


def _one_of(*choices) -> tuple:
    return f"one of {', '.join(map(str, choices))}", lambda v: v in choices


# The expected value in words, the test of a value of the right type, and the fields.
_TABLE = (
    ("a whole number of at least 1", lambda v: v >= 1,
     "num_epochs batch_size micro_batches model.num_classes model.pool.size model.pool.stride"
     " model.layers.*.kernel model.layers.*.stride model.layers.*.features data.image_size data.crop_size"
     " augment.crop_group optimizer.plateau.patience checkpoint.keep eval.batch_size"),
    ("a whole number of at least 0", lambda v: v >= 0, "optimizer.plateau.max_drops checkpoint.every_steps"),
    ("a whole number of at least 0, or -1 for never", lambda v: v >= -1,
     "augment.pca_epochs optimizer.conv1_drop_epoch optimizer.conv1_freeze_epoch"),
    ("a whole number of at least 0, or -1", lambda v: v >= -1, "eval.step"),
    ("a whole number of at least 1, or -1", lambda v: v >= 1 or v == -1, "mesh.data"),
    ("a whole number from 0 to 2147483647", lambda v: 0 <= v < 2**31, "seed"),
    ("a whole number from 1 to 256, or 0 for one per core", lambda v: 0 <= v <= 256, "data.threads"),
    ("an odd whole number, such as 5", lambda v: v > 0 and v % 2 == 1,
     "model.lrn.size model.spatial_norm.size"),
    ("a number above 0", lambda v: v > 0,
     "model.width model.lrn.k model.spatial_norm.k model.layers.*.init_std augment.pca_divisor"
     " optimizer.learning_rate optimizer.trust_coefficient optimizer.power model.batch_norm.epsilon"),
    ("a number of at least 0", lambda v: v >= 0,
     "model.lrn.alpha model.lrn.beta model.spatial_norm.alpha model.spatial_norm.beta augment.pca_std"
     " optimizer.weight_decay optimizer.bias_rate optimizer.warmup_epochs mesh.watchdog_minutes"),
    ("a number of at least 0 and below 1", lambda v: 0 <= v < 1,
     "model.dropout_rate model.batch_norm.momentum optimizer.momentum"),
    ("a number above 0 and at most 1", lambda v: 0 < v <= 1, "optimizer.plateau.factor"),
    ("a text that is not empty", bool, "name data.name data.train_split data.val_split data.test_split"),
    ("a tuple of layers, such as ('conv1', 'conv2')", lambda v: all(isinstance(name, str) for name in v),
     "init_layers"),
    ("two whole numbers of zeros (before, after), such as (2, 2)",
     lambda v: len(v) == 2 and all(type(n) is int and n >= 0 for n in v), "model.layers.*.padding"),
    (f"a tuple of {', '.join(OPS)}, such as ('activation', 'pool'), with batch_norm at most once",
     lambda v: all(op in OPS for op in v) and v.count("batch_norm") <= 1, "model.layers.*.then"),
    ("a tuple of rising epochs, such as (30, 60), or () for the plateau",
     lambda v: all(type(n) is int and n >= 1 for n in v) and list(v) == sorted(set(v)),
     "optimizer.drop_epochs"),
    (*_one_of(1, 2), "model.columns"),
    (*_one_of("relu", "tanh"), "model.activation"),
    (*_one_of("test", "train"), "model.dropout_scale"),
    (*_one_of("float32", "bfloat16"), "model.dtype"),
    (*_one_of("default", "highest"), "model.precision"),
    (*_one_of("momentum", "lars"), "optimizer.name"),
    (*_one_of("plateau", "epochs", "polynomial"), "optimizer.schedule"),
    (*_one_of("raw", "jpeg"), "data.store"),
    (*_one_of(1, 3), "data.channels"),
    (*_one_of("mean_image", "channel_mean_std"), "data.normalization"),
    (*_one_of("image", "centre"), "augment.mean_crop"),
    (*_one_of(-1, 1, 2), "mesh.column"),
    (*_one_of(1, 10), "eval.views"),
)  # fmt: skip
_RULES = {field: (text, test) for text, test, fields in _TABLE for field in fields.split()}
_ANY = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", tuple: "a tuple"}

# The fields that decide a run's parameters: a workdir belongs to their values.
_RUN_FIELDS = re.compile(
    r"seed|batch_size|init_layers|model\..*|augment\..*|optimizer\..*"
    r"|data\.(name|channels|image_size|crop_size|normalization|reshuffle|\w+_split)"
)
_SYNCHRONIZED = "model.batch_norm.synchronized"
# Fields that older stored configurations lack. The values in configs/paper.py give the former behaviour.
_ADDED = (
    "mesh.watchdog_minutes", "mesh.deterministic", "mesh.fused", "micro_batches", "model.precision",
    "model.batch_norm", "optimizer.name", "optimizer.trust_coefficient", "optimizer.schedule",
    "optimizer.power", "optimizer.warmup_epochs",
)  # fmt: skip
# Fields in which an evaluation may differ from the run.
_OWN_OF_EVALUATION = re.compile(r"data\.(name|\w+_split)|mesh\.data|micro_batches")


def flatten(config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every field."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | ml_collections.FrozenConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _root() -> pathlib.Path:
    """Return the folder that has configs/: the clone, or in a wheel the package."""
    package = pathlib.Path(__file__).parent
    return next(path for path in (package, package.parent) if (path / "configs/paper.py").is_file())


@functools.cache
def _paper() -> ml_collections.ConfigDict:
    """Return the configuration of configs/paper.py."""
    return runpy.run_path(str(_root() / "configs/paper.py"))["get_config"]()


def _types(layers: Iterable[str]) -> dict[str, type]:
    """Return the type of every field of a configuration with these layers, the last being fc8."""
    fields, paper_layers = flatten(_paper()), _paper().model.layers
    types = {field: type(value) for field, value in fields if not field.startswith("model.layers.")}
    for name in (*layers, "fc8"):
        if not re.fullmatch(r"conv\d+|fc[1-8]", name):
            raise InputError(f"model.layers.{name}: a layer is named conv1, conv2, … or fc1 to fc8, the last")
        like = paper_layers["fc8" if name == "fc8" else "conv1" if name.startswith("conv") else "fc6"]
        types |= {f"model.layers.{name}.{field}": type(value) for field, value in like.items()}
    return types


def _type(field: str) -> type:
    """Return the type of a field of any configuration. Raises InputError if there is none of this name."""
    named = re.findall(r"^model\.layers\.(conv\d+|fc[1-8])\.", field)
    types = _types([*_paper().model.layers, *named])
    if field not in types:
        raise InputError(f"{printable(field)}: there is no such field{nearest(field, types)}")
    return types[field]


def _rule(field: str, kind: type) -> tuple:
    """Return the expected value of a field in words, and the test of a value of its type."""
    field = re.sub(r"^model\.layers\.\w+", "model.layers.*", field)
    return _RULES.get(field, (_ANY[kind], lambda _: True))


def check(config) -> None:
    """Raise InputError for the first field that is unknown, missing, of a wrong type or out of range."""
    types, given = _types(config.get("model", {}).get("layers", {})), dict(flatten(config))
    for field in given:
        if field not in types:
            _type(field)
    for field, kind in types.items():
        if field not in given:
            raise InputError(f"{field}: missing from the configuration; configs/paper.py has all fields")
        value = given[field]
        text, test = _rule(field, kind)
        right = isinstance(value, kind) if kind in (str, tuple) else type(value) is kind
        if kind is float:
            right = type(value) in (int, float) and math.isfinite(value)
        if not (right and test(value)):
            raise InputError(f"{field}: expected {text}, got {value!r}")
    data = config.data
    if data.crop_size > data.image_size:
        raise InputError(
            f"data.crop_size: expected at most data.image_size, {data.image_size}, got {data.crop_size}"
        )
    if config.optimizer.schedule == "polynomial" and config.optimizer.drop_epochs:
        raise InputError(
            f"optimizer.drop_epochs: expected () with optimizer.schedule=polynomial, got"
            f" {config.optimizer.drop_epochs!r}"
        )
    if "mesh.data" in run_fields(config) and config.mesh.data == -1:
        raise InputError(
            "mesh.data: expected the number of devices over which a batch is split, got -1; it decides the"
            f" statistics of batch normalisation, unless {_SYNCHRONIZED}"
        )
    pool = config.model.pool
    if pool.ceil and pool.stride > pool.size:
        raise InputError(
            f"model.pool.stride: expected at most model.pool.size, {pool.size}, got {pool.stride}; with"
            " model.pool.ceil a window may lie outside"
        )


def check_stored(config) -> None:
    """Add the fields that a stored configuration of an older version lacks, and `check` it."""
    paper = _paper()
    for field in _ADDED:
        part, _, name = field.rpartition(".")
        there, here = (config.get(part), paper[part]) if part else (config, paper)
        if isinstance(there, ml_collections.ConfigDict) and name not in there:
            there[name] = copy.deepcopy(here[name])
    check(config)


def load(file: str | None, overrides: Overrides = _NONE) -> ml_collections.ConfigDict:
    """Return the configuration of --config, `file`, changed by `overrides` and checked."""
    if not file:
        for field in overrides:
            raise InputError(f"--config.{field}: needs --config=configs/NAME.py, which is missing")
        raise InputError("--config: missing; give --config=configs/quickstart.py, or another of configs/")
    former = list(sys.path)
    sys.path.append(str(_root()))  # configurations import each other
    try:
        config = call_file("--config", file, "get_config", folder="configs")
    finally:
        sys.path[:] = former
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"--config={file}: its get_config returns no ConfigDict")
    override(config, overrides, file.partition(":")[0])
    check(config)
    return config


def of_run(workdir: StrPath, overrides: Overrides = _NONE) -> ml_collections.ConfigDict:
    """Return config.json of a workdir, changed by `overrides` in the fields that may change."""
    config = read_config(workdir)
    if config is None:
        raise InputError(f"{workdir}: has no config.json; give the workdir of a run")
    check_stored(config)
    override(config, overrides, f"{workdir}/config.json")
    check(config)
    check_same_run(config, workdir, data=False)
    return config


def override(config, overrides: Overrides, where: str) -> None:
    """Put `overrides` into `config`, which comes from `where`, without a `check` of their ranges."""
    fields, values = dict(flatten(config)), typed(overrides)
    for field in values:
        if field not in fields:
            raise InputError(f"{printable(field)}: there is no such field in {where}")
    with config.ignore_type():  # `check` is stricter
        config.update_from_flattened_dict(values)


def typed(overrides: Overrides) -> dict[str, Any]:
    """Return `overrides` with their texts converted to the fields' types."""
    return {field: _read(field, value) for field, value in overrides.items()}


def _read(field: str, text: Any) -> Any:
    kind = _type(field)
    if not isinstance(text, str):
        return float(text) if kind is float and type(text) is int else text
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is not tuple:
            return kind(text)
        value = text if re.fullmatch(r"[A-Za-z]\w*", text) else ast.literal_eval(text)  # conv1 is ("conv1",)
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    except (KeyError, ValueError, SyntaxError):
        raise InputError(f"{field}: expected {_rule(field, kind)[0]}, got {text!r}") from None


def run_fields(config) -> dict[str, Any]:
    """Return the fields that decide a run's parameters, without `init_from`.

    A field that an older configuration lacks has its value in configs/paper.py. With batch normalisation, the
    number of images that share statistics decides too, and with a polynomial decay the number of epochs.
    """
    fields = {field: value for field, value in flatten(_paper()) if field.startswith(_ADDED)}
    fields |= dict(flatten(config))
    more: tuple[str, ...] = ()
    if any("batch_norm" in value for field, value in fields.items() if field.endswith(".then")):
        more = ("micro_batches",) if fields[_SYNCHRONIZED] else ("micro_batches", "mesh.data")
    if fields["optimizer.schedule"] == "polynomial":
        more += ("num_epochs",)
    return {field: fields[field] for field in fields if _RUN_FIELDS.fullmatch(field) or field in more}


def differences(config, theirs, data: bool = True) -> str:
    """Return the differing fields that decide a run's parameters, with both values; "" if there are none.

    Without `data`, the fields that belong to an evaluation may differ, such as the data set and its splits.
    """
    here, there = run_fields(config), run_fields(theirs)
    differing = sorted(
        field
        for field in here.keys() | there.keys()
        if here.get(field) != there.get(field) and (data or not _OWN_OF_EVALUATION.fullmatch(field))
    )
    more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
    return "; ".join(f"{f} is {there.get(f)!r} there, {here.get(f)!r} here" for f in differing[:5]) + more


def check_same_run(config, workdir: StrPath, data: bool = True) -> ml_collections.ConfigDict | None:
    """Return the configuration of the run that `workdir` holds, or None if it holds none.

    Raises InputError, naming the fields, if it differs from `config`. Without `data`, the data set and its
    splits may differ, because a network can be evaluated on any.
    """
    theirs = read_config(workdir)
    if theirs is None:
        if os.path.exists(workdir) and not os.path.isdir(workdir):
            raise InputError(f"--workdir={workdir}: is a file; give a folder")
        if os.path.isdir(os.path.join(workdir, "checkpoints")):
            raise InputError(f"{workdir}/config.json: missing beside its checkpoints; give another --workdir")
        return None
    if config.num_epochs != theirs.num_epochs and config.optimizer.schedule == "polynomial":
        raise InputError(
            f"num_epochs: {config.num_epochs}, but {workdir} was started with {theirs.num_epochs}; with"
            " optimizer.schedule=polynomial the learning rates depend on it, so give another --workdir"
        )
    differing = differences(config, theirs, data)
    if differing:
        raise InputError(
            f"--workdir={workdir}: belongs to another configuration: {differing}; give another --workdir"
        )
    if config.num_epochs < theirs.num_epochs:
        raise InputError(
            f"num_epochs: {config.num_epochs}, but {workdir} was started with {theirs.num_epochs};"
            " it may grow, not shrink"
        )
    return theirs
