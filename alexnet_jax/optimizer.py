"""The paper's update rule and schedule (section 5) as one optax chain.

    v <- 0.9 v - 0.0005 eps w - eps <dL/dw>        w <- w + v

The learning rate eps is inside the velocity: after a drop, what has gathered at the old rate goes on.
`optax.sgd`, like PyTorch, has it outside, which differs after every drop.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class PlateauState(NamedTuple):
    best: jax.Array  # lowest validation error so far, float32
    stale: jax.Array  # validations since, int32
    drops: jax.Array  # times the learning rate was divided, int32


def make(config) -> optax.GradientTransformation:
    """Weight decay on kernels, minus the learning rate, momentum; `config.optimizer` has the numbers."""
    rule = config.optimizer
    return optax.named_chain(
        ("weight_decay", optax.add_decayed_weights(rule.weight_decay, mask=_kernels)),
        ("learning_rate", _scale_by_plateau(config)),
        ("momentum", optax.trace(decay=rule.momentum)),
    )


def _kernels(params):
    """True for kernels, False for biases (released code, src/layer.cu:565)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _scale_by_plateau(config) -> optax.GradientTransformation:
    most = config.optimizer.plateau.max_drops
    rates = np.array([learning_rate(config, drops) for drops in range(most + 1)])

    def init(params):
        del params
        return PlateauState(jnp.float32(jnp.inf), jnp.int32(0), jnp.int32(0))

    def update(updates, state, params=None):
        del params
        rate = jnp.asarray(rates, jnp.float32)[state.drops]
        return jax.tree.map(lambda update: -rate * update, updates), state

    return optax.GradientTransformation(init, update)


def learning_rate(config, drops: int) -> float:
    return config.optimizer.learning_rate * config.optimizer.plateau.factor**drops


def after_validation(config, state: PlateauState, error: float) -> PlateauState:
    """The schedule's state after one more validation (section 5).

    The rate drops after `patience` validations without a lower error; where it would drop once more than
    `max_drops`, `stale` stays at `patience`, and training has `ended`.
    """
    plateau, error = config.optimizer.plateau, np.float32(error)
    best, stale, drops = state.best, state.stale + 1, state.drops
    if error < best:
        best, stale = error, 0
    elif stale >= plateau.patience and drops < plateau.max_drops:
        stale, drops = 0, drops + 1
    return PlateauState(np.float32(best), np.int32(stale), np.int32(drops))


def ended(config, state: PlateauState) -> bool:
    return int(state.stale) >= config.optimizer.plateau.patience
