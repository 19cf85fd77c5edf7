"""A full disk in training is one line, and the same command goes on once there is room."""

import os
import shutil
import subprocess

import jax
import numpy as np
import pytest
from helpers import folders
from helpers.runs import rows

from alexnet_jax import optimizer, train
from alexnet_jax.runtime import files
from alexnet_jax.runtime.errors import Unavailable, one_line
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import abstract_state
from alexnet_jax.workdirs import checkpoint, events, metrics
from alexnet_jax.workdirs.checkpoint import Checkpoints
from alexnet_jax.workdirs.workdir import read_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return folders.make(tmp_path_factory.mktemp("data"), ["ant", "bee", "cow"])


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, and a function that sets its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    yield folder, resize
    subprocess.run(["umount", "-l", str(folder)], check=True)


def config_of(data):
    return folders.config_of(data, 4, num_epochs=4, **{"optimizer.plateau.patience": 9})


def params(workdir, step):
    config = read_config(str(workdir))
    with Checkpoints(str(workdir)) as checkpoints:
        abstract = abstract_state(config, make_mesh(config), optimizer.make(config))
        return jax.tree.leaves(checkpoints.restore_params(abstract.params, step)[1])


@pytest.mark.program
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(data, disk, tmp_path, capfd):
    folder, resize = disk
    workdir = folder / "run"
    for size in ("300k", "260k", "280k", "320k"):  # Orbax has many threads, and any may fail first
        shutil.rmtree(workdir, ignore_errors=True)
        resize(size)
        with pytest.raises(Unavailable) as told:
            train.train(config_of(data), str(workdir))
        good = max(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdigit())
        then = f"make room; the same command resumes from step {good}"
        line, code = one_line(told.value)
        file, reason = line.removeprefix(f"{workdir}/").split(":", maxsplit=1)
        assert file == "checkpoints" or file.startswith("events.out.tfevents.")
        assert (reason, code) == (f" cannot be written (No space left on device); {then}", 1) and good > 0
    assert "Traceback" not in capfd.readouterr().err
    resize("4m")
    train.train(config_of(data), str(workdir))
    train.train(config_of(data), str(tmp_path / "undisturbed"))
    assert rows(workdir) == rows(tmp_path / "undisturbed")
    ours, theirs = (params(place, 12) for place in (workdir, tmp_path / "undisturbed"))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.program
@pytest.mark.parametrize(
    "place, function, name",
    [
        (metrics, "append_row", "metrics.jsonl"),
        (events.EventFile, "write_scalars", "events"),
        (checkpoint.Checkpoints, "wait", "checkpoints"),
    ],
)
def test_each_file_that_cannot_be_written_is_named(data, tmp_path, monkeypatch, place, function, name):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "run" / name))

    with monkeypatch.context() as patch:
        patch.setattr(place, function, full)
        with pytest.raises(Unavailable, match=f"run/{name}: cannot be written .* make room; "):
            train.train(config_of(data), str(tmp_path / "run"))
    train.train(config_of(data), str(tmp_path / "run"))
    assert rows(tmp_path / "run")[-1]["epoch"] == 4


def test_a_full_disk_of_event_files_names_them(disk):
    folder, _ = disk
    file = events.EventFile(folder)
    with open(folder / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(b"0" * 4096)
    with pytest.raises(OSError, match="No space left on device") as told:
        for step in range(300):
            file.write_scalars(step, {f"value {number}": 0.5 for number in range(20)})
    assert told.value.filename.startswith(f"{folder}/events.out.tfevents.")


@pytest.fixture
def trained(data, tmp_path):
    train.train(config_of(data), str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.mark.program
@pytest.mark.parametrize("file", ["params/_METADATA", "metrics/metrics", "rest/array_metadatas/process_0"])
def test_a_checkpoint_that_cannot_be_read_now_stays_where_it_is(data, trained, monkeypatch, file):
    """Reading /proc/self/mem fails with EIO, as a network file system may for a while."""
    monkeypatch.setattr(files, "WAITS", (0.0,))
    before, path = sorted(os.listdir(trained / "checkpoints")), trained / "checkpoints" / "12" / file
    path.rename(trained / "kept")
    path.symlink_to("/proc/self/mem")
    with pytest.raises(Unavailable, match=r"cannot be read now \(Input/output error\); try again"):
        train.train(config_of(data), str(trained))
    assert sorted(os.listdir(trained / "checkpoints")) == before

    def repaired(_):
        if (trained / "kept").exists():
            (trained / "kept").replace(path)

    monkeypatch.setattr(files.time, "sleep", repaired)
    train.train(config_of(data), str(trained))  # the second attempt succeeds
    assert sorted(os.listdir(trained / "checkpoints")) == before


@pytest.mark.program
def test_a_file_that_orbax_does_without_is_not_told_of(trained, caplog):
    path = trained / "checkpoints" / "12" / "_CHECKPOINT_METADATA"
    path.unlink()
    path.symlink_to("/proc/self/mem")
    with Checkpoints(str(trained), keep=3) as checkpoints:
        assert checkpoints.error(12) is not None
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_read_is_tried_again_and_other_errors_are_not(monkeypatch):
    waits, outcomes = [], [OSError(116, "Stale file handle"), ValueError("EIO: Input/output error"), 5]
    monkeypatch.setattr(files.time, "sleep", waits.append)

    def read():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert files.retry("x", read) == 5 and waits == list(files.WAITS[:2])
    for error in (FileNotFoundError(2, "No such file or directory"), ValueError("cut short")):
        outcomes, waits[:] = [error], []
        with pytest.raises(type(error)):
            files.retry("x", read)
        assert not waits
    outcomes = [PermissionError(13, "Permission denied")]
    with pytest.raises(Unavailable, match=r"^x: cannot be read now \(Permission denied\); try again"):
        files.retry("x", read)
    assert not waits
