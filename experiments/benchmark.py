"""python -m experiments.benchmark WHAT --config=configs/NAME.py[:ARG] [--config.FIELD=VALUE ...]
                                [--batch=N] [--steps=N] [--rounds=N] [--json=FILE]
                                [--peer=NAME,...] [--variants=OVERRIDES;...] [--seconds=X]

WHAT is
    train    training steps on random images, augmentation and dropout included, without an input pipeline
    infer    one central view of random images, forward and log-softmax (both: experiments/step_benchmark.py)
    input    images per second from storage to batches on the devices (experiments/input_benchmark.py)

--batch      images in a batch; the configuration's if left out
--steps      steps of a turn, 5 if left out; of input, batches in one pass, 8
--rounds     how often the contenders take turns, 5 if left out; of input 7
--json       a file for the results
--peer       of train and infer: torch, and of infer also onnxruntime; they run configs/paper.py's network
--variants   of train and infer: our contenders, each a set of overrides, such as
             'mesh.column=1;mesh.column=2' or 'batch_size=64,model.dtype=bfloat16;batch_size=64'
--seconds    of input: how long a turn is, at least, 1 if left out; passes are repeated until then

Errors in what was given are one line on stderr and exit code 2.
"""

import json
import os
import re

from absl import app, flags

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text
from alexnet_jax.runtime.mesh import mesh_shape

WHAT = {"train": ("torch",), "infer": ("torch", "onnxruntime"), "input": ()}  # and its peers

_BATCH = flags.DEFINE_integer("batch", None, "images in a batch", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", None, "steps of a turn", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", None, "how often the contenders take turns", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "how long a turn is, at least", lower_bound=0.0)
_JSON = flags.DEFINE_string("json", None, "a file for the results")
_PEERS = flags.DEFINE_list("peer", [], "others' programs to compare with")
_VARIANTS = flags.DEFINE_string("variants", None, "our contenders, as overrides of the configuration")


def main(argv) -> None:
    try:
        what = "".join(argv[1:])
        if what not in WHAT:
            raise InputError(f"{what!r}: give one of {', '.join(WHAT)}; see --help")
        if command_line.WORKDIR.present:
            raise InputError("--workdir: is not for a benchmark, which keeps no run")
        _check_flags(what)
        config = command_line.CONFIG.value
        if config is None:
            raise InputError("--config: missing; give --config=configs/paper.py, or another of configs/")
        config.batch_size = _BATCH.value or config.batch_size
        _check(config)
        json_path = os.path.expanduser(_JSON.value or "")
        if json_path:
            command_line.check_writable("--json", json_path)
        results = _input(config) if what == "input" else _steps(what, config)
        if json_path:
            write_text(json_path, json.dumps(results, indent=2) + "\n")
            print(f"written to {json_path}")
    except InputError as error:
        command_line.fail(str(error), 2)


def _check_flags(what: str) -> None:
    if what == "input" and (_PEERS.present or _VARIANTS.present):
        flag = "peer" if _PEERS.present else "variants"
        raise InputError(f"--{flag}: is for train and infer; input has its own contenders")
    if what != "input" and _SECONDS.present:
        raise InputError(f"--seconds: is for input; {what} takes --steps")
    for peer in _PEERS.value:
        if peer not in WHAT[what]:
            raise InputError(f"--peer={peer}: {what} has no such peer; give {' or '.join(WHAT[what])}")


def _check(config) -> None:
    configuration.check(config)
    from alexnet_jax import network  # here, so that a mistake in the flags is told at once

    network.layer_table(config)
    mesh_shape(config, None, ("batch_size",))


def _input(config) -> list[dict]:
    from experiments import input_benchmark

    return input_benchmark.run(config, _STEPS.value or 8, _ROUNDS.value or 7, _SECONDS.value)


def _steps(what: str, config) -> dict:
    variants = [("alexnet_jax", config)]
    if _VARIANTS.value is not None:
        variants = [(text, _variant(config, text)) for text in _VARIANTS.value.split(";")]
    from experiments import step_benchmark

    try:
        return step_benchmark.run(what, variants, _PEERS.value, _STEPS.value or 5, _ROUNDS.value or 5)
    except step_benchmark.Failed as error:
        command_line.fail(str(error), 1)


def _variant(config, text: str):
    """The configuration with overrides FIELD=VALUE,FIELD=VALUE."""
    config = config.copy_and_resolve_references()
    overrides = re.split(r",(?=[\w.]+=)", text.strip())  # not at the commas of a tuple
    try:
        if not all("=" in override for override in overrides):
            raise InputError(f"{text!r} has no FIELD=VALUE; see --help")
        configuration.override(config, overrides, "--config")
        _check(config)
    except InputError as error:
        raise InputError(f"--variants: {error}") from None
    return config


if __name__ == "__main__":
    command_line.start_log()
    app.run(main, flags_parser=command_line.parser(__doc__, arguments=1))
