"""The annotations of alexnet_jax are checked at every call of the tests (pyproject.toml, addopts)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from alexnet_jax import layers
from alexnet_jax.workdirs.workdir import read_config

MAPS, KERNEL = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))


def test_arrays_of_the_annotated_shapes_are_taken_also_where_they_are_traced():
    want = layers.conv(MAPS, KERNEL, 1, (1, 1))
    np.testing.assert_allclose(jax.jit(layers.conv, static_argnums=(2, 3))(MAPS, KERNEL, 1, (1, 1)), want)
    columns = jax.vmap(lambda kernel: layers.conv(MAPS, kernel, 1, (1, 1)))(KERNEL[None])
    np.testing.assert_allclose(columns[0], want, rtol=1e-6)


@pytest.mark.parametrize(
    "x, kernel",
    [
        (MAPS[0], KERNEL),
        (MAPS, KERNEL[:, :, :2]),
        (MAPS.astype(jnp.int32), KERNEL),
        (np.asarray(MAPS), KERNEL),
    ],
    ids=["no batch", "fewer channels than the maps", "integers", "an array of NumPy"],
)
def test_arrays_of_other_shapes_and_types_raise(x, kernel):
    with pytest.raises(TypeCheckError):
        layers.conv(x, kernel, 1, (1, 1))


def test_a_key_for_each_example_is_needed():
    with pytest.raises(TypeCheckError, match="batch"):
        layers.dropout(MAPS, 0.5, jax.random.split(jax.random.key(0), 3))


def test_a_result_of_another_shape_raises(monkeypatch):
    monkeypatch.setattr(layers, "_divisive_norm", lambda x, *_: x[:, :-1])
    with pytest.raises(TypeCheckError, match="return value"):
        layers.local_response_norm(MAPS, 5, 2.0, 1e-4, 0.75)


def test_other_arguments_are_checked_too():
    with pytest.raises(TypeCheckError, match="workdir"):
        read_config(0)
