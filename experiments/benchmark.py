"""python -m experiments.benchmark WHAT --config=configs/NAME.py[:ARG] [--config.FIELD=VALUE ...]
                                [--batch=N] [--steps=N] [--rounds=N] [--json=FILE]
                                [--baseline=NAME,...] [--variants=OVERRIDES;...] [--seconds=X]

WHAT is
    train    training steps on random images, with augmentation and dropout but without an input pipeline
    infer    one central view of random images, forward and log-softmax (both: benchmarks/steps.py)
    input    images per second from storage to batches on the devices (benchmarks/inputs.py)

The programs take turns, each in its own process. --variants gives several configurations to compare, each a
set of overrides, as in 'batch_size=64,model.dtype=bfloat16;batch_size=64'. A baseline runs the network of
configs/paper.py in PyTorch or, for infer, in ONNX Runtime. A mistake in the flags is reported in one line on
stderr, with exit code 2.
"""

import json
import os
import re

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text

WHAT = {"train": ("torch",), "infer": ("torch", "onnxruntime"), "input": ()}  # and its baselines
COUNT = command_line.whole(1)
FLAGS = (
    ("--batch", "N", COUNT, "images per batch (default: the configuration's)"),
    ("--steps", "N", COUNT, "steps per turn; for input, batches per pass (default: 5; for input 8)"),
    ("--rounds", "N", COUNT, "number of turns of each program (default: 5; for input 7)"),
    ("--seconds", "X", float, "for input: least duration of a turn (default: 1)"),
    ("--json", "FILE", str, "a file for the results"),
    ("--baseline --peer", "NAME,...", str, "programs to compare with: torch, onnxruntime"),
    ("--variants", "OVERRIDES;...", str, "configurations, as overrides: 'mesh.column=1;mesh.column=2'"),
)


def main(arguments: list[str]) -> None:
    """Run the command."""
    parser = command_line.Parser(__doc__, config=True)
    parser.add_argument("what", metavar="WHAT", type=command_line.one_of(*WHAT), help=", ".join(WHAT))
    for flag, metavar, kind, text in FLAGS:
        parser.add_argument(*flag.split(), metavar=metavar, type=kind, help=text)
    given = parser.parse(arguments)
    _check_flags(given)
    config = configuration.load(given.config, given.overrides)
    config.batch_size = given.batch or config.batch_size
    _check(config)
    json_path = os.path.expanduser(given.json or "")
    if json_path:
        command_line.check_writable("--json", json_path)
    results = _measure(config, given)
    if json_path:
        write_text(json_path, json.dumps(results, indent=2) + "\n")
        print(f"written to {json_path}")


def _check_flags(given) -> None:
    if given.what == "input" and (given.baseline is not None or given.variants is not None):
        flag = "baseline" if given.baseline is not None else "variants"
        raise InputError(f"--{flag}: is for train and infer; input has its own programs")
    if given.what != "input" and given.seconds is not None:
        raise InputError(f"--seconds: is for input; {given.what} takes --steps")
    for baseline in _baselines(given):
        if baseline not in WHAT[given.what]:
            raise InputError(
                f"--baseline={baseline}: {given.what} has no such baseline; give"
                f" {' or '.join(WHAT[given.what])}"
            )


def _baselines(given) -> list[str]:
    return given.baseline.split(",") if given.baseline else []


def _check(config) -> None:
    """Raise InputError if the configuration does not work. Slow imports are here, after the flags' check."""
    from alexnet_jax.runtime.mesh import mesh_shape
    from alexnet_jax.table import layer_table

    configuration.check(config)
    layer_table(config)
    mesh_shape(config, None, ("batch_size",))


def _measure(config, given) -> list[dict] | dict:
    if given.what == "input":
        from experiments.benchmarks import inputs

        seconds = 1.0 if given.seconds is None else given.seconds
        return inputs.run(config, given.steps or 8, given.rounds or 7, seconds)
    from experiments.benchmarks import steps

    variants = [("alexnet_jax", config)]
    if given.variants is not None:
        variants = [(text, _variant(config, text)) for text in given.variants.split(";")]
    return steps.run(given.what, variants, _baselines(given), given.steps or 5, given.rounds or 5)


def _variant(config, text: str):
    """Return the configuration with overrides FIELD=VALUE,FIELD=VALUE."""
    config = config.copy_and_resolve_references()
    overrides = re.split(r",(?=[\w.]+=)", text.strip())  # not at commas inside a tuple
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
