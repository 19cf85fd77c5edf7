"""Take a network's first parameters from another run (section 7, table 2: ImageNet 2011 before 2012)."""

import logging
import os

import jax

from alexnet_jax import config as configuration
from alexnet_jax import evaluate, optimizer
from alexnet_jax.runtime import processes
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.step import abstract_state
from alexnet_jax.workdirs import identity, remote
from alexnet_jax.workdirs.checkpoint import has_checkpoints
from alexnet_jax.workdirs.workdir import read_config

log = logging.getLogger("alexnet_jax")


def first_layers(
    config, workdir: str, mesh, former_config, former: identity.Identity | None
) -> tuple[dict | None, dict]:
    """Return the layers of another run that the run of `workdir` starts with, and their origin.

    The layers are None if it starts without them, or resumes. `former_config` and `former` are the
    configuration and the identity of the run that the workdir holds, if any. Raises InputError.
    """
    processes.all_processes(_check_origin, config, workdir, former_config, former)
    if config.init_from and not processes.from_process_0(has_checkpoints, workdir):
        taken, origin = _layers_of_other_run(config, mesh)
        processes.all_processes(_check_same_step, workdir, former, origin)
        return taken, origin
    return None, former["origin"] if former else identity.UNKNOWN if config.init_from else identity.DRAWN


def _layers_of_other_run(config, mesh) -> tuple[dict, dict]:
    """Restore `init_layers` of the best checkpoint of the workdir `init_from`.

    Return {layer: parameters} and their origin, for identity.json. Raises InputError if the other run lacks a
    layer, or has it in another shape.
    """
    workdir = os.path.expanduser(config.init_from)
    with remote.copied(workdir, "init_from") as folder:
        return _layers_of(folder, workdir, config, mesh)


def _layers_of(folder: str, workdir: str, config, mesh) -> tuple[dict, dict]:
    other = read_config(folder)
    if other is None:
        raise InputError(f"init_from: {workdir} has no config.json; give the workdir of another run")
    configuration.check_stored(other)
    ours, theirs = (
        abstract_state(network, mesh, optimizer.make(network)).params for network in (config, other)
    )
    for layer in config.init_layers:
        for params, whose in ((ours, "this network"), (theirs, workdir)):
            if layer not in params:
                raise InputError(f"init_layers: {layer!r} is not in {whose}, which has {', '.join(params)}")
        there, here = ([x.shape for x in jax.tree.leaves(params[layer])] for params in (theirs, ours))
        if there != here:
            raise InputError(f"init_layers: {layer} is {there} in {workdir} and {here} here; leave it out")
    step, params = evaluate.stored_params(other, folder, mesh)
    log.info(f"starting from step {step} of {workdir}: {', '.join(config.init_layers)}")
    origin = {"kind": "run", "run": identity.of_workdir(folder), "step": step, "workdir": workdir}
    return {layer: params[layer] for layer in config.init_layers}, origin


def _check_origin(config, workdir: str, former_config, former: identity.Identity | None) -> None:
    """Raise InputError if the run of `workdir` started from another run than `init_from` names now.

    The other run may have been moved or deleted.
    """
    if former_config is None:
        return
    origin = former["origin"] if former else identity.UNKNOWN
    there, here = origin.get("workdir", former_config.init_from), os.path.expanduser(config.init_from)
    if origin["kind"] == "run" and here:
        with remote.copied(here, "init_from", checkpoints=False) as folder:
            same = identity.of_workdir(folder) in (origin["run"], None)
    else:
        same = there == config.init_from
    if not same:
        raise InputError(
            f"init_from: {workdir} started from {there or 'no other run'}, but"
            f" {here or 'none'} is given now; give the former, or another --workdir"
        )


def _check_same_step(workdir: str, former: identity.Identity | None, origin: dict) -> None:
    """Raise InputError if a run without a checkpoint would start from another step than it recorded.

    `former` is its identity, `origin` that of the layers that were just taken.
    """
    there = former["origin"] if former else {}
    if there.get("kind") == "run" and (there["run"], there["step"]) != (origin["run"], origin["step"]):
        raise InputError(
            f"init_from: {workdir} started from step {there['step']} of {there['workdir']}, whose best step"
            f" is {origin['step']} now; give another --workdir"
        )
