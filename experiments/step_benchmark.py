"""Images per second of a training step or of a forward pass, beside PyTorch and ONNX Runtime.

Ours is the step of make_train_step, augmentation and dropout included, on random uint8 images; or the
forward pass of make_view_outputs, of one central view. The peers are in torch_peer.py and onnx_peer.py:
the paper's network, in float32. There is no input pipeline in any of them.

Each contender has a process of its own (contender.py), so that they share neither threads nor memory, and
is started with the same environment. It compiles and takes two steps unmeasured. Then, in each round, each
takes `steps` steps while the others wait, the order turning round from one round to the next: machines drift,
and what disturbs one round disturbs all contenders in it. Images per second are the batch over the median of
all steps; a ratio is the median of those within a round.

Beside the contenders, in every round, jax multiplies two float32 matrices of 2048x2048 on one device: what
this machine can do. A contender's FLOP/s are those of its convolutions and matrix products, over its time, as
their definitions count them: an algorithm may do fewer (alexnet_jax/winograd.py).
"""

import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

from alexnet_jax import config as configuration
from alexnet_jax.network import layer_table
from alexnet_jax.runtime import machine, progress
from alexnet_jax.runtime.errors import InputError
from configs import paper
from experiments.contender import PRODUCT

PROGRAMS = {  # of each peer, with their own arguments
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


class Failed(Exception):
    """A contender could not run or ended. The message is one line. Exit code 1."""


def flop_per_image(config, what: str) -> int:
    """Floating-point operations of the convolutions and products by definition, a multiply-add being two.

    Backward is twice forward, for the gradients to the weights and to the inputs; the images have none.
    Normalisation, pooling and the update are not counted. `what` is "train" or "infer".
    """
    work = [layer.multiply_adds for layer in layer_table(config)]
    return 2 * sum(work) if what == "infer" else 2 * (3 * sum(work) - work[0])


def run(what: str, variants: list[tuple], peers: list[str], steps: int, rounds: int) -> dict:
    """Measures `what`, "train" or "infer", and prints a table; gives what --json holds.

    `variants`: (name, configuration) of each of our contenders; ratios are of the first of them.
    `peers`: "torch", "onnxruntime"; one that is not installed is left out.
    Raises InputError where the peers do not run such a network, or the devices do not allow a mesh; Failed.
    """
    peers = [peer for peer in peers if _can_run(peer, variants)]
    contenders = []
    try:
        _start_all(contenders, what, variants, peers, steps)
        _take_turns(contenders, rounds)
    finally:
        for contender in contenders:
            contender.stop()
    *contenders, product = contenders
    first = contenders[0]
    rate = 2 * PRODUCT**3 / statistics.median(sum(product.rounds, []))
    results = {
        "what": what,
        "config": first.config.name,
        "steps": steps,
        "rounds": rounds,
        "cpus": progress.cores(),
        "versions": {name: _version(name) for name in ("jax", "jaxlib", *peers)},
        "product_flops_per_second": round(rate),
        "contenders": [_row(contender, first, what, rate) for contender in contenders],
    }
    _print(results)
    return results


def _can_run(peer: str, variants: list[tuple]) -> bool:
    """Whether it is installed; raises InputError for a network that it is not written for."""
    for _, config in variants:
        if _network(config) != _network(paper.get_config()):
            raise InputError(f"--peer={peer}: runs the network of configs/paper.py only; leave --peer out")
    modules, extra = INSTALL[peer]
    missing = [module for module in modules if not importlib.util.find_spec(module)]
    if missing:
        log.info(f"{peer}: left out, {missing[0]} is not installed; pip install '.[{extra}]'")
    return not missing


def _network(config) -> dict:
    """What decides the work of a step, but for the type of our computation."""
    model = dict(configuration.flatten(config.model))
    return model | {"dtype": "", "crop_size": config.data.crop_size, "channels": config.data.channels}


def _start_all(contenders: list, what: str, variants: list[tuple], peers: list[str], steps: int) -> None:
    """Adds ours, the peers', and the product of matrices, one after the other as they are ready."""

    def start(name, batch, given, config=None):
        contender = Contender(name, batch, config, {"what": what, "steps": steps, **given})
        contenders.append(contender)
        contender.wait_until_ready()
        log.info(f"{name}: first step {contender.facts['first_step_seconds']:.1f} s after its start")

    for name, config in variants:
        start(name, config.batch_size, {"kind": "ours", "config": config.to_dict()}, config)
    first = contenders[0]
    common = {"batch": first.batch, "threads": progress.cores(), "platform": first.facts["platform"]}
    for peer in peers:
        for name, own in PROGRAMS[peer].items():
            try:
                start(name, first.batch, {"kind": peer, "arguments": common | own})
            except Failed as error:  # no compiler, say
                contenders.pop().stop()
                log.info(f"{error}; left out")
    start(f"{PRODUCT}x{PRODUCT} product", 0, {"kind": "product"})


def _take_turns(contenders: list, rounds: int) -> None:
    start = time.monotonic()
    for number in range(1, rounds + 1):
        for contender in contenders[:: 1 if number % 2 else -1]:
            contender.take_turn()
        left = (time.monotonic() - start) / number * (rounds - number)
        rates = ", ".join(f"{c.name} {c.images_per_second(-1):.1f}" for c in contenders if c.batch)
        log.info(f"round {number}/{rounds}: {rates} images/s; {left:.0f} s left")


def _row(contender, first, what: str, product_rate: float) -> dict:
    """A contender's results. `first_over_this` are the ratios to it of our first contender."""
    facts, rate = contender.facts, contender.images_per_second()
    ratios = [first.images_per_second(n) / contender.images_per_second(n) for n in range(len(first.rounds))]
    flops = rate * flop_per_image(contender.config or first.config, what)
    # A CPU is one machine, into however many devices it is split; other devices are one each.
    devices = 1 if facts.get("platform") == "cpu" else math.prod(facts.get("mesh", {}).values())
    return {
        "name": contender.name,
        "batch": contender.batch,
        "images_per_second": round(rate, 2),
        "first_over_this": {
            "median": round(statistics.median(ratios), 4),
            "min": round(min(ratios), 4),
            "max": round(max(ratios), 4),
        },
        "flops_per_second": round(flops),
        "fraction_of_product": round(flops / (product_rate * devices), 4),
        "peak_memory_bytes": contender.peak_memory,
        **facts,
        "seconds": [[round(seconds, 6) for seconds in steps] for steps in contender.rounds],
    }


def _print(results: dict) -> None:
    rows = results["contenders"]
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


class Contender:
    """A process that takes steps when it is asked to."""

    def __init__(self, name: str, batch: int, config, given: dict):
        self.name, self.batch, self.config, self.rounds = name, batch, config, []  # config of ours only
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.contender"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=_environment(),
        )  # fmt: skip
        self._send(repr(given | {"started": time.time()}))

    def wait_until_ready(self) -> None:
        """Raises InputError, or Failed."""
        self.facts = self._receive()

    def take_turn(self) -> None:
        """Raises Failed."""
        self._send("go")
        seconds, self.peak_memory = self._receive()
        self.rounds.append(seconds)

    def images_per_second(self, number: int | None = None) -> float:
        """Of one round, or of all."""
        seconds = sum(self.rounds, []) if number is None else self.rounds[number]
        return self.batch / statistics.median(seconds)

    def stop(self) -> None:
        try:
            self._process.communicate(timeout=10)  # its input ends, and so does it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _send(self, line: str) -> None:
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self._ended()

    def _receive(self):
        line = self._process.stdout.readline()
        return json.loads(line) if line else self._ended()

    def _ended(self):
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        if code == 2 and lines:
            raise InputError(lines[-1])
        if code < 0:
            why = f"by signal {-code}; if memory is short, give a smaller --batch"
        else:
            why = f"with exit code {code}" + (f": {lines[-1]}" if lines else "")
        raise Failed(f"{self.name}: its process ended {why}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # onnxruntime-gpu, say


def _environment() -> dict[str, str]:
    """Of all contenders, ours and the peers': with large pages, as our program asks for; compiling anew.

    And without jax taking most of a GPU's memory at its start, of which the others need a share.
    """
    own = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    own["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    return os.environ | machine.huge_pages() | own
