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

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text
from alexnet_jax.runtime.mesh import mesh_shape

WHAT = {"train": ("torch",), "infer": ("torch", "onnxruntime"), "input": ()}  # and its peers


def main(arguments: list[str]) -> None:
    whole = command_line.whole
    parser = command_line.Parser(__doc__, config=True)
    parser.add_argument("what", metavar="WHAT", type=command_line.one_of(*WHAT), help=", ".join(WHAT))
    parser.add_argument("--batch", metavar="N", type=whole(1), help="images in a batch")
    parser.add_argument("--steps", metavar="N", type=whole(1), help="steps of a turn")
    parser.add_argument("--rounds", metavar="N", type=whole(1), help="how often the contenders take turns")
    parser.add_argument("--seconds", metavar="X", type=float, help="how long a turn is, at least")
    parser.add_argument("--json", metavar="FILE", help="a file for the results")
    parser.add_argument("--peer", metavar="NAME,...", help="others' programs to compare with")
    parser.add_argument("--variants", metavar="OVERRIDES;...", help="our contenders, as overrides")
    given = parser.parse(arguments)
    _check_flags(given)
    config = configuration.load(given.config, given.overrides)
    config.batch_size = given.batch or config.batch_size
    _check(config)
    json_path = os.path.expanduser(given.json or "")
    if json_path:
        command_line.check_writable("--json", json_path)
    results = _input(config, given) if given.what == "input" else _steps(config, given)
    if json_path:
        write_text(json_path, json.dumps(results, indent=2) + "\n")
        print(f"written to {json_path}")


def _check_flags(given) -> None:
    if given.what == "input" and (given.peer is not None or given.variants is not None):
        flag = "peer" if given.peer is not None else "variants"
        raise InputError(f"--{flag}: is for train and infer; input has its own contenders")
    if given.what != "input" and given.seconds is not None:
        raise InputError(f"--seconds: is for input; {given.what} takes --steps")
    for peer in _peers(given):
        if peer not in WHAT[given.what]:
            raise InputError(
                f"--peer={peer}: {given.what} has no such peer; give {' or '.join(WHAT[given.what])}"
            )


def _peers(given) -> list[str]:
    return given.peer.split(",") if given.peer else []


def _check(config) -> None:
    configuration.check(config)
    from alexnet_jax import network  # here, so that a mistake in the flags is told at once

    network.layer_table(config)
    mesh_shape(config, None, ("batch_size",))


def _input(config, given) -> list[dict]:
    from experiments import input_benchmark

    seconds = 1.0 if given.seconds is None else given.seconds
    return input_benchmark.run(config, given.steps or 8, given.rounds or 7, seconds)


def _steps(config, given) -> dict:
    variants = [("alexnet_jax", config)]
    if given.variants is not None:
        variants = [(text, _variant(config, text)) for text in given.variants.split(";")]
    from experiments import step_benchmark

    try:
        return step_benchmark.run(given.what, variants, _peers(given), given.steps or 5, given.rounds or 5)
    except step_benchmark.Failed as error:
        command_line.fail(str(error), 1)


def _variant(config, text: str):
    """The configuration with overrides FIELD=VALUE,FIELD=VALUE."""
    config = config.copy_and_resolve_references()
    overrides = re.split(r",(?=[\w.]+=)", text.strip())  # not at the commas of a tuple
    try:
        if not all("=" in override for override in overrides):
            raise InputError(f"{text!r} has no FIELD=VALUE; see --help")
        fields = dict(override.split("=", 1) for override in overrides)
        configuration.override(config, fields, "--config")
        _check(config)
    except InputError as error:
        raise InputError(f"--variants: {error}") from None
    return config


if __name__ == "__main__":
    command_line.run(main)
