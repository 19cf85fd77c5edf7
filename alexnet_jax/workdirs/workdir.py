"""The folder of a run: config.json, eval.json, statistics.npz, the lock and the log.

Its checkpoints are in checkpoint.py, its rows of metrics in metrics.py, its identity.json in identity.py.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator

import ml_collections
import numpy as np

from alexnet_jax.datasets import statistics
from alexnet_jax.datasets.source import Source
from alexnet_jax.runtime import processes
from alexnet_jax.runtime.errors import InputError, first_line
from alexnet_jax.runtime.files import StrPath, folder_lock, read_json, write_text
from alexnet_jax.workdirs import identity

log = logging.getLogger("alexnet_jax")

LARGEST_JSON = 1 << 20  # bytes of config.json and eval.json, which have a few thousand
# Fields of every evaluation; besides, one of a run has `step`, one of an ensemble `steps`.
RESULT_FIELDS = frozenset({"split", "views", "examples", "loss", "top1_error", "top5_error"})


def _tuples(value):
    """JSON has lists where a configuration has tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def config_of(content: dict) -> ml_collections.ConfigDict:
    """Return the configuration whose JSON, as in config.json, has this content. Does not check it."""
    return ml_collections.ConfigDict(_tuples(content))


def read_config(workdir: StrPath) -> ml_collections.ConfigDict | None:
    """Read config.json, or return None if there is none. Raises InputError if it cannot be read."""
    path = os.path.join(workdir, "config.json")
    try:
        return config_of(read_json(path, LARGEST_JSON))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: is not a configuration ({first_line(error)}); give another --workdir"
        ) from None


def write_config(config, workdir: StrPath) -> None:
    """Write config.json, whole or not at all; an equal one is left alone."""
    stored = read_config(workdir)
    if stored is None or stored.to_dict() != config.to_dict():
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        write_text(os.path.join(workdir, "config.json"), text)


def read_result(workdir: StrPath) -> dict:
    """Read eval.json, or return {} if there is none or it cannot be read."""
    try:
        result = read_json(os.path.join(workdir, "eval.json"), LARGEST_JSON)
    except (OSError, ValueError):
        return {}
    complete = (
        isinstance(result, dict) and result.keys() >= RESULT_FIELDS and isinstance(result["split"], str)
    )
    numbers = complete and all(type(result[name]) in (int, float) for name in RESULT_FIELDS - {"split"})
    return result if numbers and {"step", "steps"} & result.keys() else {}


def write_result(result: dict, workdir: StrPath) -> None:
    """Write eval.json, whole or not at all."""
    write_text(os.path.join(workdir, "eval.json"), json.dumps(result, indent=2) + "\n")


def read_statistics(workdir: StrPath) -> dict[str, np.ndarray]:
    """Read statistics.npz. Raises InputError if it is missing or damaged."""
    path = os.path.join(workdir, "statistics.npz")
    stored = statistics.load(path)
    if stored is None:
        raise InputError(f"{path}: missing or damaged; the workdir cannot be evaluated without it")
    return stored


@contextlib.contextmanager
def take(config, workdir: StrPath, source: Source, of_run: identity.Identity) -> Iterator[None]:
    """Take the workdir for training within the block: lock it, log there and write what its run needs.

    Process 0 writes identity.json, statistics.npz of the training split `source`, and config.json, unless
    they are there. Raises InputError if another process trains there, or it cannot be written or is not
    shared by all.
    """
    with contextlib.ExitStack() as stack:
        processes.on_process_0(_take, stack, config, workdir, source, of_run)
        processes.all_processes(_find, workdir)
        yield


def _take(stack, config, workdir: StrPath, source: Source, of_run: identity.Identity) -> None:
    path = os.path.join(workdir, "statistics.npz")
    try:
        os.makedirs(workdir, exist_ok=True)
        stack.enter_context(folder_lock(workdir, "another process trains", "one program trains"))
        handler = logging.FileHandler(os.path.join(workdir, "train.log"))
        stack.enter_context(contextlib.closing(handler))
        if read_config(workdir) is None or statistics.load(path) is None:
            label_names = np.array(source.label_names)
            statistics.save(path, {**statistics.of_source(source), "label_names": label_names})
        if read_config(workdir) is None:
            identity.write(workdir, of_run)
            write_config(config, workdir)
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be written ({error}); give another") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    stack.callback(log.removeHandler, handler)
    identity.complete(workdir, of_run)


def _find(workdir: StrPath) -> None:
    if statistics.load(os.path.join(workdir, "statistics.npz")) is None:
        raise InputError(
            f"--workdir={workdir}: what process 0 wrote there is not found; give a folder that all share"
        )
