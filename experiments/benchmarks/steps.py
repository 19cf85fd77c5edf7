"""Images per second of a training step or a forward pass, beside PyTorch and ONNX Runtime.

Our program is the step of make_train_step, with augmentation and dropout, on random uint8 images, or the
forward pass of make_view_outputs for one central view. The baselines in torch_baseline.py and
onnx_baseline.py are the paper's network in float32. None of them has an input pipeline.

Each program has its own process (program.py) in the same environment, so that programs share neither threads
nor memory. It compiles, and takes two steps that are not measured. Then, in each round, each program takes
`steps` steps while the others wait, in reversed order in every other round. Machines drift, but a disturbance
of a round affects all programs in it. Images per second are the batch divided by the median of all steps; a
ratio is the median of the ratios within a round.

In every round JAX also multiplies two float32 matrices of 2048x2048 on one device, to measure the machine's
speed. A program's FLOP/s are the operations of its convolutions and matrix products by definition, divided by
its time; an algorithm may need fewer (alexnet_jax/kernels/winograd.py).
"""

import importlib.metadata
import importlib.util
import logging
import math
import statistics
import time

from alexnet_jax import config as configuration
from alexnet_jax.runtime import progress
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.table import layer_table
from configs import paper
from experiments.benchmarks.program import Program
from experiments.benchmarks.step_programs import PRODUCT, onnxruntime, ours, product, timed, torch

STARTS = {"torch": torch, "onnxruntime": onnxruntime}
PROGRAMS: dict[str, dict[str, dict]] = {  # the programs of each baseline, with their arguments
    "torch": {
        "torch eager NCHW": {"compiled": False, "channels_last": False},
        "torch eager channels_last": {"compiled": False, "channels_last": True},
        "torch compiled NCHW": {"compiled": True, "channels_last": False},
        "torch compiled channels_last": {"compiled": True, "channels_last": True},
    },
    "onnxruntime": {"onnxruntime": {}},
}
INSTALL = {"torch": (("torch",), "oracle"), "onnxruntime": (("onnxruntime", "onnx"), "test")}  # its extra

log = logging.getLogger("alexnet_jax")


def flop_per_image(config, what: str) -> int:
    """Count the floating-point operations of the convolutions and products by definition.

    A multiply-add counts as two. The backward pass takes twice the forward pass, for the gradients of weights
    and of inputs, except those of the images. Normalisation, pooling and the update are not counted. `what`
    is "train" or "infer".
    """
    work = [layer.multiply_adds for layer in layer_table(config)]
    return 2 * sum(work) if what == "infer" else 2 * (3 * sum(work) - work[0])


def run(what: str, variants: list[tuple], baselines: list[str], steps: int, rounds: int) -> dict:
    """Measure `what`, "train" or "infer", print a table, and return the results for --json.

    `variants` has (name, configuration) for each of our programs; ratios are those of the first program.
    `baselines` are "torch" and "onnxruntime"; one that is not installed is left out. Raises InputError if the
    baselines do not run such a network or the devices do not fit the mesh, and ChildProcessError if a program
    ends.
    """
    baselines = [baseline for baseline in baselines if can_run(baseline, variants)]
    measured = []
    try:
        _start_all(measured, what, variants, baselines)
        _take_turns(measured, steps, rounds)
    finally:
        for each in measured:
            each.program.stop()
    *measured, yardstick = measured
    rate = 2 * PRODUCT**3 / statistics.median(sum(yardstick.rounds, []))
    results = {
        "what": what,
        "config": measured[0].config.name,
        "steps": steps,
        "rounds": rounds,
        "cpus": progress.cores(),
        "versions": {name: _version(name) for name in ("jax", "jaxlib", *baselines)},
        "product_flops_per_second": round(rate),
        "programs": [_row(each, measured[0], what, rate) for each in measured],
    }
    _print(results)
    return results


def can_run(baseline: str, variants: list[tuple]) -> bool:
    """Return whether a baseline is installed. Raises InputError for a network that it does not support."""
    for _, config in variants:
        if _network(config) != _network(paper.get_config()):
            raise InputError(
                f"--baseline={baseline}: runs the network of configs/paper.py only; leave --baseline out"
            )
    modules, extra = INSTALL[baseline]
    missing = [module for module in modules if not importlib.util.find_spec(module)]
    if missing:
        log.info(f"{baseline}: left out, {missing[0]} is not installed; pip install '.[{extra}]'")
    return not missing


def _network(config) -> dict:
    """Return the fields that decide the work of a step, except for the type of our computation."""
    model = dict(configuration.flatten(config.model))
    return model | {"dtype": "", "crop_size": config.data.crop_size, "channels": config.data.channels}


