"""Multinomial logistic regression with an L2 penalty, by optax's L-BFGS."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

_TOLERANCE = 1e-5  # of the gradient's norm at the minimum


class Examples(NamedTuple):
    """Features of a split, float32 [n, d], and labels, int32 [n]."""

    features: Array
    labels: Array


def objective(params: dict[str, Array], examples: Examples, penalty: float | Array) -> Array:
    """Return the mean cross-entropy, plus half the penalty times the squared norm of the weights."""
    logits = examples.features @ params["weights"] + params["biases"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels)
    return losses.mean() + 0.5 * penalty * jnp.sum(params["weights"] ** 2)


def zeros(units: int, classes: int) -> dict[str, Array]:
    """Return the parameters from which the first fit starts."""
    return {"weights": jnp.zeros((units, classes)), "biases": jnp.zeros(classes)}


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
