"""python -m experiments.report DIR [--out=FILE]

Write one page about a workdir, or about a sweep with its table, effects and runs: errors, throughput,
differences from configs/paper.py, curves and kernels. The page is a single file that includes its pictures.
"""

import base64
import html
import io
import json
import os
import statistics

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text

STYLE = """body { font: 15px/1.5 sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { border: 1px solid #ccc; padding: .2em .7em;
text-align: left; overflow-wrap: anywhere } th { background: #eee } img { max-width: 100% }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 12px }
summary { cursor: pointer; font-weight: bold; margin: .6em 0 }"""


def page(folder: str) -> str:
    """Return the page in HTML. Raises InputError if the folder contains no run."""
    from experiments.plots.runs import find_workdirs

    title = html.escape(os.path.basename(os.path.abspath(folder)))
    workdirs = find_workdirs(folder)
    parts = [f"<h1>{title}</h1>"]
    if workdirs != [folder]:
        parts += _sweep(folder)
        for workdir in workdirs:
            name = html.escape(os.path.relpath(workdir, folder))
            try:
                content = _workdir(workdir)
            except InputError as error:  # the page has other runs
                content = [f"<p>{html.escape(str(error))}</p>"]
            parts += [f"<details><summary>{name}</summary>", *content, "</details>"]
    else:
        parts += _workdir(folder)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _sweep(folder: str) -> list[str]:
    from experiments.plots import effects
    from experiments.sweeps import table

    if not table.exists(folder):  # a folder of runs without a sweep
        return []
    parts = ["<p>Errors are fractions; differences are from the first line.</p>"]
    try:
        rows = table.read(folder)
        parts.append(_table(rows[0], [row.values() for row in rows]))
        parts.append(_image(effects.draw(folder), "differences from the first line"))
    except InputError as error:
        parts.append(f"<p>{html.escape(str(error))}</p>")
    return parts


def _workdir(workdir: str) -> list[str]:
    from alexnet_jax.table import describe
    from alexnet_jax.workdirs.metrics import read_rows
    from alexnet_jax.workdirs.workdir import read_result
    from configs import paper
    from experiments.plots import curves, kernels

    config = configuration.of_run(workdir)
    ours, papers = dict(configuration.flatten(config)), dict(configuration.flatten(paper.get_config()))
    different = [
        (field, papers.get(field, "none"), ours.get(field, "none"))
        for field in sorted(ours.keys() | papers.keys())
        if ours.get(field) != papers.get(field)
    ]
    facts = [("configuration", config.name), ("data", f"{config.data.name}, {config.data.train_split}")]
    result = read_result(workdir)
    if result:
        what = f"{result['examples']:,} images of {result['split']}, {result['views']} views"
        what += f", step {result['step']}" if "step" in result else ""
        facts += [
            ("top-1 error", f"{result['top1_error']:.2%} ({what})"),
            ("top-5 error", f"{result['top5_error']:.2%} ({what})"),
        ]
    parts = []
    try:
        rows = read_rows(workdir)
        rates = [row["images_per_second"] for row in rows if row["images_per_second"]]
        facts += [
            ("trained", f"{rows[-1]['epoch']} of {config.num_epochs} epochs, {rows[-1]['step']:,} steps"),
            ("throughput", f"{statistics.median(rates or [0]):,.0f} images/s, the median over epochs"),
        ]
        parts.append(_image(curves.draw([workdir]), "learning curves"))
    except InputError as error:
        facts.append(("curves", str(error)))
    try:
        parts.append(_image(kernels.draw(workdir, {}), "the kernels of conv1"))
    except InputError as error:
        facts.append(("kernels", str(error)))
    return [
        _table(("", ""), facts),
        *parts,
        "<h3>Differences from configs/paper.py</h3>",
        _table(("field", "paper", "here"), different) if different else "<p>none</p>",
        "<details><summary>network</summary>",
        f"<pre>{html.escape(describe(config))}</pre></details>",
        "<details><summary>whole configuration</summary>",
        f"<pre>{html.escape(json.dumps(config.to_dict(), indent=2))}</pre></details>",
    ]


def _table(head, rows) -> str:
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return (
        "<table>"
        + (line(head, "th") if any(head) else "")
        + "".join(line(r, "td") for r in rows)
        + "</table>"
    )


def _image(figure, text: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    inline = base64.b64encode(file.getvalue()).decode()
    return f'<p><img alt="{text}" src="data:image/png;base64,{inline}"></p>'


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