class Measured:
    """A program with its measurements: `rounds` has the seconds of each step of each round."""

    def __init__(self, name: str, batch: int, config, start, *arguments):
        self.name, self.batch, self.config, self.rounds = name, batch, config, []  # config: only for ours
        self.peak_memory = 0
        self.facts: dict = {}
        self.program = Program(name, timed, start, time.time(), *arguments)

    def images_per_second(self, number: int | None = None) -> float:
        """Return the rate of one round, or of all rounds."""
        seconds = sum(self.rounds, []) if number is None else self.rounds[number]
        return self.batch / statistics.median(seconds)

    def take_turn(self, steps: int) -> None:
        """Measure a round."""
        seconds, self.peak_memory = self.program.turn(steps)
        self.rounds.append(seconds)


def _start_all(measured: list, what: str, variants: list[tuple], baselines: list[str]) -> None:
    """Add our programs, the baselines' and the product of matrices, each once the one before is ready."""

    def add(name, batch, config, start, *arguments):
        measured.append(Measured(name, batch, config, start, *arguments))
        measured[-1].facts = measured[-1].program.facts()
        seconds = measured[-1].facts["first_step_seconds"]
        log.info(f"{name}: first step {seconds:.1f} s after its start")

    for name, config in variants:
        add(name, config.batch_size, config, ours, what, config)
    batch = measured[0].batch
    common = {"batch": batch, "threads": progress.cores(), "platform": measured[0].facts["platform"]}
    for baseline in baselines:
        for name, own in PROGRAMS[baseline].items():
            try:
                add(name, batch, None, STARTS[baseline], what, common | own)
            except ChildProcessError as error:  # for example, without a compiler
                measured.pop().program.stop()
                log.info(f"{error}; left out")
    add(f"{PRODUCT}x{PRODUCT} product", 0, None, product)


def _take_turns(measured: list[Measured], steps: int, rounds: int) -> None:
    start = time.monotonic()
    for number in range(1, rounds + 1):
        for each in measured[:: 1 if number % 2 else -1]:
            each.take_turn(steps)
        left = (time.monotonic() - start) / number * (rounds - number)
        rates = ", ".join(f"{each.name} {each.images_per_second(-1):.1f}" for each in measured if each.batch)
        log.info(f"round {number}/{rounds}: {rates} images/s; {left:.0f} s left")


def _row(each: Measured, first: Measured, what: str, product_rate: float) -> dict:
    """Return a program's results. `first_over_this` has ratios of our first program's rate to its rate."""
    facts, rate = each.facts, each.images_per_second()
    ratios = [first.images_per_second(n) / each.images_per_second(n) for n in range(len(first.rounds))]
    flops = rate * flop_per_image(each.config or first.config, what)
    # A CPU is one machine, however many devices it is split into; other devices count separately.
    devices = 1 if facts.get("platform") == "cpu" else math.prod(facts.get("mesh", {}).values())
    return {
        "name": each.name,
        "batch": each.batch,
        "images_per_second": round(rate, 2),
        "first_over_this": {
            "median": round(statistics.median(ratios), 4),
            "min": round(min(ratios), 4),
            "max": round(max(ratios), 4),
        },
        "flops_per_second": round(flops),
        "fraction_of_product": round(flops / (product_rate * devices), 4),
        "peak_memory_bytes": each.peak_memory,
        **facts,
        "seconds": [[round(seconds, 6) for seconds in steps] for steps in each.rounds],
    }


def _print(results: dict) -> None:
    rows = results["programs"]
    width = max(len(row["name"]) for row in rows)
    versus = f"{rows[0]['name']} over it (min to max)" if len(rows) > 1 else ""
    log.info(
        f"\n{'':{width}}  batch  images/s  GFLOP/s  of product  memory, MB  compile, s  first step, s"
        f"   {versus}"
    )
    for row in rows:
        ratio = row["first_over_this"]
        last = f"   {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"
        compiled = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
        log.info(
            f"{row['name']:{width}}{row['batch']:7}{row['images_per_second']:10,.1f}"
            f"{row['flops_per_second'] / 1e9:9,.1f}{row['fraction_of_product']:12.3f}"
            f"{row['peak_memory_bytes'] / 1e6:12,.0f}{compiled:>12}{row['first_step_seconds']:15.1f}"
            f"{last if row is not rows[0] else ''}"
        )
    log.info(
        f"{results['what']}, {results['config']}; medians of {results['rounds']} rounds of"
        f" {results['steps']} steps; {PRODUCT}x{PRODUCT} product of jax:"
        f" {results['product_flops_per_second'] / 1e9:,.1f} GFLOP/s; {results['cpus']} CPUs"
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # for example onnxruntime-gpu
