"""python -m experiments.benchmark WHAT --config=configs/NAME.py[:ARG] [--config.FIELD=VALUE ...]
                                [--batch=N] [--steps=N] [--rounds=N] [--seconds=X]
                                [--json=FILE]

WHAT is
    input    images per second from storage to batches on the devices (experiments/input_benchmark.py)

--batch    images in a batch; the configuration's if left out
--steps    batches in one pass
--rounds   how often the contenders alternate; the median counts
--seconds  how long a turn is, at least; passes are repeated until then
--json     a file for the results

Errors in what was given are one line on stderr and exit code 2.
"""

import json
import os

from absl import app, flags

from alexnet_jax import command_line
from alexnet_jax import config as configuration
from alexnet_jax.errors import InputError

WHAT = ("input",)

_BATCH = flags.DEFINE_integer("batch", None, "images in a batch", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 8, "batches in one pass", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "how often the contenders alternate", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "how long a turn is, at least", lower_bound=0.0)
_JSON = flags.DEFINE_string("json", None, "a file for the results")


def main(argv) -> None:
    try:
        given = "".join(argv[1:])
        if given not in WHAT:
            raise InputError(f"{given!r}: give one of {', '.join(WHAT)}; see --help")
        if command_line.WORKDIR.present:
            raise InputError("--workdir: is not for a benchmark, which keeps no run")
        config = command_line.CONFIG.value
        if config is None:
            raise InputError("--config: missing; give --config=configs/paper.py, or another of configs/")
        configuration.check(config)
        config.batch_size = _BATCH.value or config.batch_size
        from alexnet_jax import parallel, shapes  # here, so that a mistake in the flags is told at once

        shapes.layer_shapes(config)
        parallel.mesh_shape(config, None, ("batch_size",))
        json_path = os.path.expanduser(_JSON.value or "")
        if json_path:
            _check_writable(json_path)
        from experiments import input_benchmark

        results = input_benchmark.run(config, _STEPS.value, _ROUNDS.value, _SECONDS.value)
        if json_path:
            configuration.write_atomically(json_path, json.dumps(results, indent=2) + "\n")
            print(f"written to {json_path}")
    except InputError as error:
        command_line.fail(str(error), 2)


def _check_writable(path: str) -> None:
    """Raises InputError now, rather than after minutes of measuring, if `path` cannot be written."""
    reason = "it is a folder" if os.path.isdir(path) else ""
    try:
        configuration.write_atomically(f"{path}.try", "")
        os.remove(f"{path}.try")
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InputError(f"--json={path}: cannot be written ({reason}); give another")


if __name__ == "__main__":
    command_line.start_log()
    app.run(main, flags_parser=command_line.parser(__doc__, arguments=1))
