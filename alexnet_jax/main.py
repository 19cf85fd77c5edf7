"""python -m alexnet_jax.main --config=configs/NAME.py[:ARG] [--mode=MODE] [--workdir=DIR]
                           [--config.FIELD=VALUE ...]
                           [--coordinator=HOST:PORT --processes=N --process=I] [--join_seconds=300]

MODE is one of
    train      train, or go on training, and evaluate the best checkpoint (the default)
    eval       evaluate a checkpoint of the workdir; what is not given is taken from its config.json
    prepare    build the data set and its statistics
    describe   print the network as a table

Several processes run as one program if --coordinator, an address of process 0, is given, or on a cluster that
JAX detects (SLURM, Open MPI 4, Cloud TPU, Kubernetes with jax[k8s]), which needs none of these flags. Open
MPI 5 needs none on one machine; on several, and under MPICH, give --coordinator. --processes=1 runs alone.

A mistake in what was given is one line on stderr and exit code 2.
"""

import logging
import os

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line, processes

MODES = ("train", "eval", "prepare", "describe")

log = logging.getLogger("alexnet_jax")


def main(arguments: list[str]) -> None:
    """Read the flags, check them, and run one mode. Raises InputError, and Diverged in training."""
    parser = command_line.Parser(__doc__, config=True)
    whole = command_line.whole
    parser.add_argument("--mode", type=command_line.one_of(*MODES), default="train", help=", ".join(MODES))
    parser.add_argument("--workdir", metavar="DIR", help="the folder of the run; runs/NAME[-ARG] if left out")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="an address of process 0")
    parser.add_argument("--processes", metavar="N", type=whole(1), help="how many run as one program")
    parser.add_argument("--process", metavar="I", type=whole(0), help="which of them this is, from 0")
    parser.add_argument(
        "--join_seconds", metavar="N", type=whole(1), default=300, help="how long to wait for the others"
    )
    given = parser.parse(arguments)
    config = None
    if given.config or given.mode != "eval" or not given.workdir:
        config = configuration.load(given.config, given.overrides)
        _check_network(config, () if given.mode == "eval" else ("batch_size",))
    workdir = os.path.expanduser(given.workdir or _default_workdir(given.config))
    with processes.exit_on_error():
        if given.mode != "describe":
            _join(given, config, workdir)
        _run(given, config, workdir)
        processes.barrier(True)  # none ends before all have done their part, however long it takes


# JAX and what needs it are imported inside functions, so that a mistake in the flags is reported at once.
def _run(given, config, workdir: str) -> None:
    if given.mode == "describe":
        from alexnet_jax import table

        print(table.describe(config))
    elif given.mode == "prepare":
        processes.process_0_first(_prepare, config)
    elif given.mode == "eval":
        from alexnet_jax import evaluate

        config = processes.all_processes(_config_of_workdir, config, given.overrides, workdir)
        evaluate.evaluate(config, workdir)
    else:
        from alexnet_jax import train

        train.train(config, workdir)


def _check_network(config, batches: tuple[str, ...]) -> None:
    """Raise InputError if layers do not fit each other, or the mesh does not fit the network or `batches`."""
    from alexnet_jax.runtime.mesh import mesh_shape
    from alexnet_jax.table import layer_table

    layer_table(config)
    mesh_shape(config, None, batches)


def _default_workdir(file: str) -> str:
    path, _, argument = file.partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join("runs", f"{name}-{argument}" if argument else name)


def _join(given, config, workdir: str) -> None:
    """Join the other processes, if any, and check that all were given the same."""
    processes.join(given.coordinator, given.processes, given.process, given.join_seconds)
    if processes.index() > 0:
        log.setLevel(logging.WARNING)
    fields = given.overrides if config is None else dict(configuration.flatten(config))
    own = ("data.dir", "data.manual_dir", "data.threads")  # each machine may have its own
    shared = {field: value for field, value in fields.items() if field not in own}
    processes.check_same({"--mode": given.mode, "--workdir": workdir, **shared})


def _config_of_workdir(config, overrides: configuration.Overrides, workdir: str):
    """Return config.json of the workdir with this command's overrides; `config` is --config's, or None."""
    stored = configuration.of_run(workdir, overrides)
    if config is not None and config.name != stored.name:
        # A run's own file may have been overridden when it was trained; another file is a mistake.
        configuration.check_same_run(config, workdir, data=False)
    return stored


def _prepare(config) -> None:
    from alexnet_jax.datasets import statistics
    from alexnet_jax.datasets.source import open_splits

    train_source, *_ = open_splits(config, "train_split", "val_split", "test_split")
    statistics.of_source(train_source)
    log.info("%s is prepared in %s", config.data.name, train_source.folder)


if __name__ == "__main__":
    command_line.run(main)
