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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from alexnet_jax import features
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError, some

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: each fit starts from the one before
_TOLERANCE = 1e-5  # of the gradient's norm at the minimum


class Examples(NamedTuple):
    """Features of a split, float32 [n, d], and labels, int32 [n]."""

    features: Any
    labels: Any


def objective(params: dict[str, Array], examples: Examples, penalty: float | Array) -> Array:
    """Return the mean cross-entropy, plus half the penalty times the squared norm of the weights."""
    logits = examples.features @ params["weights"] + params["biases"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels)
    return losses.mean() + 0.5 * penalty * jnp.sum(params["weights"] ** 2)


@jax.jit
def fit(params: dict[str, Array], examples: Examples, penalty: float, steps: int) -> dict[str, Array]:
    """Return the parameters that minimize the objective, or those after `steps` steps of L-BFGS."""
    tx = optax.lbfgs()

    def loss(params):
        return objective(params, examples, penalty)

    gradient = optax.value_and_grad_from_state(loss)

    def step(carry):
        params, state, done, _ = carry
        value, grad = gradient(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state, done + 1, optax.tree.norm(grad)

    def unfinished(carry):
        *_, done, norm = carry
        return (done < steps) & (norm > _TOLERANCE)

    return jax.lax.while_loop(unfinished, step, (params, tx.init(params), 0, jnp.inf))[0]


def error(params: dict[str, Array], examples: Examples) -> float:
    """Return the top-1 error, a fraction."""
    logits = examples.features @ params["weights"] + params["biases"]
    return float((logits.argmax(axis=1) != examples.labels).mean())


def load(folders: list[str], layer: str) -> tuple[list[Examples], list[str]]:
    """Return the examples of each folder, standardised by those of the first, and the class names.

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
    return [Examples((x - mean) / scale, y) for x, y in zip(rows, labels, strict=True)], records[0]["classes"]


def main(arguments: list[str]) -> None:
    """Fit, choose and print. Raises InputError."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("train", metavar="TRAIN", help="features to fit")
    parser.add_argument("val", metavar="VAL", help="features to choose the penalty on")
    parser.add_argument("test", metavar="TEST", help="features to report the error on")
    parser.add_argument("--layer", required=True, help="one of the layers in these folders")
    parser.add_argument("--steps", type=command_line.whole(1), default=200, help="most steps of L-BFGS")
    given = parser.parse(arguments)
    (train, val, test), classes = load([given.train, given.val, given.test], given.layer)
    size = train.features.shape[1]
    params = {"weights": jnp.zeros((size, len(classes))), "biases": jnp.zeros(len(classes))}
    train, tried = jax.device_put(train), []
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
