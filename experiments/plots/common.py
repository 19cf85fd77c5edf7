"""Colours and line styles of the figures, and a function to save them."""

from matplotlib.figure import Figure

# Okabe and Ito's colours, which readers without colour vision can distinguish; line styles do so in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", (0, (1, 1)))
MARKERS = ("", "o", "s", "^", "D", "v", "x", "+")  # for more lines than colours


def save(figure: Figure, paths: list[str]) -> None:
    """Write the figure to each path, in the format of its extension, and print the path."""
    for path in paths:
        figure.savefig(path, dpi=150)
        print(path)
