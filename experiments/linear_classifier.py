r"""python -m experiments.linear_classifier TRAIN VAL TEST --layer=LAYER [--steps=200]

Train a linear classifier (multinomial logistic regression) on frozen features, and print its test error.
TRAIN, VAL and TEST are folders from `alexnet_jax.features`, for the same network and classes:

    for split in train val test; do
        python -m alexnet_jax.features --workdir=runs/quickstart --layers=fc7,conv5/pool \
            --out=features/$split ${split}_split
    done
    python -m experiments.linear_classifier features/train features/val features/test --layer=fc7

Features are standardised by the mean and standard deviation of TRAIN. Each step of L-BFGS uses all of TRAIN.
The weight of the L2 penalty is the one with the lowest error on VAL; TEST is used only once.
"""

import numpy as np

from alexnet_jax import features
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError, some

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: each fit starts from the one before


def load(folders: list[str], layer: str) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    """Return (features, labels) of each folder, standardised by the first, and the class names.

    Raises InputError if their network, layer or classes differ, or an image has no class.
    """
    records = [features.read_record(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        for key in ("run", "step", "weights", "column", "classes"):
            if record[key] != records[0][key]:
                raise InputError(
                    f"{folder}: has another {key} than {folders[0]}; give features of one network"
                )
        if layer not in record["layers"]:
            raise InputError(
                f"--layer={layer}: {folder} has {some(list(record['layers']))}; give one of them"
            )
    arrays = [features.read_rows(folder, layer) for folder in folders]
    rows = [array.reshape(len(array), -1) for array in arrays]
    mean, deviation = rows[0].mean(axis=0), rows[0].std(axis=0)
    scale = np.where(deviation > 0, deviation, 1)  # 1 for a unit that is always 0
    labels = [features.read_rows(folder, features.LABELS) for folder in folders]
    for folder, own in zip(folders, labels, strict=True):
        if own.min() < 0:
            raise InputError(f"{folder}: has images without a class; write features of a split or of folders")
    return [((x - mean) / scale, y) for x, y in zip(rows, labels, strict=True)], records[0]["classes"]


def main(arguments: list[str]) -> None:
    """Fit, choose and print. Raises InputError."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("train", metavar="TRAIN", help="features to fit")
    parser.add_argument("val", metavar="VAL", help="features to choose the penalty on")
    parser.add_argument("test", metavar="TEST", help="features to report the error on")
    parser.add_argument("--layer", required=True, help="one of the layers in these folders")
    parser.add_argument("--steps", type=command_line.whole(1), default=200, help="most steps of L-BFGS")
    given = parser.parse(arguments)
    splits, classes = load([given.train, given.val, given.test], given.layer)

    import jax

    from experiments.logistic_regression import Examples, error, fit, zeros

    train, val, test = (Examples(*jax.device_put(split)) for split in splits)
    size, tried = train.features.shape[1], []
    params = zeros(size, len(classes))
    for penalty in PENALTIES:
        params = fit(params, train, penalty, given.steps)
        found = error(params, val)
        print(
            f"penalty {penalty:g}: error {error(params, train):.4f} on TRAIN, {found:.4f} on VAL", flush=True
        )
        tried.append((found, penalty, params))
    _, penalty, params = min(tried, key=lambda each: each[0])
    name = f"{given.layer}, {size:,} features, penalty {penalty:g}"
    print(f"{name}: top-1 error {error(params, test):.4f} on TEST ({len(test.labels):,} images)")


if __name__ == "__main__":
    command_line.run(main)
