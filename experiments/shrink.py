"""python -m experiments.shrink FROM TO SIZE

Copies a folder of pictures, each prepared for data.image_size=SIZE as the program does when it reads it
(images.py, `fit`). Names stay, the content is BMP: a run on the copy reads the same pixels in the same order
in a sixth of the time, which counts where many small networks are trained on photographs.
"""

import pathlib
import sys

from PIL import Image

from alexnet_jax import images


def main(source: str, target: str, size: str) -> None:
    for path in sorted(pathlib.Path(source).rglob("[!.]*")):
        if path.is_file():
            picture = images.fit(images.decode(path.read_bytes()), int(size), 3)
            copy = pathlib.Path(target) / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(copy, "BMP")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
