"""python -m experiments.claims power|rates|measure|write [DIR] [--results=FOLDER]

Measure what the paper claims on the runs of experiments/sweeps/claims.py. FOLDER has the study's data and
page; the default is experiments/results/claims.

    power      print the difference that three seeds can show, from the spread of the earlier study
    rates      add the finished runs of the grid of rates in DIR to rates.csv
    measure    add the finished runs in DIR: a row of runs.jsonl for each, and a row of curves.csv for each of
               its validations whose checkpoint is still there (--config.checkpoint.keep)
    write      write the tables into the page, between their marks, and draw overfitting.png

DIR is the workdir of a sweep. Runs that the files have are skipped: a study may be continued elsewhere.
"""

import csv
import json
import logging
import os
import pathlib
import re
import statistics
from typing import Any

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text
from experiments.sweeps import claims

log = logging.getLogger("alexnet_jax")

FOLDER = "experiments/results/claims"
EARLIER = "experiments/results/ablations/runs.jsonl"
SEEDS = 3
PART = 1000  # training images on which the network of every validation is evaluated
LAST = 3  # validations whose mean error decides between rates
TARGETS = (("clean_train_top1_error", 0.25), ("clean_train_top1_error", 0.1), ("val_top1_error", 0.35))
PAPER = {  # points of top-1 error that the paper reports to lose, and where; None: no number
    "no dropout": (None, '"substantial overfitting" (4.2)'),
    "no crops and flips": (None, '"substantial overfitting" (4.1)'),
    "no normalisation": (1.4, "+1.4 (3.3)"),
    "one GPU": (1.7, "+1.7 (3.2)"),
    "columns never meet": (None, "not reported"),
    "no colour noise": (1.0, "over +1 (4.1)"),
    "no conv4": (2.0, "about +2 (7)"),
    "no conv5": (2.0, "about +2 (7)"),
}


# Measuring


def measure(workdir: str) -> tuple[dict, list[dict]]:
    """Return (a row of runs.jsonl, rows of curves.csv) of a finished run. Raises InputError.

    `best` is the checkpoint with the lowest validation error, `last` the last one. Names with `train` or
    `test` are errors and losses of the central view, without augmentation and dropout.
    """
    from alexnet_jax import evaluate
    from alexnet_jax.datasets.labels import with_labels_of
    from alexnet_jax.datasets.source import open_splits
    from alexnet_jax.runtime.mesh import make_mesh
    from alexnet_jax.step import make_eval_step
    from alexnet_jax.workdirs.metrics import read_rows
    from alexnet_jax.workdirs.workdir import read_result, read_statistics

    config, result, validations = configuration.of_run(workdir), read_result(workdir), read_rows(workdir)
    part = config.copy_and_resolve_references()
    part.data.train_split = f"train[:{PART}]"
    (train, test), (some,) = (
        open_splits(config, "train_split", "test_split"),
        open_splits(part, "train_split"),
    )
    mesh, stored = make_mesh(config, ("eval.batch_size",)), read_statistics(workdir, config)
    eval_step, arrays = make_eval_step(config, mesh, views=1), evaluate.on_devices(stored, mesh)

    def rates(step: int, source) -> dict[str, float]:
        config.eval.step = step
        _, params = evaluate.stored_params(config, workdir, mesh)
        labelled = with_labels_of(stored.get("label_names", ()), source)
        found = evaluate.error_rates(eval_step, params, labelled, config, mesh, arrays)
        return {name: round(found[name], 6) for name in ("top1_error", "loss")}

    run = {"variant": _variant(workdir), "seed": config.seed}
    row: dict[str, Any] = {**run, "learning_rate": config.optimizer.learning_rate}
    row |= {"epochs": validations[-1]["epoch"]}
    row |= {"best_epoch": next(each["epoch"] for each in validations if each["step"] == result["step"])}
    row |= {name: round(result[name], 6) for name in ("top1_error", "top5_error", "loss")}
    for name, step in (("best", result["step"]), ("last", validations[-1]["step"])):
        for split, source in (("train", train), ("test", test)):
            row |= {f"{name}_{split}_{key}": value for key, value in rates(step, source).items()}
    row["conv1_color"] = _color(workdir)
    kept = ("epoch", "learning_rate", "train_top1_error", "train_loss", "val_top1_error", "val_loss")
    there = os.listdir(os.path.join(workdir, "checkpoints"))
    curve = [
        {**run, **{name: round(each[name], 6) for name in kept}}
        | {f"clean_train_{name}": value for name, value in rates(each["step"], some).items()}
        for each in validations
        if str(each["step"]) in there
    ]
    return row, curve


