"""The table of a sweep: results.csv, whose format only this module knows, and results.md.

results.csv has one line per variant: its errors over seeds, as fractions, and their differences from the
first line's.
"""

import csv
import io
import math
import os
import statistics

from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text
from experiments.sweeps.plan import Plan, Run

AGAIN = "the sweep's command rewrites it"
HEAD = ("variant", "seeds", "top-1 error", "top-5 error", "top-1 difference", "top-5 difference", "paper")


def write(workdir: str, title: str, plan: Plan, results: dict[str, dict], failed: set[str]) -> None:
    """Write both files. `results` has the result of every run by name, or {}."""
    rows, text = make_rows(plan, results, failed), io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _rounded(value) for key, value in row.items()})
    write_text(os.path.join(workdir, "results.csv"), text.getvalue())
    finished = sum(map(bool, results.values()))
    summary = f"{finished} of {len(plan.runs)} runs finished, {len(failed)} failed."
    write_text(os.path.join(workdir, "results.md"), _markdown(title, summary, rows))


def make_rows(plan: Plan, results: dict[str, dict], failed: set[str]) -> list[dict]:
    """Return the lines of the table."""
    rows = []
    for variant in plan.variants:
        runs = plan.of_line(variant.name)
        finished = [results[run.name] for run in runs if results[run.name]]
        row = {
            "variant": variant.name,
            "overrides": plan.overrides[variant.name],
            "seeds": len(finished),
            "failed": sum(run.name in failed for run in runs),
        }
        for name in ("top1", "top5"):
            errors = [result[f"{name}_error"] for result in finished]
            row[f"{name}_error"] = statistics.mean(errors) if errors else math.nan
            row[f"{name}_std"] = statistics.stdev(errors) if len(errors) > 1 else math.nan
            found = _differences(plan, results, runs, f"{name}_error")
            error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
            row[f"{name}_difference"] = statistics.mean(found) if found else math.nan
            row[f"{name}_difference_error"] = error
        rows.append({**row, "paper": variant.paper})
    return rows


def _differences(plan: Plan, results: dict[str, dict], runs: list[Run], error: str) -> list[float]:
    """Return each run's difference from the first line; none for that line itself, or another task.

    A run is compared with the runs of the first line that it uses or, without any, with the run of its seed,
    which had the same order of images. The differences of a line are therefore independent of each other.
    """
    first = plan.of_line(plan.variants[0].name)
    if runs == first or plan.task[runs[0].line] != plan.task[first[0].line]:
        return []
    found = []
    for run in runs:
        others = [need for need in run.needs if need in first]
        others = others or [other for other in first if other.seed == run.seed]
        both = [results[each.name] for each in (run, *others)]
        if others and all(both):
            own, *theirs = (result[error] for result in both)
            found.append(own - statistics.mean(theirs))
    return found


def _markdown(title: str, summary: str, rows: list[dict]) -> str:
    lines = [
        f"    {title}\n",
        f"{summary} Percent: mean ± standard deviation over seeds; difference to the first line, seed by"
        " seed, ± its standard error.\n",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
    ]
    cells = [[cell.replace("|", "\\|") for cell in _cells(row)] for row in rows]
    lines += [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join(lines) + "\n"


def _cells(row: dict) -> list[str]:
    """Return the texts of a line below HEAD, in percent."""
    seeds = f"{row['seeds']}" + (f", {row['failed']} failed" if row["failed"] else "")
    errors = [_percent(row[f"{name}_error"], row[f"{name}_std"]) for name in ("top1", "top5")]
    differences = [
        _percent(row[f"{name}_difference"], row[f"{name}_difference_error"], "+") for name in ("top1", "top5")
    ]
    return [row["variant"], seeds, *errors, *differences, row["paper"] or ""]


def _rounded(value):
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.8f}"


def _percent(value: float, spread: float, sign: str = "") -> str:
    if math.isnan(value):
        return ""
    return f"{100 * value:{sign}.2f}" + ("" if math.isnan(spread) else f" ± {100 * spread:.2f}")


def exists(folder: str) -> bool:
    """Return whether the folder has the table of a sweep."""
    return os.path.exists(os.path.join(folder, "results.csv"))


def read(folder: str) -> list[dict[str, str]]:
    """Read results.csv, one dict of texts per line. Raises InputError if it is missing or damaged."""
    path = os.path.join(folder, "results.csv")
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        raise InputError(f"{folder}: has no results.csv; give the workdir of a sweep") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {AGAIN}") from None
    if not rows:
        raise InputError(f"{path}: has no line; {AGAIN}")
    return rows


def read_cells(folder: str) -> list[tuple[list[str], str]]:
    """Read (the texts below HEAD, in percent; the variant's overrides) of each line.

    Raises InputError if results.csv cannot be read.
    """
    found = []
    try:
        for row in read(folder):
            numbers = {
                f"{name}_{kind}": float(row[f"{name}_{kind}"] or "nan")
                for name in ("top1", "top5")
                for kind in ("error", "std", "difference", "difference_error")
            }
            found.append((_cells({**row, **numbers, "failed": int(row["failed"])}), row["overrides"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}/results.csv: is not a table of a sweep ({error}); {AGAIN}") from None
    return found


def read_differences(folder: str) -> list[tuple[str, float, float]]:
    """Read (variant, difference of the top-1 error, its standard error or nan) of each line that has one.

    Raises InputError if results.csv cannot be read.
    """
    found = []
    try:
        for row in read(folder):
            if row["top1_difference"]:
                change, error = (float(row[f"top1_difference{x}"] or "nan") for x in ("", "_error"))
                if not math.isfinite(change) or error < 0 or math.isinf(error):
                    raise ValueError(f"it has {change} ± {error}")
                found.append((row["variant"], change, error))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}/results.csv: is not a table of a sweep ({error}); {AGAIN}") from None
    return found
