"""python -m experiments.shrink FROM TO SIZE

Copies a folder of pictures, each prepared for data.image_size=SIZE as the program does when it reads it
(images.py, `fit`). Names stay, the content is BMP: a run on the copy reads the same pixels in the same order
in a sixth of the time, which counts where many small networks are trained on photographs.
"""

import pathlib

from PIL import Image

from alexnet_jax.datasets import images
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError


def main(arguments: list[str]) -> None:
    parser = command_line.Parser(__doc__)
    parser.add_argument("source", metavar="FROM", type=pathlib.Path)
    parser.add_argument("target", metavar="TO", type=pathlib.Path)
    parser.add_argument("size", metavar="SIZE", type=int)
    given = parser.parse(arguments)
    paths = [path for path in sorted(given.source.rglob("[!.]*")) if path.is_file()]
    if not paths or given.size < 1:
        raise InputError(f"{given.source} {given.size}: give a folder of pictures, and a size in pixels")
    for path in paths:
        try:
            picture = images.fit(images.decode(path.read_bytes()), given.size, 3)
        except ValueError as error:
            raise InputError(f"{path}: cannot be read as a picture ({error}); remove it") from None
        copy = given.target / path.relative_to(given.source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(copy, "BMP")


if __name__ == "__main__":
    command_line.run(main)
