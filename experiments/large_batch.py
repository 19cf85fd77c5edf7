"""python -m experiments.large_batch SMALL DIR [--out=FOLDER] [--seeds=3]

Find how far the batch can grow with SGD and with LARS (results/large_batch/README.md). SMALL is Imagenette in
40x40 pixels (experiments/shrink.py), DIR a folder for the runs. The learning rates are chosen first, on the
validation split with a separate seed; then each batch is trained with `--seeds` seeds. Each run adds a line
to FOLDER/runs.jsonl, and the table and the picture are written again. The same command resumes.
"""

import json
import logging
import pathlib
import time

import numpy as np

from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import Diverged
from alexnet_jax.runtime.files import write_text

log = logging.getLogger("alexnet_jax")

EPOCHS, WARMUP, BASE = 10, 2, 64  # BASE: the baseline's batch
SEED = 9  # of the runs that choose learning rates
RATES = {
    ("momentum", BASE): (0.02, 0.04, 0.08),
    ("lars", 512): (5, 10, 20, 40, 80),
    ("lars", 256): (20, 40, 80),
}
BATCHES = (
    ("momentum", 64),
    ("momentum", 256),
    ("lars", 256),
    ("momentum", 512),
    ("lars", 512),
    ("momentum", 128),
)
REACHES = 0.01  # a mean top-1 error at most this much above the baseline's reaches it


def config_of(optimizer: str, batch: int, rate: float, seed: int, data: str):
    """Return configs/imagenette.py, with batch normalisation, for one run."""
    from configs import imagenette

    config = imagenette.get_config()
    config.update(name="large_batch", seed=seed, batch_size=batch, num_epochs=EPOCHS)
    config.model.width = 0.5
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        pool = ("pool",) if name in ("conv1", "conv2", "conv5") else ()
        config.model.layers[name].then = ("batch_norm", "activation", *pool)
    config.data.update(dir=data, image_size=40, crop_size=32)
    config.optimizer.update(name=optimizer, learning_rate=float(rate), drop_epochs=(), schedule="polynomial",
                            warmup_epochs=float(WARMUP))  # fmt: skip
    if optimizer == "lars":  # biases and normalisation have no trust ratio
        config.optimizer.bias_rate = 0.01
    config.mesh.update(data=1, column=1)
    config.eval.views = 1
    return config


def key_of(row: dict) -> tuple[str, int, float, int]:
    """Return the settings that identify a run."""
    return row["optimizer"], row["batch"], row["rate"], row["seed"]


def run(key: tuple[str, int, float, int], data: str, folder: pathlib.Path) -> dict:
    """Train one network, and return its line of runs.jsonl."""
    from alexnet_jax import config as configuration
    from alexnet_jax.train import train
    from alexnet_jax.workdirs.metrics import read_rows
    from alexnet_jax.workdirs.workdir import read_result

    optimizer, batch, rate, seed = key
    config, workdir = config_of(optimizer, batch, rate, seed, data), folder / "-".join(map(str, key))
    configuration.check(config)
    row = dict(zip(("optimizer", "batch", "rate", "seed"), key, strict=True), val_error=None, test_error=None)
    start = time.process_time()
    try:
        train(config, str(workdir))
        rows = read_rows(str(workdir))
        row |= {
            "val_error": min(r["val_top1_error"] for r in rows),
            "steps": rows[-1]["step"],
            "train_loss": rows[-1]["train_loss"],
            "test_error": read_result(str(workdir))["top1_error"],
        }
    except Diverged as error:
        row["diverged"] = str(error).split(";")[0]
    return row | {"cpu_seconds": round(time.process_time() - start)}


def chosen(rows: list[dict]) -> dict[tuple, float]:
    """Return the learning rate of each (optimizer, batch): the best of the grid, or its linear scaling."""
    rates = {}
    for case, grid in RATES.items():
        errors = {r["rate"]: r["val_error"] for r in rows if key_of(r)[:2] == case and r["seed"] == SEED}
        rates[case] = min(grid, key=lambda rate: (errors[rate] is None, errors[rate], rate))
    base = rates["momentum", BASE]
    return rates | {("momentum", batch): base * batch / BASE for name, batch in BATCHES if name == "momentum"}