def _color(workdir: str) -> dict:
    """Return each column's share of colour in conv1's energy, and their difference by chance."""
    from experiments import columns

    _, kernels = columns.conv1(workdir, {})
    shares = [columns.colorfulness(of_column) for of_column in kernels]
    found: dict[str, Any] = {"shares": [round(share, 4) for share in shares]}
    if len(shares) == 2:
        by_chance = columns.differences_by_chance(kernels, np.random.default_rng(0))
        found["by_chance"] = [round(float(x), 4) for x in (by_chance.mean(), by_chance.std())]
        found["p"] = round(float(columns.p_value(abs(shares[0] - shares[1]), by_chance)), 4)
    return found


def _variant(workdir: str) -> str:
    return pathlib.Path(workdir).parent.name.partition("-at-")[0].replace("-", " ")


def _rate(workdir: str) -> tuple[dict, list]:
    """Return (a row of rates.csv, []) of a finished run of the grid."""
    from alexnet_jax.workdirs.metrics import read_rows

    config, rows = configuration.of_run(workdir), read_rows(workdir)[-LAST:]
    names = "val_top1_error", "val_loss"
    means = {name: round(float(np.mean([row[name] for row in rows])), 6) for name in names}
    rate = {"learning_rate": config.optimizer.learning_rate, "seed": config.seed}
    return {"variant": _variant(workdir), **rate, "epochs": rows[-1]["epoch"], **means}, []


# Files


def read(path: pathlib.Path) -> list[dict]:
    """Read the rows of a JSON Lines or CSV file, with numbers as such; [] if it is missing."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def add(path: pathlib.Path, rows: list[dict]) -> None:
    """Append rows to a JSON Lines or CSV file."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
        else:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)


def _finished(folder: str) -> list[str]:
    """Return the workdirs in a sweep's folder that trained to the end and were evaluated."""
    from alexnet_jax.workdirs.workdir import read_result
    from experiments.plots.runs import find_workdirs

    return [workdir for workdir in find_workdirs(folder) if read_result(workdir)]


def _collect(folder: str, results: pathlib.Path, name: str, of_run) -> None:
    for workdir in _finished(folder):
        config, there = configuration.of_run(workdir), read(results / name)
        run = (_variant(workdir), config.seed, config.optimizer.learning_rate)
        if run in [(row["variant"], row["seed"], row["learning_rate"]) for row in there]:
            continue
        row, curve = of_run(workdir)
        if curve:  # before the row, which marks the run as done
            add(results / "curves.csv", curve)
        add(results / name, [row])
        log.info(f"{workdir}: added to {results / name}")


# Statistics


def residual(errors: np.ndarray) -> tuple[float, int]:
    """Return (standard deviation of a run, degrees of freedom) for errors [lines, seeds].

    The model has an effect of the line and one of the seed: runs of one seed see the images in one order.
    """
    rest = errors - errors.mean(1, keepdims=True) - errors.mean(0, keepdims=True) + errors.mean()
    degrees = (errors.shape[0] - 1) * (errors.shape[1] - 1)
    return float(np.sqrt((rest**2).sum() / degrees)), degrees


def half_width(deviation: float, degrees: int, seeds: int, comparisons: int = 1) -> float:
    """Return half the width of the 95 % interval of a difference, for all `comparisons` at once."""
    from scipy import stats

    return float(stats.t.ppf(1 - 0.025 / comparisons, degrees) * deviation * np.sqrt(2 / seeds))


def detectable(deviation: float, degrees: int, seeds: int, comparisons: int, power: float = 0.8) -> float:
    """Return the difference whose interval leaves out 0 with a probability of `power`."""
    from scipy import optimize, stats

    error, limit = deviation * np.sqrt(2 / seeds), stats.t.ppf(1 - 0.025 / comparisons, degrees)
    return float(error * optimize.brentq(lambda x: stats.nct.sf(limit, degrees, x) - power, 0.1, 20))


def compare(rows: list[dict], value) -> dict[str, tuple[float, int, float]]:
    """Return {line: (difference of `value` from the baseline, number of seeds, half width or nan)}.

    Differences are taken seed by seed. The half width is that of the intervals of 95 % for all lines at once;
    lines with fewer than SEEDS seeds have none. The spread is that of seeds 0 to SEEDS - 1.
    """
    runs = {(row["variant"], row["seed"]): value(row) for row in rows}
    first = {name: [runs.get((name, seed), np.nan) for seed in range(SEEDS)] for name in claims.LINES}
    whole = np.array([errors for errors in first.values() if np.isfinite(errors).all()])
    found = {}
    for name in claims.LINES[1:]:
        seeds = [seed for line, seed in runs if line == name and ("baseline", seed) in runs]
        if seeds:
            change = statistics.mean(runs[name, seed] - runs["baseline", seed] for seed in seeds)
            enough = len(seeds) >= SEEDS and len(whole) > 1
            comparisons = len(claims.LINES) - 1
            half = half_width(*residual(whole), len(seeds), comparisons) if enough else np.nan
            found[name] = change, len(seeds), half
    return found


