"""python -m experiments.scaling [--out=FILE] [--only=v5e:2x2,...] [--per_device=128]

Compile the training step of configs/paper.py ahead of time for TPUs, which need not be present, and tabulate
the compiler's numbers per device: floating-point operations, memory, bytes exchanged over each axis of the
mesh, and its estimate of the time. From these follow images per second, and days and device-hours for 90
epochs of ILSVRC-2012, with the paper's global batch of 128 or a batch that grows with the devices, and with
one column per device or both on one. The table is written as FILE.json and FILE.md, its figure as FILE.png
and FILE.pdf.

This needs libtpu, whose mere presence makes JAX look for a TPU at every start. `make scaling` therefore keeps
it in a separate virtual environment.

The time of a step is the sum of the compiler's cycles over the operations of one device, loops included, plus
the exchanged bytes divided by the bandwidth of the links: an estimate without overlap, not a measurement.
Peak rates and bandwidths are those that Google publishes (Cloud TPU documentation, "TPU v4", "v5e", "v6e"),
for all links of a chip together, although a small group of devices does not use all. The clock of v6e is
assumed.
"""

import dataclasses
import json
import math
import os
import re
import time

import numpy as np

from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError, first_line
from alexnet_jax.runtime.files import write_text

IMAGES, EPOCHS, BATCH = 1_281_167, 90, 128
KINDS = ("json", "md", "png", "pdf")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device in JAX: one of the two TensorCores of a v4 chip, or a whole v5e or v6e chip."""

    clock: float  # Hz, the published peak divided by the products per cycle
    links: float  # bytes per second, its share of the chip's links, one way
    devices: int = 1  # per chip


CHIPS = {
    "v4": Chip(clock=1.05e9, links=300e9 / 2, devices=2),
    "v5e": Chip(clock=1.5e9, links=200e9),
    "v6e": Chip(clock=1.75e9, links=400e9),
}
TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16", "v4:2x2x1", "v6e:2x2")


def compiled_step(topology: str, columns: int, batch: int):
    """Return the number of devices, the global batch and the compiled training step of configs/paper.py.

    `batch` is the global batch or, if negative, the batch of each device.
    """
    import jax
    import jax.numpy as jnp
    import ml_collections
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    from alexnet_jax import optimizer
    from alexnet_jax.runtime.mesh import batch_sharding, replicated
    from alexnet_jax.step import abstract_state, make_train_step
    from configs import paper

    try:
        devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # libtpu has no exceptions of its own
        raise InputError(
            f"--only={topology}: cannot be compiled for ({first_line(error)[:100]}); is libtpu installed?"
        ) from None
    config = paper.get_config()
    config.batch_size = batch if batch > 0 else -batch * len(devices)
    config = ml_collections.FrozenConfigDict(config)
    names = ("data", "column")[:columns]
    grid = devices.reshape(-1, columns) if columns > 1 else devices
    mesh = Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))
    tx = optimizer.make(config)

    def placed(sharding, dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    split, everywhere = batch_sharding(mesh), replicated(mesh)
    shapes = dict(mean_image=(256, 256, 3), channel_mean=(3,), channel_std=(3,), eigenvectors=(3, 3),
                  standard_deviations=(3,))  # fmt: skip
    statistics = {name: placed(everywhere, jnp.float32, *shape) for name, shape in shapes.items()}
    images = placed(split, jnp.uint8, config.batch_size, 256, 256, 3)
    labels = placed(split, jnp.int32, config.batch_size)
    state = abstract_state(config, mesh, tx)
    step = make_train_step(config, mesh, tx)
    return len(devices), config.batch_size, step.lower(state, images, labels, statistics).compile()


def cycles(program: str) -> int:
    """Return the compiler's estimate for one device: all operations in sequence, with loops repeated."""
    bodies = dict(re.findall(r"^(?:ENTRY )?(%[\w.\-]+) \(.*?\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    entry = re.search(r"^ENTRY (%[\w.\-]+)", program, re.MULTILINE)[1]  # type: ignore[index]

    def of(name: str) -> int:
        total = 0
        for line in bodies[name].splitlines():
            found = re.search(r'"estimated_cycles":"(\d+)"', line)
            total += int(found[1]) if found else 0
            loop = re.search(r" while\(.*body=(%[\w.\-]+)", line)
            if loop:
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                total += (int(trips[1]) if trips else 1) * of(loop[1])
        return total

    return of(entry)


BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "u8": 1, "pred": 1}


def exchanged(program: str, columns: int) -> dict[str, float]:
    """Return the bytes that one device sends over each axis.

    An all-reduce sends twice its size, the others once, each minus the part that a device keeps, one n-th of
    n devices.
    """
    devices = int(re.search(r"num_partitions=(\d+)", program)[1])  # type: ignore[index]
    sent = {"column": 0.0, "data": 0.0}
    pattern = r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    for line in program.splitlines():
        found = re.search(pattern, line)
        if not found:
            continue
        sizes = [
            BYTES.get(kind, 4) * math.prod(_numbers(shape))
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", found[1])
        ]
        # The start of an all-gather or a permutation also lists its operand.
        size = max(sizes) if re.search(r"(all-gather|permute)-start\(", line) else sum(sizes)
        groups = _groups(line, devices)
        group = len(groups[0])
        if found[2] == "reduce-scatter":
            size *= group
        share = 1 if found[2] == "collective-permute" else (group - 1) / group
        within_pairs = columns > 1 and all(n // columns == own[0] // columns for own in groups for n in own)
        sent["column" if within_pairs else "data"] += (2 if found[2] == "all-reduce" else 1) * size * share
    return sent


def _groups(line: str, devices: int) -> list[list[int]]:
    """Return the groups of devices that exchange data; for a permutation, the pairs (source, target)."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]+\},?)*)\}", line)
    if listed:
        groups = re.findall(r"[\d,]+(?=\})", listed[1])
        return [_numbers(group) for group in groups] or [list(range(devices))]
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    shape, grid, order = (_numbers(text or "") for text in counted.groups())  # type: ignore[union-attr]
    return np.arange(devices).reshape(grid).transpose(order or None).reshape(shape).tolist()


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def row(topology: str, columns: int, batch: int) -> dict:
    """Return the line of the table for one of `cases`."""
    devices, batch, step = compiled_step(topology, columns, batch)
    program, memory = step.as_text(), step.memory_analysis()
    chip, sent = CHIPS[topology.partition(":")[0]], exchanged(program, columns)
    compute = cycles(program) / chip.clock
    exchange = sum(sent.values()) / chip.links
    images_per_second = batch / (compute + exchange)
    hours = IMAGES * EPOCHS / images_per_second / 3600
    return {
        "topology": topology,
        "devices": devices,
        "mesh": [devices // columns, columns],
        "global_batch": batch,
        "gflop": step.cost_analysis()["flops"] / 1e9,
        "memory_mb": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6,
        "column_mb": sent["column"] / 1e6,
        "data_mb": sent["data"] / 1e6,
        "compute_ms": 1e3 * compute,
        "exchange_ms": 1e3 * exchange,
        "images_per_second": images_per_second,
        "days": hours / 24,
        "device_hours": hours * devices,
    }


def cases(topologies, per_device: int) -> list[tuple[str, int, int]]:
    """Return the arguments of `compiled_step` for every line of the table."""
    return [
        (topology, columns, batch)
        for topology in topologies
        for batch in (BATCH, -per_device)
        for columns in (1, 2)
        if batch < 0 or _devices(topology) // columns <= BATCH
    ]


def _devices(topology: str) -> int:
    chip, _, chips = topology.partition(":")
    return CHIPS[chip].devices * math.prod(int(n) for n in chips.split("x"))


def markdown(rows: list[dict]) -> str:
    """Return the table."""
    head = (
        "devices", "mesh", "global batch", "GFLOP", "memory, MB", "over `column`, MB", "over `data`, MB",
        "compute, ms", "exchange, ms", "images/s", "90 epochs, days", "device-hours",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = (
            f"{r['topology']} ({r['devices']})", "{} x {}".format(*r["mesh"]), f"{r['global_batch']:,}",
            f"{r['gflop']:.1f}", f"{r['memory_mb']:,.0f}", f"{r['column_mb']:.2f}", f"{r['data_mb']:.0f}",
            f"{r['compute_ms']:.2f}", f"{r['exchange_ms']:.2f}", f"{r['images_per_second']:,.0f}",
            f"{r['days']:.3f}", f"{r['device_hours']:,.1f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    if any(r["topology"].startswith("v6e") for r in rows):
        lines += ["", f"v6e: a clock of {CHIPS['v6e'].clock / 1e9} GHz is assumed."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write the table, each line as soon as it is known, and its figure. Raises InputError."""
    parser = command_line.Parser(__doc__)
    parser.add_argument(
        "--out", metavar="FILE", default="experiments/results/scaling/scaling", help="where to write"
    )
    parser.add_argument("--only", metavar="V5E:2X2,...", default=",".join(TOPOLOGIES), help="the TPUs")
    parser.add_argument(
        "--per_device",
        metavar="N",
        type=command_line.whole(1),
        default=BATCH,
        help="images per device, for a batch that grows with the devices",
    )
    given = parser.parse(arguments)
    topologies = given.only.split(",")
    for topology in topologies:
        if not re.fullmatch(rf"({'|'.join(CHIPS)}):\d+(x\d+)+", topology):
            raise InputError(f"--only={topology}: give {', '.join(TOPOLOGIES)}, or others like them")
    for kind in KINDS:
        command_line.check_writable("--out", f"{given.out}.{kind}")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu compiles; nothing runs on a TPU
    rows, start, todo = [], time.monotonic(), cases(topologies, given.per_device)
    for number, case in enumerate(todo, 1):
        rows.append(row(*case))
        write_text(f"{given.out}.json", json.dumps(rows, indent=1) + "\n")
        write_text(f"{given.out}.md", markdown(rows))
        left = (time.monotonic() - start) / number * (len(todo) - number)
        r = rows[-1]
        print(f"{number} of {len(todo)}: {r['topology']}, mesh {r['mesh']}, batch {r['global_batch']}:"
              f" {r['images_per_second']:,.0f} images/s; {left:.0f} s left", flush=True)  # fmt: skip

    from experiments.plots import common, scaling

    common.save(scaling.draw(rows, BATCH), [f"{given.out}.{kind}" for kind in KINDS[2:]])


if __name__ == "__main__":
    command_line.run(main)
