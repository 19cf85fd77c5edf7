"""Folders of small pictures as data sets, and the smallest networks on them."""

import pathlib

import numpy as np
from PIL import Image

from configs import quickstart


def make(folder: pathlib.Path, classes, train=8, val=4, seed=0) -> pathlib.Path:
    """Write `train` and `val` pictures of 28x28 for each class, bright where its place says so, as BMP."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for place, name in enumerate(classes):
            for number in range(count):
                picture(folder / split / name / f"{number}.bmp", random, place)
    return folder


def picture(path: pathlib.Path, random: np.random.Generator, place: int) -> None:
    """Write a picture of noise with a bright row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 100, (28, 28), np.uint8)
    pixels[4 * place : 4 * place + 4] += 150
    Image.fromarray(pixels).save(path)


def config_of(folder, classes: int, **changes):
    """Return the configuration of a network that trains on such a folder in a second."""
    config = quickstart.get_config()
    config.data.update(name="folder", dir=str(folder), train_split="train", val_split="val", test_split="val")
    config.model.update(width=0.25, num_classes=classes)
    for layer in ("conv3", "conv4", "fc6"):
        config.model.layers[layer].enabled = False
    config.mesh.update(data=1, column=1)
    config.update(num_epochs=1, batch_size=8)
    config.eval.update(views=1, batch_size=8)
    config.update_from_flattened_dict(changes)
    return config
