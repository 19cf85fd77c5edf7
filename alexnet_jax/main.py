"""python -m alexnet_jax.main --config=configs/NAME.py[:ARG] [--mode=MODE] [--workdir=DIR]
                           [--config.FIELD=VALUE ...]
                           [--coordinator=HOST:PORT --processes=N --process=I] [--join_seconds=300]

MODE is one of
    train      train, or resume training, and evaluate the best checkpoint (the default)
    eval       evaluate a checkpoint of the workdir; fields that are not given come from its config.json
    prepare    build the data set and its statistics
    describe   print the network as a table

Several processes run as one program if --coordinator, an address of process 0, is given. On a cluster that
JAX detects (SLURM, Open MPI 4, Cloud TPU, Kubernetes with jax[k8s]) these flags are not needed, nor under
Open MPI 5 on one machine. On several machines, and under MPICH, give --coordinator. To run a
single process inside a cluster's job, give --processes=1.

A mistake in the flags is reported in one line on stderr, with exit code 2.
"""

import logging
import os

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line, processes
from alexnet_jax.workdirs import remote

MODES = ("train", "eval", "prepare", "describe")

log = logging.getLogger("alexnet_jax")


def main(arguments: list[str]) -> None:
    """Read the flags, check them, and run one mode. Raises InputError, and Diverged in training."""
    parser = command_line.Parser(__doc__, config=True)
    whole = command_line.whole
    parser.add_argument("--mode", type=command_line.one_of(*MODES), default="train", help=", ".join(MODES))
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the folder of the run, or its gs:// or s3:// URL (default: runs/NAME[-ARG])",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="an address of process 0")
    parser.add_argument("--processes", metavar="N", type=whole(1), help="the number of processes")
    parser.add_argument("--process", metavar="I", type=whole(0), help="the number of this process, from 0")
    parser.add_argument(
        "--join_seconds", metavar="N", type=whole(1), default=300, help="seconds to wait for the others"
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
        processes.barrier(True)  # no process ends before all are done, however long it takes


# JAX and its users are imported inside functions, so that a mistake in the flags is reported at once.
def _run(given, config, workdir: str) -> None:
    if given.mode == "describe":
        from alexnet_jax import table

        print(table.describe(config))
    elif given.mode == "prepare":
        processes.process_0_first(_prepare, config)
    elif given.mode == "eval":
        from alexnet_jax import evaluate

        with remote.copied(workdir) as folder:
            config = processes.all_processes(_config_of_workdir, config, given.overrides, folder)
            evaluate.evaluate(config, folder)
    else:
        from alexnet_jax import train

        train.train(config, workdir)


def _check_network(config, batches: tuple[str, ...]) -> None:
    """Raise InputError if layers do not fit together, or the mesh does not fit the network or `batches`."""
    from alexnet_jax.runtime.mesh import mesh_shape
    from alexnet_jax.table import layer_table

    layer_table(config)
    mesh_shape(config, None, batches)


def _default_workdir(file: str) -> str:
    path, _, argument = file.partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join("runs", f"{name}-{argument}" if argument else name)


def _join(given, config, workdir: str) -> None:
    """Join the other processes, if any, and check that all were given the same flags."""
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
        # The run may have been trained with overrides of its own file; another file is a mistake.
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