def summary(rows: list[dict]) -> list[dict]:
    """Return one line per optimizer and batch: mean and deviation of the test error, 1 if a run diverged."""
    lines = []
    for case in sorted(BATCHES, key=lambda case: (case[0] == "lars", case[1])):
        of_case = [r for r in rows if key_of(r)[:2] == case and r["seed"] != SEED]
        errors = [1.0 if r["test_error"] is None else r["test_error"] for r in of_case]
        if errors:
            spread = float(np.std(errors, ddof=1)) if len(errors) > 1 else None
            lines.append({"optimizer": case[0], "batch": case[1], "rate": of_case[0]["rate"],
                          "steps": of_case[0].get("steps"), "seeds": len(errors),
                          "mean": float(np.mean(errors)), "spread": spread})  # fmt: skip
    return lines


def markdown(lines: list[dict]) -> str:
    """Return the table of `summary`."""
    head = "rule", "batch", "learning rate", "steps", "seeds", "top-1 error, %", "change, points", "reaches"
    text = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    base = lines[0]["mean"]
    for line in lines:
        spread = "" if line["spread"] is None else f" ± {100 * line['spread']:.2f}"
        more = line["mean"] - base
        rule = "LARS" if line["optimizer"] == "lars" else "SGD"
        text.append(f"| {rule} | {line['batch']} | {line['rate']:g} | {line['steps']} | {line['seeds']} |"
                    f" {100 * line['mean']:.2f}{spread} | {100 * more:+.2f} |"
                    f" {'yes' if more <= REACHES else 'no'} |")  # fmt: skip
    return "\n".join(text) + "\n"


def draw(lines: list[dict]):
    """Return the figure: errors against batches."""
    from matplotlib.figure import Figure

    from experiments.plots.common import COLORS, STYLES

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for number, (name, label) in enumerate((("momentum", "SGD, linear rule"), ("lars", "LARS"))):
        own = [line for line in lines if line["optimizer"] == name]
        spread = [100 * (line["spread"] or 0) for line in own]
        axes.errorbar(
            [line["batch"] for line in own], [100 * line["mean"] for line in own], spread,
            marker="o", capsize=3, label=label, color=COLORS[number], linestyle=STYLES[number],
        )  # fmt: skip
    bound = 100 * (lines[0]["mean"] + REACHES)
    axes.axhline(bound, color="gray", linestyle=":", label="reaches the baseline's error")
    axes.set_xscale("log", base=2)
    batches = sorted({line["batch"] for line in lines})
    axes.set_xticks(batches, list(map(str, batches)))
    axes.set(xlabel="images per batch", ylabel="top-1 error on the test split, %")
    axes.legend()
    return figure


def main(arguments: list[str]) -> None:
    """Train what is missing, and write the results. Raises InputError."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("data", metavar="SMALL", help="the photographs")
    parser.add_argument("folder", metavar="DIR", type=pathlib.Path, help="a folder for the runs")
    parser.add_argument("--out", metavar="FOLDER", type=pathlib.Path, help="where to write the results",
                        default=pathlib.Path("experiments/results/large_batch"))  # fmt: skip
    parser.add_argument("--seeds", metavar="N", type=command_line.whole(1), default=3, help="seeds per batch")
    given = parser.parse(arguments)
    file = given.out / "runs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def add(optimizer: str, batch: int, rate: float, seed: int) -> None:
        key = optimizer, batch, rate, seed
        if key not in map(key_of, rows):
            rows.append(run(key, given.data, given.folder))
            write_text(str(file), "".join(json.dumps(row) + "\n" for row in rows))

    for (optimizer, batch), grid in RATES.items():
        for rate in grid:
            add(optimizer, batch, rate, SEED)
    rates = chosen(rows)
    for seed in [seed for seed in range(given.seeds + 1) if seed != SEED][: given.seeds]:
        for optimizer, batch in BATCHES:
            add(optimizer, batch, rates[optimizer, batch], seed)
            write(given.out, rows)


def write(out: pathlib.Path, rows: list[dict]) -> None:
    """Write the table and the picture."""
    lines = summary(rows)
    write_text(str(out / "results.md"), markdown(lines))
    figure = draw(lines)
    for kind in ("png", "pdf"):
        figure.savefig(out / f"errors.{kind}", dpi=150)


if __name__ == "__main__":
    command_line.run(main)
