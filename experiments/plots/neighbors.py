"""Figure 4: predictions, and training images with the nearest features."""

import numpy as np
from matplotlib.figure import Figure

from alexnet_jax import config as configuration
from alexnet_jax import predict
from alexnet_jax.datasets.labels import with_labels_of
from alexnet_jax.datasets.source import Source, open_source
from alexnet_jax.runtime import progress
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.table import layer_table
from alexnet_jax.trained import BATCH, Trained


def draw(workdir: str, overrides: dict, indices: list[int]) -> Figure:
    """Draw a row per test image: the image, its five most probable labels, six nearest training images."""
    config = configuration.of_run(workdir, overrides)
    network = Trained(config, workdir)
    test, train = (
        with_labels_of(network.label_names, open_source(config, split))
        for split in ("test_split", "train_split")
    )
    wrong = [index for index in indices if not 0 <= index < len(test)]
    if wrong:
        raise InputError(f"--images={wrong[0]}: {config.data.test_split} has images 0 to {len(test) - 1}")
    images, labels = test.read(indices)
    probabilities = network.predict(images)
    near = nearest(network, images, train)
    pictures, near_labels = train.read(near.ravel())

    figure = Figure(figsize=(12, 1.75 * len(images) + 0.3), layout="constrained")
    grid = figure.subplots(len(images), 8, squeeze=False, width_ratios=(1, 1.6, 1, 1, 1, 1, 1, 1))
    for axes in grid[:, [0, *range(2, 8)]].flat:
        axes.set_axis_off()
    count = near.shape[1]  # six, unless there are fewer training images
    for row, axes in enumerate(grid):
        predict.draw_top_five(axes[1], probabilities[row], network.names, int(labels[row]))
        shown = [(axes[0], images[row], labels[row])]
        places = range(count * row, count * row + count)
        shown += [(axes[2 + n], pictures[place], near_labels[place]) for n, place in enumerate(places)]
        for each, picture, label in shown:
            each.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
            weight = "bold" if each is axes[0] else "normal"
            name = predict.short(network.names[label], 17)
            each.set_title(name, fontsize="small", weight=weight, parse_math=False)
    return figure


def nearest(network: Trained, images: np.ndarray, train: Source, count: int = 6) -> np.ndarray:
    """Return indices [n, count] of the images of `train` with the nearest features to each image's.

    Features are the last hidden layer's activations for the central view; the distance is Euclidean.
    """
    wanted = features(network, images)
    batches = progress.over(train, train.read, f"features of {train.split}", BATCH)
    distances = [
        np.linalg.norm(wanted[:, None] - features(network, pictures), axis=2) for pictures, _ in batches
    ]
    return np.argsort(np.hstack(distances), axis=1, kind="stable")[:, :count]


def features_layer(network: Trained) -> str:
    """Return the name of the last hidden layer's activations: fc7's in the paper's network."""
    layer = layer_table(network.config)[-2]
    return f"{layer.name}/activation" if "activation" in layer.then else layer.name


def features(network: Trained, images: np.ndarray) -> np.ndarray:
    """Return the last hidden layer's activations [n, features] for the central view of images."""
    name = features_layer(network)
    return network.activations(images, [name])[name].reshape(len(images), -1)
