"""python -m alexnet_jax.main --config=configs/NAME.py[:ARG] [--mode=MODE] [--workdir=DIR]
                           [--config.FIELD=VALUE ...]
                           [--coordinator=HOST:PORT --processes=N --process=I] [--join_seconds=300]

MODE is one of
    train      train, or go on training, and evaluate the best checkpoint (the default)
    eval       evaluate a checkpoint of the workdir; what is not given is taken from its config.json
    prepare    build the data set and its statistics
    describe   print the network as a table

Several processes run as one program where --coordinator, an address of process 0, is given, or on a cluster
that JAX detects (SLURM, Open MPI, Cloud TPU, Kubernetes), which needs none of these flags; --processes=1 runs
alone there.

Nothing else reads flags. Errors in what was given are one line on stderr and exit code 2.
"""

import logging
import os
import pathlib
import re
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from alexnet_jax import config as configuration
from alexnet_jax import processes
from alexnet_jax.errors import Diverged, InputError

MODES = ("train", "eval", "prepare", "describe")

log = logging.getLogger("alexnet_jax")


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


try:
    _CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:ARG]")
except flags.Error as error:  # ml_collections reads the command line already here, files of --flagfile too
    _fail(str(error), 2)
_MODE = flags.DEFINE_string("mode", "train", ", ".join(MODES))
_WORKDIR = flags.DEFINE_string("workdir", None, "the folder of the run; runs/NAME[-ARG] if left out")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0")
_PROCESSES = flags.DEFINE_integer("processes", None, "how many processes run as one program", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "which of them this is, from 0", lower_bound=0)
_JOIN_SECONDS = flags.DEFINE_integer("join_seconds", 300, "how long to wait for the others", lower_bound=1)


def run(mode: str, config, overrides: dict, workdir: str) -> None:
    """One mode of the program. Raises InputError, and Diverged in training."""
    # Imported here, so that a mistake in the flags is told at once.
    if mode == "describe":
        from alexnet_jax import model

        print(model.describe(config))
    elif mode == "eval":
        from alexnet_jax import evaluate

        config = processes.everyone(_config_of_workdir, config, overrides, workdir)
        evaluate.evaluate(config, workdir, config.eval.step)
    elif mode == "prepare":
        processes.in_turn(_prepare, config)
    else:
        from alexnet_jax import train

        train.train(config, workdir)


def _prepare(config) -> None:
    from alexnet_jax import input_pipeline
    from alexnet_jax.datasets import statistics

    for split in ("train_split", "val_split", "test_split"):
        source = input_pipeline.open_source(config, split)
        if split == "train_split":
            statistics.of_source(source)
    log.info("%s is prepared in %s", config.data.name, source.folder)


def _join(mode: str, config, workdir: str) -> None:
    """One program of all processes that are asked for, or that the cluster has."""
    processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _JOIN_SECONDS.value)
    if processes.index() > 0:
        log.setLevel(logging.WARNING)
    if processes.count() > 1:
        fields = dict(configuration.flatten(config)) if config is not None else {}
        for field in ("data.dir", "data.manual_dir", "data.threads"):  # a machine's own
            fields.pop(field, None)
        processes.same({"--mode": mode, "--workdir": workdir, **fields})


def _config_of_workdir(given, overrides: dict, workdir: str):
    """config.json of the workdir with this command's overrides; `given` may be None."""
    config = configuration.load(workdir)
    if config is None:
        raise InputError(f"--workdir={workdir}: has no config.json; train there first, or name another")
    if given is not None and given.name != config.get("name"):
        # A run's own file may have been overridden when it was trained; another file is a mistake.
        configuration.check_same_run(given, workdir)
    config.update_from_flattened_dict(overrides)
    configuration.check(config)
    configuration.check_same_run(config, workdir)
    return config


def main(argv) -> None:
    del argv
    try:
        if _MODE.value not in MODES:
            raise InputError(f"--mode={_MODE.value}: there is no such mode; give one of {', '.join(MODES)}")
        config = _CONFIG.value
        if config is None and not (_MODE.value == "eval" and _WORKDIR.value):
            raise InputError("--config: missing; give --config=configs/quickstart.py, or another of configs/")
        overrides = {}
        if config is not None:
            overrides = config_flags.get_override_values(flags.FLAGS["config"])
            configuration.check(config)
            from alexnet_jax import model, parallel

            model.layer_shapes(config)
            parallel.mesh_shape(config, None, () if _MODE.value == "eval" else ("batch_size",))
        workdir = os.path.expanduser(_WORKDIR.value or _default_workdir())
        if _MODE.value != "describe":
            _join(_MODE.value, config, workdir)
        with processes.fate():
            run(_MODE.value, config, overrides, workdir)
    except InputError as error:
        _fail(str(error), 2)
    except Diverged as error:
        _fail(str(error), 1)


def _config_argument() -> str:
    """The value of --config as it was typed."""
    pairs = zip(sys.argv, [*sys.argv[1:], ""], strict=True)
    values = [
        arg.partition("=")[2] or following
        for arg, following in pairs
        if arg.lstrip("-").partition("=")[0] == "config"
    ]
    return values[-1] if values else ""


def _default_workdir() -> str:
    path, _, argument = _config_argument().partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join("runs", f"{name}-{argument}" if argument else name)


def _parse_flags(argv):
    """absl's parsing with its errors, and ml_collections', as one line and exit code 2."""
    if {"-h", "--help", "-help", "--helpfull", "--helpshort"} & set(argv):
        print(__doc__.strip())
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise InputError(f"{rest[1]!r}: there are no arguments without --; see --help")
        if _CONFIG.value is not None:
            _CONFIG.value.items()  # raises here if the file could not be read
        return rest
    except InputError as error:
        _fail(str(error), 2)
    except Exception as error:  # absl and ml_collections raise many kinds, and a config file any
        _fail(_explain(argv, error), 2)


def _explain(argv, error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = lines[-1].strip() if lines else type(error).__name__
    path = _config_argument().partition(":")[0]
    if path and not os.path.isfile(path):
        there = sorted(path.name for path in pathlib.Path("configs").glob("[a-z]*.py"))
        return f"--config={_config_argument()}: there is no such file; configs/ has {', '.join(there)}"
    bad_value = re.match(r"flag --config\.(\S+?)=(.*?): ", message)
    if bad_value:
        field, value = bad_value.groups()
        return f"{field}: {value!r} does not work; {configuration.what_works(field)}"
    fields = [re.match(r"--?config\.([^=]+)", arg) for arg in argv]
    for field in (match[1] for match in fields if match):
        if not _CONFIG.present and not _config_argument():
            return f"--config.{field}: comes with --config=configs/NAME.py, which is missing"
        unknown = configuration.unknown(field)
        if unknown:
            return unknown
        if isinstance(error, AttributeError | KeyError):
            return f"{field}: there is no such field in {path}"
    if "Unknown command line flag" in message or "Missing value for flag" in message:
        return f"{message.rstrip(' ?')}; see --help"
    return f"--config={_config_argument()}: {re.sub(r'^[A-Za-z]+Error: ', '', message)}"


def _start_log() -> None:
    """Our own lines on stdout; of the libraries, errors only."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setLevel(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)


if __name__ == "__main__":
    _start_log()
    app.run(main, flags_parser=_parse_flags)
