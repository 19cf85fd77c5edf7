"""The paper's update rule and schedule (section 5) as one optax chain.

    v <- 0.9 v - 0.0005 eps w - eps <dL/dw>        w <- w + v

The learning rate eps is inside the velocity: after a drop, velocity accumulated at the old rate keeps acting.
`optax.sgd`, like PyTorch, has it outside, which gives other results after every drop.

The paper divides eps when the validation error stops improving. `drop_epochs` divides it at given epochs
instead, and `bias_rate`, `conv1_drop_epoch` and `conv1_freeze_epoch` are the released code's other rates.

For large batches (configs/large_batch.py) there are a warm-up, a polynomial decay, and LARS (You, Gitman and
Ginsburg 2017, arXiv 1708.03888). LARS also multiplies eps, for each layer's kernels, by
trust_coefficient |w| / |<dL/dw> + 0.0005 w|. The norms run over the whole layer, all its columns together.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class PlateauState(NamedTuple):
    """The schedule's state; a checkpoint holds it."""

    best: Any  # lowest validation error so far, float32
    stale: Any  # validations since, int32
    drops: Any  # times the learning rate was divided, int32
    epochs: Any  # completed at the last validation, int32


def make(config, examples: int = 1) -> optax.GradientTransformation:
    """Chain weight decay, the negative learning rate and momentum, with the numbers of `config.optimizer`.

    Decay acts on kernels (released code, src/layer.cu:565); with `decay_biases` it acts on biases too. With
    `name="lars"` the chain is optax.lars, with trust ratios for kernels only. Warm-up and polynomial decay
    depend on the number of training `examples`; the shapes of the state do not.
    """
    fields = config.optimizer
    decayed = None if fields.decay_biases else _kernels
    chain = [("weight_decay", optax.add_decayed_weights(fields.weight_decay, decayed))]
    if fields.name == "lars":
        ratio = optax.scale_by_trust_ratio(trust_coefficient=fields.trust_coefficient)
        chain.append(("trust_ratio", optax.masked(ratio, _kernels)))
    chain.append(("learning_rate", _scale_by_schedule(config)))
    if _changes_each_step(config):
        factor = functools.partial(rate_factor, config, examples)
        chain.append(("rate_factor", optax.scale_by_schedule(factor)))
    return optax.named_chain(*chain, ("momentum", optax.trace(decay=fields.momentum)))


def _kernels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _scale_by_schedule(config) -> optax.GradientTransformation:
    fields = config.optimizer
    most = len(fields.drop_epochs) or fields.plateau.max_drops
    rates = np.array([learning_rate(config, drops) for drops in range(most + 1)])

    def init(params):
        del params
        return PlateauState(jnp.float32(jnp.inf), jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def update(updates, state, params=None):
        del params
        rate = jnp.asarray(rates, jnp.float32)[state.drops]

        def of(path):
            layer, kind = (key.key for key in path[-2:])
            if kind != "kernel":
                return (rate if fields.bias_rate_drops else fields.learning_rate) * fields.bias_rate
            if layer == "conv1" and fields.conv1_drop_epoch != -1:
                return jnp.where(state.epochs >= fields.conv1_drop_epoch, rate * fields.plateau.factor, rate)
            return rate

        return jax.tree_util.tree_map_with_path(lambda path, update: -of(path) * update, updates), state

    return optax.GradientTransformation(init, update)


def apply_updates(config, params, updates, epochs):
    """Return w + v. A weight whose rate is 0 stays unchanged, whatever its velocity (src/weights.cu:148)."""
    moved = optax.apply_updates(params, updates)
    if config.optimizer.conv1_freeze_epoch != -1 and "conv1" in params:
        frozen = epochs >= config.optimizer.conv1_freeze_epoch
        keep = functools.partial(jnp.where, frozen)
        moved = moved | {"conv1": jax.tree.map(keep, params["conv1"], moved["conv1"])}
    return moved


def learning_rate(config, drops: int) -> float:
    """Return the learning rate after a number of drops."""
    return config.optimizer.learning_rate * config.optimizer.plateau.factor**drops


def _changes_each_step(config) -> bool:
    return config.optimizer.schedule == "polynomial" or config.optimizer.warmup_epochs > 0


def rate_factor(config, examples: int, step):
    """Return the learning rate's factor in the update that follows `step` updates: warm-up times decay.

    The warm-up is linear (Goyal et al. 2017, arXiv 1706.02677) and reaches 1 after `warmup_epochs`. The
    polynomial is (1 - epochs / num_epochs)^power. An epoch has `examples` images.
    """
    fields, per_step = config.optimizer, config.batch_size / examples
    factor = 1.0
    if fields.warmup_epochs > 0:
        factor = jnp.minimum((step + 1) * (per_step / fields.warmup_epochs), 1)
    if fields.schedule == "polynomial":
        factor *= jnp.maximum(1 - step * (per_step / config.num_epochs), 0) ** fields.power
    return factor


def after_validation(config, state: PlateauState, error: float, epochs: int) -> PlateauState:
    """Return the schedule's state after one more validation, at which `epochs` are completed (section 5).

    The rate drops at `drop_epochs` if these are given. Otherwise, with the schedule "plateau", it drops
    after `patience` validations without a lower error. Instead of dropping more than `max_drops` times,
    `stale` stays at `patience`, and training has `ended`.
    """
    fields, error = config.optimizer, np.float32(error)
    best, stale, drops = state.best, state.stale + 1, state.drops
    if error < best:
        best, stale = error, 0
    elif stale >= fields.plateau.patience and drops < fields.plateau.max_drops and _waits_for_plateau(config):
        stale, drops = 0, drops + 1
    if fields.drop_epochs:
        drops = sum(epochs >= epoch for epoch in fields.drop_epochs)
    return PlateauState(np.float32(best), np.int32(stale), np.int32(drops), np.int32(epochs))


def ended(config, state: PlateauState) -> bool:
    """Return whether the schedule ends the training: no lower error at the lowest rate."""
    return _waits_for_plateau(config) and int(state.stale) >= config.optimizer.plateau.patience


def _waits_for_plateau(config) -> bool:
    return config.optimizer.schedule == "plateau" and not config.optimizer.drop_epochs
