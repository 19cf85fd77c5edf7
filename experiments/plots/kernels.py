"""Figure 3: the kernels of conv1."""

import numpy as np
from matplotlib.figure import Figure

from experiments import columns


def draw(workdir: str, overrides: dict) -> Figure:
    """Draw conv1's kernels of the best checkpoint, all on one scale from black to white.

    There are 16 per row, as in the released code (shownet.py:187), and one picture per column of the network.
    """
    step, kernels = columns.conv1(workdir, overrides)
    scaled = (kernels - kernels.min()) / (kernels.max() - kernels.min())
    count, size, _, channels, maps = scaled.shape
    wide = min(maps, 16)
    rows = -(-maps // wide)
    figure = Figure(figsize=(8, 8.8 / wide * rows * count + 0.6), layout="constrained")
    for column, axes in enumerate(figure.subplots(count, 1, squeeze=False)[:, 0]):
        sheet = np.ones((rows * (size + 1) + 1, wide * (size + 1) + 1, channels))
        for number in range(maps):
            top, left = (1 + place * (size + 1) for place in divmod(number, wide))
            sheet[top : top + size, left : left + size] = scaled[column, ..., number]
        axes.imshow(sheet if channels == 3 else sheet[..., 0], cmap="gray", interpolation="nearest")
        axes.set_axis_off()
        title = f"column {column}" if count > 1 else "one column"
        if channels == 3:
            title += f": {columns.colorfulness(kernels[column]):.1%} of the energy is colour"
            print(f"{workdir}, step {step}, {title} (2/3 at random)")
        axes.set_title(title, fontsize="medium", loc="left")
    figure.suptitle(f"conv1, step {step}", fontsize="medium")
    return figure
