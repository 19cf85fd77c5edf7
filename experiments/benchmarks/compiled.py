"""What XLA's text of a compiled program tells of the time it will take, on devices that are not there.

cycles       of a TPU: the compiler's estimate of all operations in a row
traffic      of a GPU: kernels launched, bytes they move, XLA's estimate of their time
exchanged    bytes that a device sends over each axis of the mesh
floors       what no program can go below, by bytes and by arithmetic
"""

import math
import re
from typing import NamedTuple

import numpy as np

from alexnet_jax.table import layer_table
from experiments.benchmarks.steps import flop_per_image

BYTES = {
    "f64": 8,
    "f32": 4,
    "bf16": 2,
    "f16": 2,
    "s64": 8,
    "s32": 4,
    "u32": 4,
    "u8": 1,
    "s8": 1,
    "pred": 1,
    "token": 0,
}
_NO_KERNEL = {"parameter", "get-tuple-element", "bitcast", "tuple", "constant", "after-all"}


def cycles(program: str) -> int:
    """Return the compiler's estimate for one device: operations in a row, loops as often as they run."""
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


def exchanged(program: str, columns: int) -> dict[str, float]:
    """Return the bytes that one device sends over each axis.

    An all-reduce sends twice its size, the others once, less the part that a device keeps: one n-th of n
    devices.
    """
    partitions = re.search(r"num_partitions=(\d+)", program)
    devices = int(partitions[1]) if partitions else 1
    sent = {"column": 0.0, "data": 0.0}
    pattern = r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    for line in program.splitlines():
        found = re.search(pattern, line)
        if not found:
            continue
        sizes = _sizes(found[1])
        # The start of an exchange also lists its operand.
        size = max(sizes) if re.search(r"(all-gather|permute)-start\(", line) else sum(sizes)
        size = min(sizes) if "reduce-scatter-start(" in line else size
        groups = groups_of(line, devices)
        group = len(groups[0])
        if found[2] == "reduce-scatter":
            size *= group
        share = 1 if found[2] == "collective-permute" else (group - 1) / group
        within_pairs = columns > 1 and all(n // columns == own[0] // columns for own in groups for n in own)
        sent["column" if within_pairs else "data"] += (2 if found[2] == "all-reduce" else 1) * size * share
    return sent


def groups_of(line: str, devices: int) -> list[list[int]]:
    """Return the groups of devices that exchange in a line of a program; of a permutation, (source, target)s.

    XLA writes them as lists, as a grid or as axes of a mesh, whose devices may be in an order of their own.
    """
    ids = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    named = re.search(rf"replica_groups=mesh\[([^\]]*)\]{ids} \{{([^}}]*)\}}", line)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        over = re.findall(r"'(\w+)'", named[4])
        names = list(sizes)
        order = [names.index(name) for name in [*(name for name in names if name not in over), *over]]
        places = np.arange(devices).reshape(_numbers(named[2] or "") or -1)
        places = places.transpose(_numbers(named[3] or "") or None)
        grid = places.reshape(*sizes.values()).transpose(order)
        return grid.reshape(-1, math.prod(sizes[name] for name in over)).tolist()
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]+\},?)*)\}", line)
    if listed:
        groups = re.findall(r"[\d,]+(?=\})", listed[1])
        return [_numbers(group) for group in groups] or [list(range(devices))]
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    shape, grid, order = (_numbers(text or "") for text in counted.groups())  # type: ignore[union-attr]
    return np.arange(devices).reshape(grid).transpose(order or None).reshape(shape).tolist()


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


class Traffic(NamedTuple):
    """Of one step on one GPU."""

    launches: int  # kernels and calls of libraries
    moved: int  # bytes of their operands and results
    estimated: float  # seconds, by XLA; it has none for convolutions, which are cuDNN's
    convolutions: int  # calls of cuDNN


def traffic(program: str) -> Traffic:
    """Return what a GPU's program launches and moves.

    The time is there only if it was compiled with xla_gpu_collect_cost_model_stats.
    """
    sizes: dict[str, int] = {}
    launches = moved = convolutions = 0
    estimated = 0.0
    for line in program[program.index("\nENTRY") :].splitlines():
        found = re.match(r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if not found:
            continue
        name, shape, operation, rest = found.groups()
        sizes[name] = sum(_sizes(shape))
        if operation in _NO_KERNEL or operation.endswith("-done"):
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        launches += 1
        moved += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
        convolutions += "__cudnn$conv" in line
        cost = re.search(r'"exec_time_us":"?([\d.e+\-]+)', line)
        estimated += float(cost[1]) / 1e6 if cost else 0
    return Traffic(launches, moved, estimated, convolutions)


def _sizes(shapes: str) -> list[int]:
    """Return the bytes of each array in a type, such as `(f32[2,3]{1,0}, u8[4])`."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return [BYTES.get(kind, 4) * math.prod(_numbers(shape)) for kind, shape in found]


def floors(config, batch: int, data: int, columns: int) -> tuple[float, float]:
    """Return (bytes moved, floating-point operations) of one device in a step that wastes nothing.

    `batch` is the global one, split over `data` places, and the network over `columns` devices. A parameter
    is read by the forward and the backward pass, its gradient written and read, the velocity and the
    parameter read and written: eight times 4 bytes. A layer reads its input and writes its output; backward
    it reads its input once and its output's gradient twice, and writes its input's gradient, which images
    have none of. If pooling or normalisation follow, they read the output and write the result, and backward
    read the output and the result's gradient and write the output's; an activation alone costs nothing.
    """
    element = 2 if config.model.dtype == "bfloat16" else 4
    table, images = layer_table(config), batch / data
    moved = 8 * 4 * sum(row.parameters for row in table) / columns
    for number, row in enumerate(table):
        into, out, after = (
            math.prod(shape) * element * images for shape in (row.input, row.output, row.after)
        )
        shared = 1 if number == 0 or row.spec.get("gather", False) else columns  # what columns hold apart
        moved += (2 if number == 0 else 3) * into / shared + 3 * out / columns
        if set(row.then) - {"activation", "dropout"}:
            moved += (3 * out + 2 * after) / columns
    return moved, flop_per_image(config, "train") * images / columns
