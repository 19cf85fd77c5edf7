"""python -m alexnet_jax.main --config=configs/NAME.py[:ARG] [--mode=MODE] [--workdir=DIR]
                           [--config.FIELD=VALUE ...]
                           [--coordinator=HOST:PORT --processes=N --process=I] [--join_seconds=300]

MODE is one of
    train      train, or go on training, and evaluate the best checkpoint (the default)
    eval       evaluate a checkpoint of the workdir; what is not given is taken from its config.json
    prepare    build the data set and its statistics
    describe   print the network as a table

Several processes run as one program where --coordinator, an address of process 0, is given, or on a cluster
that JAX detects (SLURM, Open MPI 4, Cloud TPU, Kubernetes with jax[k8s]), which needs none of these flags;
--processes=1 runs alone there.

Nothing else reads flags. Errors in what was given are one line on stderr and exit code 2.
"""

import logging
import os

from absl import app, flags
from ml_collections import config_flags

from alexnet_jax import config as configuration
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime import command_line, machine, processes
from alexnet_jax.runtime.command_line import CONFIG, WORKDIR
from alexnet_jax.runtime.errors import Diverged, InputError
from alexnet_jax.runtime.mesh import mesh_shape
from alexnet_jax.workdirs.workdir import read_config

MODES = ("train", "eval", "prepare", "describe")

log = logging.getLogger("alexnet_jax")

_MODE = flags.DEFINE_string("mode", "train", ", ".join(MODES))
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0")
_PROCESSES = flags.DEFINE_integer("processes", None, "how many processes run as one program", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "which of them this is, from 0", lower_bound=0)
_JOIN_SECONDS = flags.DEFINE_integer("join_seconds", 300, "how long to wait for the others", lower_bound=1)


def run(mode: str, config, overrides: dict, workdir: str) -> None:
    """One mode of the program. Raises InputError, and Diverged in training."""
    # Imported here, so that a mistake in the flags is told at once.
    if mode == "describe":
        from alexnet_jax import network

        print(network.describe(config))
    elif mode == "eval":
        from alexnet_jax import evaluate

        config = processes.all_processes(_config_of_workdir, config, overrides, workdir)
        evaluate.evaluate(config, workdir)
    elif mode == "prepare":
        processes.process_0_first(_prepare, config)
    else:
        from alexnet_jax import train

        train.train(config, workdir)


def _prepare(config) -> None:
    from alexnet_jax.datasets import statistics

    for split in ("train_split", "val_split", "test_split"):
        source = open_source(config, split)
        if split == "train_split":
            statistics.of_source(source)
    log.info("%s is prepared in %s", config.data.name, source.folder)


def _join(mode: str, config, workdir: str) -> None:
    """One program of all processes that are asked for, or that the cluster has."""
    processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _JOIN_SECONDS.value)
    if processes.index() > 0:
        log.setLevel(logging.WARNING)
    fields = dict(configuration.flatten(config)) if config is not None else {}
    for field in ("data.dir", "data.manual_dir", "data.threads"):  # a machine's own
        fields.pop(field, None)
    processes.check_same({"--mode": mode, "--workdir": workdir, **fields})


def _config_of_workdir(given, overrides: dict, workdir: str):
    """config.json of the workdir with this command's overrides; `given` may be None."""
    config = configuration.of_run(workdir, [f"{field}={value}" for field, value in overrides.items()])
    if given is not None and given.name != read_config(workdir).name:
        # A run's own file may have been overridden when it was trained; another file is a mistake.
        configuration.check_same_run(given, workdir, data=False)
    return config


def main(argv) -> None:
    del argv
    try:
        if _MODE.value not in MODES:
            raise InputError(f"--mode={_MODE.value}: there is no such mode; give one of {', '.join(MODES)}")
        if _MODE.value == "train":
            machine.ask_huge_pages()
        config = CONFIG.value
        if config is None and not (_MODE.value == "eval" and WORKDIR.value):
            raise InputError("--config: missing; give --config=configs/quickstart.py, or another of configs/")
        overrides = {}
        if config is not None:
            overrides = config_flags.get_override_values(flags.FLAGS["config"])
            configuration.check(config)
            from alexnet_jax import network

            network.layer_table(config)
            mesh_shape(config, None, () if _MODE.value == "eval" else ("batch_size",))
        workdir = os.path.expanduser(WORKDIR.value or _default_workdir())
        with processes.exit_on_error():
            if _MODE.value != "describe":
                _join(_MODE.value, config, workdir)
            run(_MODE.value, config, overrides, workdir)
            processes.barrier(True)  # none ends before all have done their part, however long it takes
    except InputError as error:
        command_line.fail(str(error), 2)
    except Diverged as error:
        command_line.fail(str(error), 1)


def _default_workdir() -> str:
    path, _, argument = command_line.config_argument().partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join("runs", f"{name}-{argument}" if argument else name)


if __name__ == "__main__":
    command_line.start_log()
    app.run(main, flags_parser=command_line.parser(__doc__))
