"""alexnet_jax/optimizer.py: the update rule and the schedule against hand-written NumPy."""

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from alexnet_jax import optimizer
from configs import paper


def config_of(patience=5, max_drops=3):
    config = paper.get_config()
    config.optimizer.plateau.patience = patience
    config.optimizer.plateau.max_drops = max_drops
    return ml_collections.FrozenConfigDict(config)


def problem():
    """Parameters, and the gradients of six steps."""
    draw = np.random.default_rng(0).normal
    tree = lambda: {"conv1": {"kernel": draw(size=(3, 4)), "bias": draw(size=4)}}  # noqa: E731
    return tree(), [tree() for _ in range(6)]


DROPS = [0, 0, 0, 1, 1, 2]  # before each of the six steps


def paper_rule(params, gradients):
    """v <- 0.9 v - 0.0005 eps w - eps g, w <- w + v in float64; biases do not decay."""
    trajectory = []
    w, v = dict(params["conv1"]), {"kernel": 0.0, "bias": 0.0}
    for drops, g in zip(DROPS, gradients, strict=True):
        eps = 0.01 * 0.1**drops
        for name, decay in (("kernel", 0.0005), ("bias", 0.0)):
            v[name] = 0.9 * v[name] - decay * eps * w[name] - eps * g["conv1"][name]
            w[name] = w[name] + v[name]
        trajectory.append({"conv1": dict(w)})
    return trajectory


def to_float32(tree):
    return {"conv1": {name: jnp.asarray(value, jnp.float32) for name, value in tree["conv1"].items()}}


def test_update_is_the_papers_over_drops_of_the_learning_rate():
    params, gradients = problem()
    rule = optimizer.make(config_of())
    w = to_float32(params)
    state = rule.init(w)
    for drops, g, want in zip(DROPS, gradients, paper_rule(params, gradients), strict=True):
        schedule = state["learning_rate"]._replace(drops=jnp.int32(drops))
        updates, state = rule.update(to_float32(g), {**state, "learning_rate": schedule}, w)
        w = optax.apply_updates(w, updates)
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(w["conv1"][name], want["conv1"][name], rtol=1e-6, atol=1e-6)


