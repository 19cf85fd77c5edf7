"""alexnet_jax/workdirs/checkpoint.py: which checkpoints are kept, and what happens to damaged ones."""

import asyncio
import errno
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any

import flax.struct
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.arrays import assert_same_trees

from alexnet_jax import optimizer
from alexnet_jax.runtime import files, processes
from alexnet_jax.runtime.errors import InputError, Stopped
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import abstract_state, init_state
from alexnet_jax.workdirs.checkpoint import METRIC, Checkpoints, has_checkpoints
from configs import quickstart


def states(data, column):
    """(the state before the first step, its abstract form) on a mesh."""
    config = quickstart.get_config()
    config.mesh.data, config.mesh.column = data, column
    mesh, tx = make_mesh(config), optimizer.make(config)
    return init_state(config, mesh, tx), abstract_state(config, mesh, tx)


@pytest.fixture(scope="module")
def state():
    return states(1, 2)


def at(state, step):
    """The state at a step; its parameters tell which step it is."""
    params = jax.tree.map(lambda x: x + step, state.params)
    return state.replace(step=jax.numpy.int32(step), params=params)


def write(folder, state, errors, keep=2):
    with Checkpoints(folder, keep) as checkpoints:
        for step, error in errors.items():
            checkpoints.save(at(state, step), None if error is None else {METRIC: error})


def steps(folder):
    return sorted(int(name) for name in os.listdir(folder / "checkpoints") if name.isdigit())


@pytest.mark.parametrize(
    "errors, kept, best",
    [
        ({1: 0.3, 2: 0.1, 3: 0.2, 4: None, 5: 0.15}, [2, 4, 5], 2),
        ({1: 0.3, 2: None, 3: None, 4: None}, [1, 3, 4], 1),
        ({1: 0.2, 2: 0.2, 3: 0.3, 4: 0.4}, [2, 3, 4], 2),  # the later of equals
        ({1: 0.4, 2: 0.3, 3: 0.2}, [2, 3], 3),
        ({1: None, 2: None, 3: None}, [2, 3], 3),  # nothing validated yet: the latest
    ],
)
def test_the_best_and_the_latest_are_kept(tmp_path, state, errors, kept, best):
    write(tmp_path, state[0], errors)
    assert steps(tmp_path) == kept
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (best, max(errors))
        step, params = checkpoints.restore_params(state[1].params)
        assert step == best
        assert_same_trees(params, at(state[0], best).params)


def test_checkpoints_that_are_rated_later_are_kept_as_those_that_were_saved_with_their_error(tmp_path, state):
    with Checkpoints(tmp_path, 2) as checkpoints:
        for step, error in {1: 0.3, 2: 0.1, 3: 0.2, 4: None, 5: 0.15, 6: 0.4}.items():
            checkpoints.save(at(state[0], step))
            assert checkpoints.error(step) is None
            if error is not None:
                checkpoints.rate(step, {METRIC: error})
                assert checkpoints.error(step) == error
        assert checkpoints.best_step() == 2
    assert steps(tmp_path) == [2, 5, 6]
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert (checkpoints.best_step(), checkpoints.latest_step(), checkpoints.latest_step(6)) == (2, 6, 5)
        assert_same_trees(checkpoints.restore_latest(state[1]), at(state[0], 6))


class Former(flax.struct.PyTreeNode):
    """What a former version wrote."""

    step: Any
    params: dict
    opt_state: Any
    loss_sum: Any
    error_sum: Any
    loss_count: Any


def test_a_field_that_a_former_version_did_not_write_is_0(tmp_path, state, caplog):
    fields = {name: value for name, value in vars(at(state[0], 3)).items() if name != "low_sums"}
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(Former(**fields), {METRIC: 0.5})
    with Checkpoints(tmp_path, 2) as checkpoints:
        restored = checkpoints.restore_latest(state[1])
    assert_same_trees(restored, at(state[0], 3))
    assert not said(caplog)
    assert restored.low_sums.sharding == state[1].low_sums.sharding


def test_what_is_saved_is_not_what_the_next_step_writes(tmp_path, state):
    """The step donates its state while the checkpoint is still being written."""
    start = jax.tree.map(lambda x: x + 0, state[0])
    expected = jax.device_get(start)
    expected = jax.tree.map(np.array, expected)
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(start)
        for _ in range(20):
            start = advance(start)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same_trees(checkpoints.restore_latest(state[1]), expected)


@pytest.mark.parametrize("data, column", [(1, 1), (2, 1), (2, 2)])
def test_a_checkpoint_opens_on_every_placement(tmp_path, state, data, column):
    write(tmp_path, state[0], {3: 0.5})
    _, abstract = states(data, column)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(abstract)
    assert_same_trees(restored, at(state[0], 3))
    assert restored.params["conv2"]["kernel"].sharding == abstract.params["conv2"]["kernel"].sharding