def verdict(change: float, half: float, paper: float | None) -> str:
    """Return the verdict on a loss that the paper reports, from our change and its interval."""
    if np.isnan(half):
        return "open: seeds are missing"
    if abs(change) > half:
        return "agrees" if change > 0 else "disagrees"
    less = paper is not None and change + half < paper
    return f"no difference seen; below the paper's {paper:g}" if less else "no difference seen"


# The page


def errors_table(rows: list[dict]) -> list[str]:
    """Return the table of test errors, in Markdown."""
    found = [compare(rows, lambda row, name=name: 100 * row[name]) for name in ("top1_error", "top5_error")]
    loss = compare(rows, lambda row: row["loss"])
    heads = "line", "runs", "top-1 error, %", *(f"change of {x}" for x in ("top-1", "top-5", "loss"))
    lines = [f"| {' | '.join(heads)} | paper | verdict |", f"|---|---|{'---|' * len(heads)}"]
    for name in claims.LINES:
        own = [100 * row["top1_error"] for row in rows if row["variant"] == name]
        size, said = PAPER.get(name, (None, "37.5 %"))
        cells = [name, str(len(own)), _mean(own), *[""] * 3, said, ""]
        if name in loss:
            cells[3:6] = [_change(x[name], digits) for x, digits in ((found[0], 2), (found[1], 2), (loss, 3))]
            change, _, half = found[0][name]
            cells[7] = "" if said == "not reported" else verdict(change, half, size)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def gaps_table(rows: list[dict]) -> list[str]:
    """Return the table of training and test errors of the last networks, in Markdown."""

    def gap(row):
        return 100 * (row["last_test_top1_error"] - row["last_train_top1_error"])

    changes = compare(rows, gap)
    heads = "training error, %", "test error, %", "gap", "change of the gap", "training loss", "test loss"
    lines = [f"| line | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name in claims.LINES:
        own = [row for row in rows if row["variant"] == name]
        percent = [[100 * row[f"last_{split}_top1_error"] for row in own] for split in ("train", "test")]
        loss = [[row[f"last_{split}_loss"] for row in own] for split in ("train", "test")]
        change = _change(changes[name], 2) if name in changes else ""
        cells = [*map(_mean, percent), _mean([gap(row) for row in own]), change, *(_mean(x, 3) for x in loss)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def epochs_table(curves: list[dict], rows: list[dict]) -> list[str]:
    """Return the table of epochs to given errors, and of their ratios to the baseline's, in Markdown."""
    heads = ["25 % training error", "10 % training error", "35 % validation error", "lowest validation error"]
    reached = {(row["variant"], row["seed"]): [*_epochs(curves, row), row["best_epoch"]] for row in rows}
    lines = [f"| line | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name in claims.LINES:
        own = {seed: epochs for (variant, seed), epochs in reached.items() if variant == name}
        pairs = [(own[seed], reached["baseline", seed]) for seed in own if ("baseline", seed) in reached]
        cells = []
        for place in range(len(heads)):
            epochs = [each[place] for each in own.values()]
            never = sum(map(np.isinf, epochs))
            cells.append(f"never in {never} of {len(epochs)} runs" if never else _mean(epochs, 1))
            ratios = [run[place] / baseline[place] for run, baseline in pairs]
            if name != "baseline" and ratios and 0 < min(ratios) <= max(ratios) < np.inf:
                cells[-1] += f", {_mean(ratios)} times"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _epochs(curves: list[dict], run: dict) -> list[float]:
    """Return the epochs after which a run first reached each of TARGETS."""
    from experiments.plots.figure1 import epochs_to

    own = [row for row in curves if (row["variant"], row["seed"]) == (run["variant"], run["seed"])]
    epochs = [0, *(row["epoch"] for row in own)]
    return [epochs_to(target, epochs, [0.9, *(row[name] for row in own)]) for name, target in TARGETS]


def rates_table(rates: list[dict]) -> list[str]:
    """Return the table of the grid of rates, in Markdown; the chosen rate is bold."""
    lines = ["| line | rate: validation error, % |", "|---|---|"]
    for name in claims.LINES:
        own = sorted((row["learning_rate"], row["val_top1_error"]) for row in rates if row["variant"] == name)
        if own:
            chosen = claims.CHOSEN.get(name, claims.COMMON)
            cells = [(rate == chosen, f"{rate:g}: {100 * error:.1f}") for rate, error in own]
            cells = [f"**{cell}**" if bold else cell for bold, cell in cells]
            lines.append(f"| {name} | {', '.join(cells)} |")
    return lines


def _mean(values: list[float], digits: int = 2) -> str:
    text = f"{statistics.mean(values):.{digits}f}" if values else ""
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _change(found: tuple[float, int, float], digits: int) -> str:
    change, _, half = found
    return f"{change:+.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")


def with_table(text: str, name: str, lines: list[str]) -> str:
    """Return a page with the lines between the marks of a table. Raises InputError without the marks."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if start not in text or end not in text:
        raise InputError(f"README.md: lacks {start} or {end}")
    return re.sub(f"{start}.*?{end}", lambda _: "\n".join([start, *lines, end]), text, flags=re.DOTALL)


def with_tables(text: str, results: pathlib.Path) -> str:
    """Return the page with the tables of the data beside it. Raises InputError if it lacks their marks."""
    rows, curves, rates = (read(results / name) for name in ("runs.jsonl", "curves.csv", "rates.csv"))
    finished = sum(row["seed"] < SEEDS for row in rows)
    state = f"**State: {finished} of {SEEDS * len(claims.LINES)} runs are finished.**"
    tables = {
        "state": [state], "rates": rates_table(rates), "errors": errors_table(rows), "gaps": gaps_table(rows),
        "epochs": epochs_table(curves, rows),
    }  # fmt: skip
    for name, lines in tables.items():
        text = with_table(text, name, lines)
    return text


def write(results: pathlib.Path) -> None:
    """Write the tables into README.md, and draw the figure. Raises InputError."""
    from experiments.plots import common, overfitting

    page = results / "README.md"
    write_text(str(page), with_tables(page.read_text(), results))
    if curves := read(results / "curves.csv"):
        common.save(
            overfitting.draw(curves), [str(results / f"overfitting.{kind}") for kind in ("png", "pdf")]
        )


def power() -> list[str]:
    """Return lines about the spread of the earlier study, and the difference that this one can show."""
    rows = [row for row in read(pathlib.Path(EARLIER)) if row["learning_rate"] == claims.COMMON]
    names = sorted({row["variant"] for row in rows} - {"tanh", "no-dropout"})  # other settings, and chance
    errors = {(row["variant"], row["seed"]): 100 * row["top1_error"] for row in rows}
    deviation, degrees = residual(np.array([[errors[name, seed] for seed in range(3)] for name in names]))
    lines = [f"{len(names)} lines: a run deviates by {deviation:.2f} points ({degrees} degrees of freedom)"]
    for seeds in (3, 6):
        planned = (len(claims.LINES) - 1) * (seeds - 1)
        for comparisons in (1, len(claims.LINES) - 1):
            arguments = deviation, planned, seeds, comparisons
            lines.append(
                f"{seeds} seeds, intervals of 95 % for {comparisons} at once: ± {half_width(*arguments):.2f};"
                f" seen with a probability of 80 / 95 %: {detectable(*arguments):.2f} /"
                f" {detectable(*arguments, power=0.95):.2f}"
            )
    return lines


def main(arguments: list[str]) -> None:
    """Do one of the four. Raises InputError."""
    parser = command_line.Parser(__doc__)
    verbs = command_line.one_of("power", "rates", "measure", "write")
    parser.add_argument("verb", metavar="VERB", type=verbs, help="power, rates, measure or write")
    parser.add_argument("folder", metavar="DIR", nargs="?", type=os.path.expanduser, help="a sweep's workdir")
    parser.add_argument(
        "--results", metavar="FOLDER", type=pathlib.Path, default=pathlib.Path(FOLDER), help="data and page"
    )
    given = parser.parse(arguments)
    if bool(given.folder) != (given.verb in ("rates", "measure")):
        raise InputError(f"{given.verb}: DIR is for rates and measure, and only for them")
    if given.verb == "power":
        print("\n".join(power()))
    elif given.verb == "write":
        write(given.results)
    else:
        collect = {"rates": ("rates.csv", _rate), "measure": ("runs.jsonl", measure)}[given.verb]
        _collect(given.folder, given.results, *collect)


if __name__ == "__main__":
    command_line.run(main)
