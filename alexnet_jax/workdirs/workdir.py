"""The folder of a run: config.json, eval.json, statistics.npz, the lock and the log.

Other modules handle checkpoints (checkpoint.py), metrics (metrics.py) and identity.json (identity.py).
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from alexnet_jax.datasets import statistics
from alexnet_jax.datasets.source import Source
from alexnet_jax.runtime import processes
from alexnet_jax.runtime.errors import InputError, Unavailable, input_errors, may_pass, reason, remedy
from alexnet_jax.runtime.files import StrPath, folder_lock, is_number, read_json, write_text
from alexnet_jax.workdirs import identity

log = logging.getLogger("alexnet_jax")

LARGEST_JSON = 1 << 20  # bytes of config.json and eval.json, which have a few thousand
# Fields of every evaluation; a run's also has `step`, an ensemble's `steps`.
RESULT_FIELDS = frozenset({"split", "views", "examples", "loss", "top1_error", "top5_error"})
_NUMBERS = RESULT_FIELDS - {"split"}


def _tuples(value):
    """Return a value of JSON with the tuples of a configuration in place of lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def config_of(content: dict) -> ml_collections.ConfigDict:
    """Return the configuration with this content of config.json, unchecked."""
    return ml_collections.ConfigDict(_tuples(content))


def read_config(workdir: StrPath) -> ml_collections.ConfigDict | None:
    """Read config.json, or return None if there is none. Raises InputError if it cannot be read."""
    path = os.path.join(workdir, "config.json")
    kinds = OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError
    with (
        input_errors(f"{path}: is not a configuration", "give another --workdir", kinds),
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
    ):
        content = read_json(path, LARGEST_JSON)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return config_of(content)
    return None


def write_config(config, workdir: StrPath) -> None:
    """Write config.json, completely or not at all, unless an equal one is there."""
    stored = read_config(workdir)
    if stored is None or stored.to_dict() != config.to_dict():
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        write_text(os.path.join(workdir, "config.json"), text)


def read_result(workdir: StrPath) -> dict:
    """Read eval.json, or return {} if there is none or it is damaged. Raises Unavailable."""
    try:
        result = read_json(os.path.join(workdir, "eval.json"), LARGEST_JSON)
    except (OSError, ValueError):
        return {}
    whole = isinstance(result, dict) and result.keys() >= RESULT_FIELDS and {"step", "steps"} & result.keys()
    right = whole and isinstance(result["split"], str) and all(is_number(result[name]) for name in _NUMBERS)
    return result if right and isinstance(result.get("step", 0), int | None) else {}


def write_result(result: dict, workdir: StrPath) -> None:
    """Write eval.json, completely or not at all."""
    write_text(os.path.join(workdir, "eval.json"), json.dumps(result, indent=2) + "\n")


def evaluated_data(config, source: Source) -> dict[str, Any]:
    """Return the data and the views of an evaluation, for eval.json."""
    data = {"data": config.data.name, "split": config.data.test_split, **identity.of_result(source)}
    return {**data, "views": config.eval.views}


def evaluation(config, workdir: StrPath, source: Source, step: int | None) -> dict[str, Any]:
    """Return the fields of eval.json that decide the error rates: the data, the views and the weights."""
    return {**evaluated_data(config, source), "run": identity.of_workdir(workdir), "step": step}


def is_evaluated(config, workdir: StrPath, source: Source, step: int | None) -> bool:
    """Return whether eval.json is of checkpoint `step` on the test split `source`, and log the result."""
    result, wanted = read_result(workdir), evaluation(config, workdir, source, step)
    other = [name for name in wanted if result.get(name) != wanted[name]]
    if result and other:
        how = "is of another" if other[0] in result else "does not name its"
        log.info(f"{workdir}/eval.json: {how} {' and '.join(other)}; evaluating again")
    elif result:
        where = f"step {step} on {result['split']}"
        log.info(f"the run in {workdir} is finished: {in_words(result)}; {where}")
    return bool(result) and not other


