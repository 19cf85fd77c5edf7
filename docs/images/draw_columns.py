"""Draw the paper's two columns (its figure 2), with the sizes that configs/paper.py gives.

    python docs/images/draw_columns.py

Writes columns-light.svg and columns-dark.svg beside this file, for light and dark pages.
"""

import itertools
import pathlib
from typing import Any

from alexnet_jax import config as configuration
from alexnet_jax.network import CLASSIFIER
from alexnet_jax.table import Row, layer_table

HERE = pathlib.Path(__file__).parent
# The columns have Okabe and Ito's blue and orange, adapted to the background.
THEMES: dict[str, dict[str, Any]] = {
    "light": {
        "text": "#1f2328", "faint": "#59636e", "panel": "#f2f4f7", "edge": "#d1d9e0",
        "columns": ("#0072b2", "#c75300"),
    },
    "dark": {
        "text": "#f0f6fc", "faint": "#9198a1", "panel": "#161b22", "edge": "#3d444d",
        "columns": ("#56b4e9", "#f0a35e"),
    },
}  # fmt: skip
WIDTH, HEIGHT = 920, 436
ROWS = (160, 328)  # the middle of each column's row
MIDDLE = sum(ROWS) / 2
CENTERS = dict(conv1=186, conv2=292, conv3=392, conv4=488, conv5=582, fc6=680, fc7=772)
IMAGE, LOGITS = 62, 872
SLANT = 0.3  # of a box's height: how far its far side is moved to the right and up
OPERATIONS = {"lrn": "norm", "pool": "pool", "dropout": "dropout"}  # after the ReLU, which every layer has


def text(
    x: float,
    y: float,
    words: str,
    theme: dict[str, Any],
    *,
    size: int = 13,
    bold: bool = False,
    faint: bool = False,
) -> str:
    """Return a line of text whose middle is at x."""
    weight = ' font-weight="600"' if bold else ""
    color = theme["faint" if faint else "text"]
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{weight} fill="{color}">{words}</text>'


def box(x: float, y: float, depth: float, size: float, color: str, slant: float = SLANT) -> str:
    """Return a box of maps around (x, y): `size` is the height of a map, `depth` stands for their number."""
    shift = slant * size
    left, top = x - (depth + shift) / 2, y - (size - shift) / 2
    right, bottom = left + depth, top + size
    faces = [
        (0.55, [(left, top), (right, top), (right, bottom), (left, bottom)]),
        (0.35, [(left, top), (left + shift, top - shift), (right + shift, top - shift), (right, top)]),
        (0.8, [(right, top), (right + shift, top - shift), (right + shift, bottom - shift), (right, bottom)]),
    ]
    return "".join(
        f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" fill="{color}" '
        f'fill-opacity="{opacity}" stroke="{color}"/>'
        for opacity, corners in faces
    )


