"""alexnet_jax/runtime/mesh.py: which mesh is made of which devices."""

import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.mesh import mesh_shape
from configs import paper

ROOT = pathlib.Path(__file__).parent.parent
BOTH = ("batch_size", "eval.batch_size")


def mesh_config(columns=2, data=-1, column=-1, batch_size=128, eval_batch_size=128):
    config = paper.get_config()
    config.model.columns, config.batch_size, config.eval.batch_size = columns, batch_size, eval_batch_size
    config.mesh.update(data=data, column=column)
    return ml_collections.FrozenConfigDict(config)


@pytest.mark.parametrize(
    "columns, devices, asked, given",
    [
        (2, None, (-1, -1), (1, 2)),
        (1, None, (-1, -1), (1, 1)),
        (2, None, (4, -1), (4, 2)),
        (2, None, (-1, 1), (1, 1)),
        (2, 1, (-1, -1), (1, 1)),
        (2, 2, (-1, -1), (1, 2)),
        (2, 3, (-1, -1), (1, 2)),
        (2, 8, (-1, -1), (4, 2)),
        (1, 8, (-1, -1), (8, 1)),
        (2, 8, (-1, 1), (8, 1)),
        (2, 8, (2, -1), (2, 2)),
        (2, 4, (4, -1), (4, 1)),
        (2, 2, (2, 1), (2, 1)),
    ],
)
def test_mesh_is_chosen_from_the_devices(columns, devices, asked, given):
    data, column = asked
    assert mesh_shape(mesh_config(columns, data, column), devices, BOTH) == given


@pytest.mark.parametrize(
    "columns, devices, processes, asked, given",
    [
        (2, None, 2, (-1, -1), (1, 2)),
        (2, None, 3, (-1, -1), (3, 2)),
        (2, None, 4, (-1, -1), (2, 2)),
        (2, None, 2, (-1, 1), (2, 1)),
        (1, None, 4, (-1, -1), (4, 1)),
        (2, None, 2, (4, -1), (4, 2)),
        (2, 6, 2, (-1, -1), (3, 2)),
        (2, 3, 3, (-1, 1), (3, 1)),
        (2, 16, 2, (-1, -1), (8, 2)),
    ],
)
def test_mesh_is_shared_by_the_processes(columns, devices, processes, asked, given):
    data, column = asked
    config = mesh_config(columns, data, column, batch_size=24, eval_batch_size=48)
    assert mesh_shape(config, devices, BOTH, processes) == given


@pytest.mark.parametrize("config, devices", [(mesh_config(data=1, column=1), None), (mesh_config(data=1), 4)])
def test_mesh_that_leaves_a_process_without_devices_is_refused(config, devices):
    with pytest.raises(InputError, match="mesh: data x column is 1 x .* 2 processes"):
        mesh_shape(config, devices, BOTH, 2)


@pytest.mark.parametrize(
    "config, devices, named",
    [
        (mesh_config(columns=1, column=2), 8, "mesh.column: 2"),
        (mesh_config(data=4, column=2), 4, "mesh.data"),
        (mesh_config(data=3), 2, "mesh.data"),
        (mesh_config(column=2), 1, "mesh.column"),
        (mesh_config(data=3, batch_size=100, eval_batch_size=99), 8, "batch_size: 100"),
        (mesh_config(data=3, batch_size=99, eval_batch_size=100), 8, "eval.batch_size: 100"),
        (mesh_config(batch_size=127), 4, "batch_size: 127"),
        (mesh_config(data=5), None, "batch_size: 128"),
    ],
)
def test_mesh_that_does_not_fit_names_the_field(config, devices, named):
    with pytest.raises(InputError) as raised:
        mesh_shape(config, devices, BOTH)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


def test_micro_batches_that_do_not_divide_a_devices_batch_are_refused():
    config = paper.get_config()
    config.mesh.data, config.micro_batches = 2, 3
    with pytest.raises(InputError, match=r"^micro_batches: 3 parts do not divide a device's 64 images"):
        mesh_shape(config, 2, BOTH)


FAILURE = "Unable to load cuSPARSE. Is it installed?"
PLUGIN = f"""
def initialize():
    raise RuntimeError({FAILURE!r})
"""
MAKE_MESH = """
from alexnet_jax.runtime import command_line
def main(arguments):
    from alexnet_jax.runtime.mesh import make_mesh
    from configs import quickstart
    print(make_mesh(quickstart.get_config()).devices.size)
command_line.run(main)
"""


@pytest.mark.program
@pytest.mark.parametrize(
    "platforms, message",
    [
        (
            None,
            f"jax: is installed for xla_cuda12, but finds no device ({FAILURE})",
        ),
        ("cuda", f"JAX_PLATFORMS=cuda: cannot be used ({FAILURE})"),
        ("tpu", f"JAX_PLATFORMS=tpu: cannot be used ({FAILURE})"),
        ("cpu", ""),
    ],
)
def test_accelerators_that_were_asked_for_and_cannot_be_used_end_the_program(tmp_path, platforms, message):
    """The plugin is found as JAX's own for CUDA are, and fails as they do without the libraries."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "plugin-1.dist-info").mkdir()
    (tmp_path / "plugin-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: plugin\nVersion: 1\n"
    )
    (tmp_path / "plugin-1.dist-info" / "entry_points.txt").write_text("[jax_plugins]\nxla_cuda12 = plugin\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    del environment["JAX_PLATFORMS"]
    done = subprocess.run(
        [sys.executable, "-c", MAKE_MESH], cwd=ROOT, capture_output=True, text=True,
        env=environment | ({"JAX_PLATFORMS": platforms} if platforms else {}),
    )  # fmt: skip
    error = f"error: {message}; JAX_PLATFORMS=cpu uses the CPU\n" if message else ""
    assert (done.stderr, done.returncode) == (error, 2 if message else 0)
