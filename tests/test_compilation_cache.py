"""alexnet_jax/runtime/compilation_cache.py: its bound, and entries that cannot be read."""

import logging
import os
import pathlib
import subprocess
import sys
import warnings

import pytest

from alexnet_jax.runtime import compilation_cache

ROOT = pathlib.Path(__file__).parent.parent


def test_the_entries_used_longest_ago_go_first(tmp_path):
    for number, (name, size) in enumerate((("a", 30), ("b", 50), ("c", 40), ("d", 20))):
        path = tmp_path / "cpu" / f"{name}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"0" * size)
        os.utime(path, (1000 + (name == "a") * 99, 1000 + number))
    (tmp_path / "cpu" / "of the user").write_bytes(b"0" * 999)
    compilation_cache.remove_oldest(tmp_path, 1000)
    assert len(os.listdir(tmp_path / "cpu")) == 5
    compilation_cache.remove_oldest(tmp_path, 90)
    assert sorted(os.listdir(tmp_path / "cpu")) == ["a-cache", "c-cache", "d-cache", "of the user"]


def test_what_jax_cannot_read_is_removed_and_other_warnings_are_shown(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "alexnet_jax")
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *args: shown.append(str(args[0])))
    for _ in range(2):
        compilation_cache._replace_unreadable(tmp_path)
    for name in ("jit_step-1-cache", "jit_step-2-cache", "jit_stepping-1-cache"):
        (tmp_path / name).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for what in ("reading", "writing"):
            warnings.warn(
                f"Error {what} persistent compilation cache entry for 'jit_step': error: x", stacklevel=1
            )
        warnings.warn("another", stacklevel=1)
    assert os.listdir(tmp_path) == ["jit_stepping-1-cache"] and shown == ["another"]
    assert ["jit_step is compiled again (error: x)" in line for line in caplog.messages] == [True, False]


PROGRAM = """
from alexnet_jax.runtime import command_line
def main(arguments):
    command_line.Parser("").parse(arguments)
    import jax
    from alexnet_jax.runtime.mesh import make_mesh
    from configs import quickstart
    make_mesh(quickstart.get_config())
    jax.monitoring.register_event_listener(lambda event, **_: event.endswith("cache_misses") and print(event))
    jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((8, 8)))
command_line.run(main)
"""


@pytest.mark.program
def test_an_entry_that_was_cut_short_is_replaced(tmp_path):
    ours = "JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL"
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["XDG_CACHE_HOME"] = str(tmp_path)

    def run():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert not done.stderr
        return done.stdout

    assert "cache_misses" in run()
    assert not run()
    for path in tmp_path.rglob("jit__lambda*-cache"):
        os.truncate(path, 100)
    assert "jit__lambda is compiled again" in run()
    assert not run()
