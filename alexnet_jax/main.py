"""python -m alexnet_jax.main --config=configs/NAME.py[:ARG] [--mode=MODE] [--workdir=DIR]
                           [--config.FIELD=VALUE ...]

MODE is one of
    train      train, or go on training, and evaluate the best checkpoint (the default)
    eval       evaluate a checkpoint of the workdir; what is not given is taken from its config.json
    prepare    build the data set and its statistics
    describe   print the network as a table

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
from alexnet_jax.errors import Diverged, InputError

MODES = ("train", "eval", "prepare", "describe")

log = logging.getLogger("alexnet_jax")


def fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


try:
    CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:ARG]")
except flags.Error as error:  # ml_collections reads the command line already here, files of --flagfile too
    fail(str(error), 2)
_MODE = flags.DEFINE_string("mode", "train", ", ".join(MODES))
WORKDIR = flags.DEFINE_string("workdir", None, "the folder of the run; runs/NAME[-ARG] if left out")


def run(mode: str, config, overrides: dict, workdir: str) -> None:
    """One mode of the program. Raises InputError, and Diverged in training."""
    # Imported here, so that a mistake in the flags is told at once.
    if mode == "describe":
        from alexnet_jax import model

        print(model.describe(config))
    elif mode == "eval":
        from alexnet_jax import evaluate

        config = _config_of_workdir(config, overrides, workdir)
        evaluate.evaluate(config, workdir, config.eval.step)
    elif mode == "prepare":
        from alexnet_jax import input_pipeline
        from alexnet_jax.datasets import statistics

        for split in ("train_split", "val_split", "test_split"):
            source = input_pipeline.open_source(config, split)
            if split == "train_split":
                statistics.of_source(source)
        log.info("%s is prepared in %s", config.data.name, source.folder)
    else:
        from alexnet_jax import train

        train.train(config, workdir)


def _config_of_workdir(given, overrides: dict, workdir: str):
    """config.json of the workdir with this command's overrides; `given` may be None."""
    config = configuration.load(workdir)
    if config is None:
        raise InputError(f"--workdir={workdir}: has no config.json; train there first, or name another")
    if given is not None and given.name != config.get("name"):
        # A run's own file may have been overridden when it was trained; another file is a mistake.
        configuration.check_same_run(given, workdir, data=False)
    config.update_from_flattened_dict(overrides)
    configuration.check(config)
    configuration.check_same_run(config, workdir, data=False)
    return config


def main(argv) -> None:
    del argv
    try:
        if _MODE.value not in MODES:
            raise InputError(f"--mode={_MODE.value}: there is no such mode; give one of {', '.join(MODES)}")
        config = CONFIG.value
        if config is None and not (_MODE.value == "eval" and WORKDIR.value):
            raise InputError("--config: missing; give --config=configs/quickstart.py, or another of configs/")
        overrides = {}
        if config is not None:
            overrides = config_flags.get_override_values(flags.FLAGS["config"])
            configuration.check(config)
            from alexnet_jax import model, parallel

            model.layer_shapes(config)
            parallel.mesh_shape(config, None, () if _MODE.value == "eval" else ("batch_size",))
        run(_MODE.value, config, overrides, os.path.expanduser(WORKDIR.value or _default_workdir()))
    except InputError as error:
        fail(str(error), 2)
    except Diverged as error:
        fail(str(error), 1)


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


def parse_flags(argv, usage: str = __doc__, arguments: int = 0):
    """absl's parsing with its errors, and ml_collections', as one line and exit code 2.

    `arguments` is how many there may be without --.
    """
    if {"-h", "--help", "-help", "--helpfull", "--helpshort"} & set(argv):
        print(usage.strip())
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1 + arguments:
            raise InputError(f"{rest[1 + arguments]!r}: is one argument without -- too many; see --help")
        if CONFIG.value is not None:
            CONFIG.value.items()  # raises here if the file could not be read
        return rest
    except InputError as error:
        fail(str(error), 2)
    except Exception as error:  # absl and ml_collections raise many kinds, and a config file any
        fail(_explain(argv, error), 2)


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
        if not CONFIG.present and not _config_argument():
            return f"--config.{field}: comes with --config=configs/NAME.py, which is missing"
        unknown = configuration.unknown(field)
        if unknown:
            return unknown
        if isinstance(error, AttributeError | KeyError):
            return f"{field}: there is no such field in {path}"
    if "Unknown command line flag" in message or "Missing value for flag" in message:
        return f"{message.rstrip(' ?')}; see --help"
    return f"--config={_config_argument()}: {re.sub(r'^[A-Za-z]+Error: ', '', message)}"


def start_log() -> None:
    """Our own lines on stdout; of the libraries, errors only."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setLevel(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)


if __name__ == "__main__":
    start_log()
    app.run(main, flags_parser=parse_flags)
