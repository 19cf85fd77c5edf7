"""Colors and line styles of the figures, and how they are saved."""

from matplotlib.figure import Figure

# Okabe and Ito's, which also readers without color vision can tell apart; line styles do it in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", (0, (1, 1)))
MARKERS = ("", "o", "s", "^", "D", "v", "x", "+")  # once all colors are taken


def save(figure: Figure, paths: list[str]) -> None:
    """Write the figure to each path, in the format of its ending, and print the path."""
    for path in paths:
        figure.savefig(path, dpi=150)
        print(path)