def arrow(start: tuple[float, float], end: tuple[float, float], color: str, marker: str) -> str:
    """Return an arrow that leaves and arrives horizontally."""
    (a, b), (c, d) = start, end
    path = f"M{a:.1f},{b:.1f} L{c:.1f},{d:.1f}"
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.6" marker-end="url(#{marker})"/>'


def extent(row: Row) -> tuple[float, float, float]:
    """Return the depth, height and slant of a layer's box, from the square roots of its sizes."""
    if len(row.output) == 1:
        return 12, 92, 0.0
    height, _, maps = row.output
    return 1.9 * (maps / row.kernel[0]) ** 0.5, 7.6 * height**0.5, SLANT


def times(*sizes: int) -> str:
    """Return sizes with multiplication signs between them."""
    return "\N{MULTIPLICATION SIGN}".join(str(size) for size in sizes)


def header(row: Row) -> tuple[str, str]:
    """Return the kernel of a layer, and the operations after the ReLU."""
    if len(row.output) == 1:
        kernel = f"{row.kernel[-2]} inputs"
    else:
        kernel = times(*row.kernel[1:4]) + (f", stride {row.spec.stride}" if row.spec.stride > 1 else "")
    return kernel, ", ".join(OPERATIONS[op] for op in row.then if op in OPERATIONS)


def draw(name: str) -> str:
    """Return the picture as SVG, for a page with the background of theme `name`."""
    theme = THEMES[name]
    config = configuration.load("configs/paper.py", {})
    table = layer_table(config)
    rows = {row.name: row for row in table if row.name != CLASSIFIER}
    classes = table[-1].output[-1]
    halves = {layer: box_width(row) / 2 for layer, row in rows.items()}
    drawn = [
        f'<rect x="124" y="{y - 77}" width="700" height="154" rx="10" fill="{theme["panel"]}" '
        f'stroke="{theme["edge"]}"/>'
        for y in ROWS
    ]
    # Lines lie under the boxes.
    names = list(rows)
    for column, y in enumerate(ROWS):
        color, marker = theme["columns"][column], f"head-{column}"
        first, last = names[0], names[-1]
        drawn.append(
            arrow((IMAGE + 30, MIDDLE), (CENTERS[first] - halves[first] - 8, y), theme["faint"], "head")
        )
        for before, layer in itertools.pairwise(names):
            targets = ROWS if rows[layer].spec.gather else (y,)
            for target in targets:
                start = (CENTERS[before] + halves[before] + 4, y)
                apart = 10 * ((y > target) - (y < target))  # from the head of the other column's arrow
                end = (CENTERS[layer] - halves[layer] - 8, target + apart)
                drawn.append(arrow(start, end, color, marker))
        start, end = (CENTERS[last] + halves[last] + 4, y), (LOGITS - 15, MIDDLE + (12 if column else -12))
        drawn.append(arrow(start, end, color, marker))
    for layer, row in rows.items():
        x = CENTERS[layer]
        kernel, then = header(row)
        drawn.append(text(x, 26, layer, theme, size=15, bold=True))
        drawn.append(text(x, 45, kernel, theme))
        drawn.append(text(x, 64, then, theme, faint=True))
        maps = times(*row.output[:-1], row.output[-1] // config.model.columns)
        for column, y in enumerate(ROWS):
            depth, size, slant = extent(row)
            drawn.append(box(x, y, depth, size, theme["columns"][column], slant))
            drawn.append(text(x, y - 58 if column == 0 else y + 66, maps, theme))
        if row.spec.gather:
            gap = (x + CENTERS[names[names.index(layer) - 1]]) / 2
            drawn.append(text(gap, HEIGHT - 11, "columns meet", theme, faint=True))
    for column, y in enumerate(ROWS):
        label = f"device {column}: column {column}"
        drawn.append(text(186, y + 66 if column == 0 else y - 56, label, theme, faint=True))
    drawn.append(box(IMAGE, MIDDLE, 8, 92, theme["faint"]))
    drawn.append(text(IMAGE, MIDDLE - 72, "image", theme, size=15, bold=True))
    drawn.append(text(IMAGE, MIDDLE + 82, times(*table[0].input), theme))
    drawn.append(box(LOGITS, MIDDLE, 12, 92, theme["faint"], 0.0))
    drawn.append(text(LOGITS, MIDDLE - 76, CLASSIFIER, theme, size=15, bold=True))
    drawn.append(text(LOGITS, MIDDLE - 58, "sum", theme, faint=True))
    drawn.append(text(LOGITS, MIDDLE + 66, f"{classes}", theme))
    drawn.append(text(LOGITS, MIDDLE + 84, "softmax", theme, faint=True))
    colors = {"head": theme["faint"], "head-0": theme["columns"][0], "head-1": theme["columns"][1]}
    heads = "".join(
        f'<marker id="{marker}" viewBox="0 0 8 8" refX="2" refY="4" markerWidth="5" markerHeight="5" '
        f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{color}"/></marker>'
        for marker, color in colors.items()
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" text-anchor="middle" font-family="Helvetica, Arial, sans-serif">',
        "<title>The two columns of AlexNet, which meet before conv3, fc6 and fc7 and in the logits</title>",
        f"<defs>{heads}</defs>",
        *drawn,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def box_width(row: Row) -> float:
    """Return the width of a layer's box with its slanted side."""
    depth, size, slant = extent(row)
    return depth + slant * size


if __name__ == "__main__":
    for theme_name in THEMES:
        (HERE / f"columns-{theme_name}.svg").write_text(draw(theme_name))
