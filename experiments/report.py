"""python -m experiments.report DIR [--out=FILE]

Write one page about a workdir, or about a sweep with its table, effects and runs: errors, throughput,
differences from configs/paper.py, curves and kernels. The page is a single file that includes its pictures.
report.html.jinja is its template.
"""

import base64
import dataclasses
import io
import json
import os
import statistics
from typing import Any

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text

TEMPLATE = "report.html.jinja"


@dataclasses.dataclass
class Picture:
    """A figure as a PNG file in base64, and its description."""

    png: str
    text: str


@dataclasses.dataclass
class Sweep:
    """The table of a sweep; `problem` is the reason for a part that is missing."""

    head: tuple[str, ...] = ()
    lines: list[list[str]] = dataclasses.field(default_factory=list)
    overrides: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (variant, its overrides)
    effects: Picture | None = None
    problem: str = ""


@dataclasses.dataclass
class Run:
    """The content of a workdir, or the problem that it has."""

    name: str
    problem: str = ""
    error: str = ""  # the top-1 error, for the heading
    facts: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    differences: list[tuple[str, Any, Any]] = dataclasses.field(default_factory=list)  # (field, paper, here)
    network: str = ""
    config: str = ""


def page(folder: str) -> str:
    """Return the page in HTML. Raises InputError if the folder contains no run."""
    import jinja2

    from experiments.plots.runs import find_workdirs

    workdirs = find_workdirs(folder)
    whole = workdirs != [folder]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(TEMPLATE).render(
        title=os.path.basename(os.path.abspath(folder)),
        sweep=_sweep(folder) if whole else None,
        runs=[_run_or_problem(workdir, folder) for workdir in workdirs] if whole else [],
        run=None if whole else _run(folder, ""),
    )


def _sweep(folder: str) -> Sweep | None:
    """Return the table of a sweep; None for a folder of other runs."""
    from experiments.plots import effects
    from experiments.sweeps import table

    if not table.exists(folder):
        return None
    sweep = Sweep(table.HEAD)
    try:
        for cells, overrides in table.read_cells(folder):
            sweep.lines.append(cells)
            if overrides:
                sweep.overrides.append((cells[0], overrides))
        sweep.effects = _picture(effects.draw(folder), "the change of the top-1 error in each line")
    except InputError as error:
        sweep.problem = str(error)
    return sweep


def _run_or_problem(workdir: str, folder: str) -> Run:
    name = os.path.relpath(workdir, folder)
    try:
        return _run(workdir, name)
    except InputError as error:  # the page has other runs
        return Run(name, problem=str(error))


def _run(workdir: str, name: str) -> Run:
    from alexnet_jax.table import describe
    from alexnet_jax.workdirs.metrics import read_rows
    from alexnet_jax.workdirs.workdir import read_result
    from configs import paper
    from experiments.plots import curves, kernels

    config = configuration.of_run(workdir)
    run = Run(name, network=describe(config), config=json.dumps(config.to_dict(), indent=2))
    ours, papers = dict(configuration.flatten(config)), dict(configuration.flatten(paper.get_config()))
    run.differences = [
        (field, papers.get(field, "none"), ours.get(field, "none"))
        for field in sorted(ours.keys() | papers.keys())
        if ours.get(field) != papers.get(field)
    ]
    run.facts = [("configuration", config.name), ("data", f"{config.data.name}, {config.data.train_split}")]
    result = read_result(workdir)
    if result:
        views = "1 view" if result["views"] == 1 else f"{result['views']} views"
        what = f"{result['examples']:,} images of {result['split']}, {views}"
        what += f", step {result['step']:,}" if "step" in result else ""
        run.error = f"{result['top1_error']:.2%}"
        run.facts += [
            ("top-1 error", f"{run.error} ({what})"),
            ("top-5 error", f"{result['top5_error']:.2%} ({what})"),
        ]
    try:
        rows = read_rows(workdir)
        rates = [row["images_per_second"] for row in rows if row["images_per_second"]]
        run.facts += [
            ("trained", f"{rows[-1]['epoch']} of {config.num_epochs} epochs, {rows[-1]['step']:,} steps"),
            ("throughput", f"{statistics.median(rates or [0]):,.0f} images/s, the median over epochs"),
        ]
        run.pictures.append(_picture(curves.draw([workdir]), "errors and losses against epochs"))
    except InputError as error:
        run.facts.append(("curves", str(error)))
    try:
        run.pictures.append(_picture(kernels.draw(workdir, {}), "the kernels of conv1"))
    except InputError as error:
        run.facts.append(("kernels", str(error)))
    return run


def _picture(figure, text: str) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Picture(base64.b64encode(file.getvalue()).decode(), text)


def main(arguments: list[str]) -> None:
    """Write the page and print its path. Raises InputError."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("folder", metavar="DIR", help="the folder of a run or of a sweep")
    parser.add_argument("--out", metavar="FILE", help="where to write (default: DIR/report.html)")
    given = parser.parse(arguments)
    out = given.out or os.path.join(given.folder, "report.html")
    text = page(given.folder)  # first, because a missing DIR is the likelier mistake
    command_line.check_writable("--out", out)
    write_text(out, text)
    print(out)


if __name__ == "__main__":
    command_line.run(main)