def said(caplog):
    return [record.message for record in caplog.records if record.name == "alexnet_jax"]


def large_files(folder):
    """The files of a checkpoint that are read: its arrays and their index."""
    found = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    used = [p for p in found if "ocdbt.process_0" not in str(p) or p.stat().st_size > 10_000]
    return [p for p in used if p.name == "manifest.ocdbt" or p.parent.name == "d" or p.name == "_METADATA"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_checkpoint_is_read_does_not_count_as_damage(tmp_path, state, monkeypatch, number):
    """Orbax has an `except:`, which makes a ValueError of what a handler raises."""

    def stop(number, frame):
        raise Stopped(number)

    def restore(*args, **named):
        try:
            os.kill(os.getpid(), number)
            return whole(*args, **named)
        except:  # noqa: E722
            raise ValueError("not concrete") from None

    write(tmp_path, state[0], {1: 0.1, 2: 0.2})
    former = signal.signal(number, stop)
    try:
        with Checkpoints(tmp_path, 2) as checkpoints, pytest.raises(Stopped):
            whole = checkpoints._manager.restore
            monkeypatch.setattr(checkpoints._manager, "restore", restore)
            checkpoints.restore_latest(state[1])
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, former)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]


def test_a_checkpoint_that_was_cut_short_is_skipped_with_a_warning(tmp_path, state, caplog):
    write(tmp_path / "whole", state[0], {1: 0.1, 2: 0.2})
    victims = large_files(tmp_path / "whole" / "checkpoints" / "2")
    assert len(victims) >= 6
    for number, victim in enumerate(victims):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        name = folder / victim.relative_to(tmp_path / "whole")
        os.truncate(name, name.stat().st_size // 2)
        with Checkpoints(folder, 2) as checkpoints:
            assert_same_trees(checkpoints.restore_latest(state[1]), at(state[0], 1))
            assert "checkpoints/2 cannot be read" in said(caplog)[-1] and "\n" not in said(caplog)[-1]
            # The step can be saved again, and the damaged one is still there to look at.
            checkpoints.save(at(state[0], 2), {METRIC: 0.05})
        assert steps(folder) == [1, 2] and (folder / "checkpoints" / "damaged-2").is_dir()
        with Checkpoints(folder, 2) as checkpoints:
            assert_same_trees(checkpoints.restore_latest(state[1]), at(state[0], 2))


# Restores the checkpoint 1 of each folder, whose checkpoint 2 is damaged, and lives on for a while.
PASS_OVER = """
import gc, logging, sys, time
import jax
jax.config.update("jax_num_cpu_devices", 2)
from alexnet_jax import optimizer
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import abstract_state
from alexnet_jax.workdirs.checkpoint import Checkpoints
from configs import quickstart

logging.basicConfig()
config = quickstart.get_config()
abstract = abstract_state(config, make_mesh(config), optimizer.make(config))
for folder in sys.argv[1:]:
    with Checkpoints(folder, 2) as checkpoints:
        assert int(checkpoints.restore_latest(abstract).step) == 1
    gc.collect()
time.sleep(0.5)
gc.collect()
"""


@pytest.mark.program
def test_a_damaged_checkpoint_is_one_line_on_stderr_whatever_is_read_beside_it(tmp_path, state):
    """Orbax reads all arrays at once, and those that it gives up may fail at any later time."""
    write(tmp_path / "whole", state[0], {1: 0.1, 2: 0.2})
    folders = []
    for number, victim in enumerate(large_files(tmp_path / "whole" / "checkpoints" / "2")):
        folders.append(tmp_path / str(number))
        shutil.copytree(tmp_path / "whole", folders[-1])
        name = folders[-1] / victim.relative_to(tmp_path / "whole")
        os.truncate(name, name.stat().st_size // 2)
    command = [sys.executable, "-c", PASS_OVER, *map(str, folders)]
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == len(folders) >= 6, done.stderr
    for line, folder in zip(lines, folders, strict=True):
        assert f"warning: checkpoint {folder}/checkpoints/2 cannot be read (" in line


def test_orbax_has_ended_when_a_folder_cannot_be_opened(tmp_path, monkeypatch):
    """It removes in a thread what a killed run left; a page would follow if Python ended before it."""
    for number in range(300):
        (tmp_path / "checkpoints" / f"{number}.orbax-checkpoint-tmp-{number}").mkdir(parents=True)

    class Failing(ocp.CheckpointManager):
        def all_steps(self, *args, **kwargs):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.all_steps()

    monkeypatch.setattr(ocp, "CheckpointManager", Failing)
    monkeypatch.setattr(files, "WAITS", (0,))
    with pytest.raises(InputError, match="cannot be read now"), Checkpoints(tmp_path, 2):
        pass
    assert not [t for t in threading.enumerate() if type(t).__module__.startswith("orbax.")]
    assert not os.listdir(tmp_path / "checkpoints")


def test_a_damaged_checkpoint_changes_nothing_in_the_process(tmp_path, state):
    def globals_of_process():
        return sys.unraisablehook, type(asyncio.get_event_loop_policy()), logging.getLogger("asyncio").level

    write(tmp_path, state[0], {1: 0.1, 2: 0.2})
    for name in large_files(tmp_path / "checkpoints" / "2"):
        os.truncate(name, name.stat().st_size // 2)
    before = globals_of_process()
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert_same_trees(checkpoints.restore_latest(state[1]), at(state[0], 1))
    assert globals_of_process() == before


def test_what_a_killed_run_was_writing_is_removed(tmp_path, state):
    write(tmp_path, state[0], {1: 0.1})
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with Checkpoints(tmp_path) as reader:  # an evaluation beside a run that is still writing
        assert reader.latest_step() == 1 and unfinished.exists()
    with Checkpoints(tmp_path, 1) as checkpoints:
        assert_same_trees(checkpoints.restore_latest(state[1]), at(state[0], 1))
    assert os.listdir(tmp_path / "checkpoints") == ["1"]


def test_metrics_that_were_cut_short_do_not_lock_the_others_out(tmp_path, state, caplog):
    write(tmp_path, state[0], {1: 0.3, 2: 0.1})
    os.truncate(tmp_path / "checkpoints" / "2" / "metrics" / "metrics", 5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_params(state[1].params)[0] == 1 and len(said(caplog)) == 1
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert_same_trees(checkpoints.restore_latest(state[1]), at(state[0], 1))
        assert len(said(caplog)) == 2


def test_evaluation_skips_a_damaged_best_and_names_what_is_not_there(tmp_path, state, caplog):
    write(tmp_path, state[0], {1: 0.3, 2: 0.1})
    for name in large_files(tmp_path / "checkpoints" / "2" / "params"):
        os.truncate(name, name.stat().st_size // 2)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_params(state[1].params)[0] == 1 and len(said(caplog)) == 1
        with pytest.raises(InputError, match=r"eval.step: 7 .* 1, 2"):
            checkpoints.restore_params(state[1].params, 7)
        with pytest.raises(InputError, match="no checkpoint that can be read"):
            checkpoints.restore_params(state[1].params, 2)


def test_a_run_does_not_start_over_because_nothing_can_be_read(tmp_path, state):
    write(tmp_path, state[0], {1: 0.3, 2: 0.1})
    for step in ("1", "2"):
        for name in large_files(tmp_path / "checkpoints" / step):
            os.truncate(name, name.stat().st_size // 2)
    for _ in range(2):
        with Checkpoints(tmp_path, 2) as checkpoints, pytest.raises(InputError, match="none of its"):
            checkpoints.restore_latest(state[1])
        assert steps(tmp_path) == [1, 2]
    for step in ("1", "2"):
        (tmp_path / "checkpoints" / step).rename(tmp_path / "checkpoints" / f"damaged-{step}")
    with Checkpoints(tmp_path, 2) as checkpoints, pytest.raises(InputError, match="none of its"):
        checkpoints.restore_latest(state[1])


def test_a_checkpoint_that_one_process_cannot_read_is_not_to_be_deleted(tmp_path, state, monkeypatch):
    """It may be that process, or the way from there to the folder, that is wrong."""
    write(tmp_path, state[0], {1: 0.3})

    def nobody_else_asks(fine, seconds=None):
        raise TimeoutError

    with Checkpoints(tmp_path, 2) as checkpoints:
        monkeypatch.setattr(processes, "barrier", nobody_else_asks)
        with pytest.raises(InputError, match=r"checkpoints/1: .* rename it to damaged-1 "):
            checkpoints.restore_latest(state[1])
    assert steps(tmp_path) == [1]


def test_no_checkpoint_at_all(tmp_path, state):
    with Checkpoints(tmp_path, 1) as checkpoints:
        assert checkpoints.restore_latest(state[1]) is None
        with pytest.raises(InputError, match="no checkpoint"):
            checkpoints.restore_params(state[1].params)


def test_a_run_has_checkpoints_once_one_is_complete_even_if_it_is_damaged(tmp_path, state):
    assert not has_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not has_checkpoints(tmp_path)
    write(tmp_path, state[0], {1: 0.1})
    assert has_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "1").rename(tmp_path / "checkpoints" / "damaged-1")
    assert has_checkpoints(tmp_path)