def test_bias_does_not_decay_and_a_kernel_does():
    zeros = {"conv1": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    ones = {"conv1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    rule = optimizer.make(config_of())
    updates, _ = rule.update(zeros, rule.init(ones), ones)
    np.testing.assert_allclose(updates["conv1"]["kernel"], -0.0005 * 0.01, rtol=1e-6)
    np.testing.assert_array_equal(updates["conv1"]["bias"], 0)


def test_rates_of_the_released_code_by_epoch():
    """Kernels of conv1 drop once more, conv1 freezes, biases keep twice the first rate; v is NumPy's."""
    config = paper.get_config()
    config.optimizer.update(
        drop_epochs=(1, 3), bias_rate=2.0, bias_rate_drops=False, conv1_drop_epoch=2, conv1_freeze_epoch=4
    )
    params, gradients = (dict.fromkeys(("conv1", "conv2"), tree["conv1"]) for tree in (problem()[0],) * 2)
    rule, w, want = optimizer.make(config), params, {name: dict(layer) for name, layer in params.items()}
    state, v = rule.init(w), {name: {"kernel": 0.0, "bias": 0.0} for name in w}
    for epoch, rates in enumerate(
        [(1e-2, 1e-2), (1e-3, 1e-3), (1e-4, 1e-3), (1e-5, 1e-4), (0, 1e-4), (0, 1e-4)]
    ):
        assert int(state["learning_rate"].epochs) == epoch
        updates, state = rule.update(gradients, state, w)
        w = optimizer.apply_updates(config, w, updates, state["learning_rate"].epochs)
        for name, rate in zip(("conv1", "conv2"), rates, strict=True):
            for kind, eps, decay in (("kernel", rate, 0.0005), ("bias", 0.02 if rate else 0, 0.0)):
                g = gradients[name][kind] + decay * want[name][kind]
                v[name][kind] = 0.9 * v[name][kind] - eps * g
                want[name][kind] = want[name][kind] + (v[name][kind] if eps else 0)
                np.testing.assert_allclose(w[name][kind], want[name][kind], rtol=1e-5, atol=1e-6)
        schedule = optimizer.after_validation(config, state["learning_rate"], 0.5, epoch + 1)
        assert not optimizer.ended(config, schedule)
        state = {**state, "learning_rate": schedule}


def test_a_network_without_conv1_has_nothing_to_freeze():
    config = paper.get_config()
    config.optimizer.update(conv1_drop_epoch=0, conv1_freeze_epoch=0)
    ones = {"conv2": {"kernel": jnp.ones(2)}}
    rule = optimizer.make(config)
    updates, _ = rule.update(ones, rule.init(ones), ones)
    np.testing.assert_array_less(optimizer.apply_updates(config, ones, updates, 1)["conv2"]["kernel"], 1)


def test_epochs_that_one_batch_completes_all_count():
    config = paper.get_config()
    config.optimizer.drop_epochs = (2, 3, 8)
    state = optimizer.after_validation(config, start(config), 0.5, 4)
    assert (int(state.drops), int(state.epochs)) == (2, 4)


def test_biases_decay_where_the_configuration_says_so():
    config = paper.get_config()
    config.optimizer.update(decay_biases=True, bias_rate=3.0)
    zeros, ones = ({"conv1": {"bias": make(2)}} for make in (jnp.zeros, jnp.ones))
    rule = optimizer.make(config)
    updates, _ = rule.update(zeros, rule.init(ones), ones)
    np.testing.assert_allclose(updates["conv1"]["bias"], -0.0005 * 0.03, rtol=1e-6)


def test_learning_rate_is_divided_by_ten_at_each_drop():
    rates = [optimizer.learning_rate(config_of(), drops) for drops in range(4)]
    np.testing.assert_allclose(rates, [1e-2, 1e-3, 1e-4, 1e-5], rtol=1e-12)


def start(config):
    return optimizer.make(config).init({"conv1": {"kernel": jnp.zeros(1)}})["learning_rate"]


SCHEDULES = {  # patience, max_drops, [(error, drops after it, whether training has ended)]
    "patience 1, as the paper: three drops, then the end": (
        1, 3, [(0.9, 0, False), (0.9, 1, False), (0.95, 2, False), (0.9, 3, False), (0.9, 3, True)],
    ),
    "improvements keep the rate": (
        1, 3, [(0.9, 0, False), (0.8, 0, False), (0.7, 0, False), (0.699, 0, False)],
    ),
    "patience 2 allows one validation without improvement": (
        2, 3, [(0.9, 0, False), (1.0, 0, False), (0.8, 0, False), (0.9, 0, False), (0.79, 0, False)],
    ),
    "a tie is no improvement": (
        2, 3, [(0.5, 0, False), (0.5, 0, False), (0.5, 1, False), (0.5, 1, False), (0.5, 2, False)],
    ),
    "a drop starts the count anew": (
        3, 3, [(0.5, 0, False), *[(0.6, 0, False)] * 2, *[(0.6, 1, False)] * 3, (0.6, 2, False)],
    ),
    "the lowest error counts, not the last": (
        2, 3, [(0.5, 0, False), (0.9, 0, False), (0.6, 1, False), (0.49, 1, False), (0.5, 1, False)],
    ),
    "an improvement after drops does not raise the rate": (
        1, 3, [(0.5, 0, False), (0.6, 1, False), (0.4, 1, False), (0.5, 2, False), (0.3, 2, False)],
    ),
    "patience 2, the end where it would drop a fourth time": (
        2, 3,
        [(0.5, 0, False), (0.6, 0, False), (0.6, 1, False), (0.6, 1, False), (0.6, 2, False),
         (0.6, 2, False), (0.6, 3, False), (0.6, 3, False), (0.6, 3, True)],
    ),
    "an improvement puts the end off": (
        2, 1,
        [(0.5, 0, False), (0.6, 0, False), (0.6, 1, False), (0.6, 1, False), (0.4, 1, False),
         (0.6, 1, False), (0.6, 1, True)],
    ),
    "no drops at all": (1, 0, [(0.5, 0, False), (0.4, 0, False), (0.5, 0, True)]),
    "an error that is not a number is no improvement": (
        1, 3, [(float("nan"), 1, False), (0.5, 1, False), (float("nan"), 2, False), (0.4, 2, False)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SCHEDULES.values(), ids=SCHEDULES)
def test_schedule_follows_the_validation_errors(case):
    patience, max_drops, validations = case
    config = config_of(patience, max_drops)
    state = start(config)
    assert not optimizer.ended(config, state)
    for number, (error, drops, ends) in enumerate(validations):
        state = optimizer.after_validation(config, state, error, number + 1)
        assert (int(state.drops), optimizer.ended(config, state)) == (drops, ends), f"validation {number}"


def test_schedule_keeps_the_types_that_the_compiled_step_takes():
    config = config_of(patience=2, max_drops=1)
    state = first = start(config)
    # An improvement, a stale one, a drop, a stale one, the end.
    for epoch, error in enumerate((0.5, 0.6, 0.6, 0.6, 0.6)):
        state = optimizer.after_validation(config, state, error, epoch + 1)
        assert [np.asarray(x).dtype for x in state] == [np.asarray(x).dtype for x in first]
    assert optimizer.ended(config, state)


def test_lars_is_the_formula_over_steps_of_warm_up_and_decay():
    """Norms are of a layer's two columns together; biases and normalisation have no decay and no ratio."""
    config = paper.get_config()
    config.update(batch_size=10, num_epochs=3)
    config.optimizer.update(
        name="lars", learning_rate=8.0, bias_rate=0.25, schedule="polynomial", power=2.0, warmup_epochs=1.0,
        trust_coefficient=0.01,
    )  # fmt: skip
    draw = np.random.default_rng(0).normal
    shapes = {"kernel": (2, 3, 4), "bias": (2, 4), "scale": (2, 4)}
    tree = lambda: {"conv1": {name: draw(size=shape) for name, shape in shapes.items()}}  # noqa: E731
    w, gradients = tree(), [tree() for _ in range(6)]
    rule, got = optimizer.make(config, examples=20), to_float32(w)
    state, w, v = rule.init(got), dict(w["conv1"]), dict.fromkeys(shapes, 0.0)
    for step, g in enumerate(gradients):
        rate = 8.0 * min(1, (step + 1) / 2) * (1 - step / 6) ** 2
        for name in shapes:
            decayed = g["conv1"][name] + (0.0005 * w[name] if name == "kernel" else 0)
            ratio = 0.01 * np.sqrt((w[name] ** 2).sum()) / np.sqrt((decayed**2).sum())
            v[name] = 0.9 * v[name] - rate * (ratio if name == "kernel" else 0.25) * decayed
            w[name] = w[name] + v[name]
        updates, state = rule.update(to_float32(g), state, got)
        got = optimizer.apply_updates(config, got, updates, state["learning_rate"].epochs)
        for name in shapes:
            np.testing.assert_allclose(got["conv1"][name], w[name], rtol=1e-5, atol=1e-6)
    lars = optax.lars(
        lambda step: 8.0 * optimizer.rate_factor(config, 20, step), 0.0005, optimizer._kernels, 0.01,
        trust_ratio_mask=optimizer._kernels,
    )  # fmt: skip
    ours, _ = rule.update(to_float32(gradients[0]), rule.init(got), got)
    theirs, _ = lars.update(to_float32(gradients[0]), lars.init(got), got)
    np.testing.assert_allclose(ours["conv1"]["kernel"], theirs["conv1"]["kernel"], rtol=1e-5)


def test_a_layer_of_zeros_or_without_gradient_has_finite_updates_of_lars():
    config = paper.get_config()
    config.optimizer.name = "lars"
    zeros, ones = ({"conv1": {"kernel": make((2, 2))}} for make in (jnp.zeros, jnp.ones))
    rule = optimizer.make(config)
    for params, gradients in ((zeros, ones), (ones, zeros), (zeros, zeros)):
        updates, _ = rule.update(gradients, rule.init(params), params)
        assert np.isfinite(updates["conv1"]["kernel"]).all()


def test_schedule_of_epochs_neither_drops_nor_ends_by_the_error():
    for schedule in ("epochs", "polynomial"):
        config = paper.get_config()
        config.optimizer.schedule, config.optimizer.plateau.patience = schedule, 1
        state = start(config)
        for epoch in range(1, 9):
            state = optimizer.after_validation(config, state, 0.5, epoch)
            assert int(state.drops) == 0 and not optimizer.ended(config, state)


def test_without_warm_up_and_polynomial_the_factor_is_one_and_the_state_the_papers():
    config = paper.get_config()
    assert optimizer.rate_factor(config, 1000, 77) == 1
    assert list(optimizer.make(config).init({})) == ["weight_decay", "learning_rate", "momentum"]
