"""The training step of configs/paper.py as it is lowered for GPUs and TPUs, without their compilers."""

import re

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from jax import lax

from alexnet_jax import optimizer
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import abstract_state, make_train_step
from configs import paper

# jax 0.12 warns so about kernels/norm_pool.py.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

PLATFORMS = ("cuda", "tpu")
# Of each column: five forward, five gradients of kernels, and four of inputs, since images need none.
CONVOLUTIONS = 5 + 5 + 4
SLOW = {
    "a loop": r"stablehlo\.while\b",
    "a callback to the host": r"callback",  # which JAX does not even lower without the platform
    "float64": r"xf64>|tensor<f64>",
    "a select_and_scatter": r"select_and_scatter",
}


def slow_parts(text):
    """Return the parts of a lowered program that no step should have."""
    return [name for name, pattern in SLOW.items() if re.search(pattern, text)]


def convolutions(text):
    return len(re.findall(r"= stablehlo\.convolution\(", text))


def precisions(text):
    """Return the precisions of all products and convolutions, and their number."""
    lines = re.findall(r"= stablehlo\.(?:convolution|dot_general|dot)\b.*", text)
    found = [re.findall(r"(?<=precision )[A-Z]+|(?<=precision = \[)[A-Z]+", line) for line in lines]
    return {name for names in found for name in names or ["none"]}, len(lines)


def traced_step(**fields):
    config = paper.get_config()
    config.mesh.data = 1
    config.update_from_flattened_dict(fields)
    config = ml_collections.FrozenConfigDict(config)
    mesh, tx = make_mesh(config), optimizer.make(config)
    shapes = dict(mean_image=(256, 256, 3), eigenvectors=(3, 3), standard_deviations=(3,))
    statistics = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    images = jax.ShapeDtypeStruct((config.batch_size, 256, 256, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    state = abstract_state(config, mesh, tx)
    return make_train_step(config, mesh, tx).trace(state, images, labels, statistics)


def lowered(traced, platform):
    try:
        return traced.lower(lowering_platforms=(platform,)).as_text()
    except RuntimeError as error:  # jax 0.12
        if "No supported GPU devices" in str(error):
            pytest.skip("this JAX lowers kernels of Triton only beside a GPU")
        raise


@pytest.fixture(scope="module")
def both_columns():
    return traced_step(**{"mesh.column": 1})


@pytest.fixture(scope="module")
def precise_and_fused():
    """One column per device, with the fields that change what accelerators do."""
    return traced_step(**{"mesh.column": 2, "model.precision": "highest", "mesh.fused": True})


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_papers_step_has_no_slow_part_and_no_further_convolution(both_columns, platform):
    text = lowered(both_columns, platform)
    assert slow_parts(text) == []
    assert convolutions(text) == 2 * CONVOLUTIONS
    assert precisions(text)[0] <= {"DEFAULT", "none"}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_highest_precision_is_that_of_all_products(precise_and_fused, platform):
    text = lowered(precise_and_fused, platform)
    names, number = precisions(text)
    assert names == {"HIGHEST"}
    assert number >= CONVOLUTIONS + 3 * 3
    assert "bf16" not in text and "tf32" not in text.lower()


def test_fused_kernels_are_in_the_step(precise_and_fused):
    """Forward and backward, of conv1 and conv2."""
    text = lowered(precise_and_fused, "cuda")
    assert len(re.findall(r"custom_call @\S*triton\(", text)) == 4
    assert slow_parts(text) == [] and convolutions(text) == CONVOLUTIONS
    assert "triton" not in lowered(precise_and_fused, "tpu")


X = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
EXAMPLES = {
    "a loop": lambda x: lax.fori_loop(0, x.shape[0], lambda _, y: y * 2, x),
    "a callback to the host": lambda x: jax.pure_callback(lambda y: y, X, x),
    "float64": lambda x: x.astype(jnp.float64) * 2,
    "a select_and_scatter": jax.grad(
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID").sum()
    ),
}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("part", EXAMPLES)
def test_each_slow_part_is_noticed(part, platform):
    with jax.enable_x64(part == "float64"):
        traced = jax.jit(EXAMPLES[part]).trace(X)
        if part == "a callback to the host":  # JAX lowers none for a platform that is not there
            with pytest.raises(ValueError, match="platform"):
                lowered(traced, platform)
        else:
            assert slow_parts(lowered(traced, platform)) == [part]


def test_convolutions_are_counted_with_their_precisions():
    def conv(x, precision):
        layout = ("NHWC", "HWIO", "NHWC")
        kernel = jnp.ones((3, 3, 4, 4))
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=layout, precision=precision
        )

    text = lowered(jax.jit(lambda x: conv(conv(x, "highest"), None) @ jnp.ones((4, 2))).trace(X), "cuda")
    assert convolutions(text) == 2
    assert precisions(text) == ({"HIGHEST", "DEFAULT"}, 3)