def in_words(result: dict) -> str:
    """Return the error rates and the loss of eval.json as one line."""
    return (
        f"top-1 error {result['top1_error']:.4f}, top-5 error {result['top5_error']:.4f}, loss"
        f" {result['loss']:.4f} ({result['examples']:,} examples)"
    )


def read_statistics(workdir: StrPath, config) -> dict[str, np.ndarray]:
    """Read statistics.npz of the run of `config`. Raises InputError if it is not the run's own."""
    path = os.path.join(workdir, "statistics.npz")
    stored = statistics.load(path)
    if stored is None:
        raise InputError(f"{path}: missing or damaged; the workdir cannot be evaluated without it")
    named, classes = len(stored.get("label_names", ())), config.model.num_classes
    if not statistics.fits(stored, config.data) or named > classes:
        there = "x".join(map(str, stored["mean_image"].shape))
        size, channels = config.data.image_size, config.data.channels
        raise InputError(
            f"{path}: is for {there} images and {named} classes, but config.json for {size}x{size}x{channels}"
            f" and {classes}, or it has values that are not finite; restore the run's own file"
        )
    known, found = (identity.read(workdir) or {}).get("statistics"), statistics.fingerprint(stored)
    if known not in (None, found):  # None in a workdir of an earlier version
        raise InputError(
            f"{path}: is not the file of this run (fingerprint {known} in identity.json, {found} here);"
            " restore the run's own file"
        )
    return stored


class _Log(logging.FileHandler):
    """train.log. A line that cannot be written raises OSError in the program that logs it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        log.removeHandler(self)
        raise OSError(error.errno, error.strerror, self.baseFilename)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # handleError has reported it
            super().close()


@contextlib.contextmanager
def take(config, workdir: StrPath, source: Source, of_run: identity.Identity) -> Iterator[None]:
    """Take the workdir for training within the block: lock it, log there, and write the files of the run.

    Process 0 writes identity.json, statistics.npz of the training split `source`, and config.json, unless
    they are there. Raises InputError if another process trains there, or if the workdir cannot be written or
    is not shared by all processes.
    """
    with contextlib.ExitStack() as stack:
        processes.on_process_0(_take, stack, config, workdir, source, of_run)
        processes.all_processes(_find, workdir)
        yield


def _take(stack, config, workdir: StrPath, source: Source, of_run: identity.Identity) -> None:
    path = os.path.join(workdir, "statistics.npz")
    try:
        os.makedirs(workdir, exist_ok=True)
        stack.enter_context(folder_lock("--workdir", workdir, "another process trains", "one program trains"))
        handler = _Log(os.path.join(workdir, "train.log"))
        stack.enter_context(contextlib.closing(handler))
        new = read_config(workdir) is None
        if new or statistics.load(path) is None:
            label_names = np.array(source.label_names)
            statistics.save(path, {**statistics.of_source(source), "label_names": label_names})
        if (stored := statistics.load(path)) is not None:  # otherwise `take` reports it
            of_run = {**of_run, "statistics": statistics.fingerprint(stored)}
        if new:
            identity.write(workdir, of_run)
            write_config(config, workdir)
    except OSError as error:
        if may_pass(error):
            todo = remedy(error, "the same command resumes")
            raise Unavailable(
                f"{error.filename or workdir}: cannot be written ({reason(error)}){todo}"
            ) from None
        raise InputError(f"--workdir={workdir}: cannot be written ({reason(error)}); give another") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    stack.callback(log.removeHandler, handler)
    identity.complete(workdir, of_run)


def _find(workdir: StrPath) -> None:
    if statistics.load(os.path.join(workdir, "statistics.npz")) is None:
        raise InputError(
            f"--workdir={workdir}: the files that process 0 wrote there are missing; give a folder that all"
            " processes share"
        )
