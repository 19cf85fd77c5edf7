"""alexnet_jax/workdirs/workdir.py: config.json, eval.json, and who may train in the folder."""

import json
import logging
import os
import pathlib

import numpy as np
import pytest
from helpers.sources import MadeUp

from alexnet_jax.datasets import statistics
from alexnet_jax.runtime import files
from alexnet_jax.runtime.errors import InputError, Unavailable
from alexnet_jax.workdirs import identity, metrics, workdir
from configs import quickstart

LOG = logging.getLogger("alexnet_jax")
RESULT = {
    "data": "toy", "split": "test", "views": 10, "step": 5, "examples": 7, "loss": 0.5,
    "top1_error": 0.25, "top5_error": 0.125,
}  # fmt: skip
SHAPES = (4, 4, 3), (3,), (3,), (3, 3), (3, 3), (3,)
STATISTICS = {name: np.full(shape, 2.0) for name, shape in zip(statistics.ARRAYS, SHAPES, strict=True)}

SPLIT = {"classes": ["cat", "dog"], "examples": 2, "fingerprint": "1f"}
OF_RUN = {"run": "2f", "train": SPLIT, "val": SPLIT, "origin": {"kind": "drawn"}}


@pytest.fixture
def source(monkeypatch):
    """A training split; `computed` counts how often its statistics were asked for."""
    source = MadeUp(np.zeros((2, 4, 4, 3), np.uint8), label_names=["cat", "dog"])
    source.computed = 0

    def of_source(asked):
        asked.computed += 1
        return STATISTICS

    monkeypatch.setattr(statistics, "of_source", of_source)
    return source


def test_a_result_is_read_as_it_was_written(tmp_path):
    workdir.write_result(RESULT, str(tmp_path))
    assert workdir.read_result(str(tmp_path)) == RESULT
    assert os.listdir(tmp_path) == ["eval.json"]


@pytest.mark.parametrize("missing", sorted(workdir.RESULT_FIELDS | {"step"}))
def test_a_result_that_lacks_a_field_is_none(tmp_path, missing):
    lacking = {name: value for name, value in RESULT.items() if name != missing}
    (tmp_path / "eval.json").write_text(json.dumps(lacking))
    assert workdir.read_result(str(tmp_path)) == {}


@pytest.mark.parametrize(
    "text",
    [
        None, "", "[]", '{"split": ', "[" * 100_000,
        *(json.dumps(RESULT | wrong) for wrong in (
            {"loss": None}, {"top1_error": "0.5"}, {"examples": [7]}, {"split": 3}, {"step": "5"},
            {"loss": float("nan")}, {"loss": 10**400}, {"views": True},
        )),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_read_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / "eval.json").write_text(text)
    assert workdir.read_result(str(tmp_path)) == {}


def test_statistics_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"statistics\.npz: missing or damaged"):
        workdir.read_statistics(str(tmp_path), quickstart.get_config())


def test_what_a_run_needs_is_written_once(tmp_path, source):
    config, folder = quickstart.get_config(), tmp_path / "a" / "run"
    config.data.update(image_size=4, crop_size=4, channels=3)
    for _ in range(2):
        with workdir.take(config, str(folder), source, OF_RUN):
            assert workdir.read_config(str(folder)) == config
            stored = workdir.read_statistics(str(folder), config)
        assert list(stored["label_names"]) == ["cat", "dog"] and set(STATISTICS) <= set(stored)
        assert source.computed == 1
    (folder / "statistics.npz").write_bytes(b"cut short")
    with workdir.take(config, str(folder), source, OF_RUN):
        assert source.computed == 2 and workdir.read_statistics(str(folder), config)


def test_config_json_stays_until_the_run_writes_it(tmp_path, source):
    """More epochs may be asked for; whether they can be trained is known only later."""
    config = quickstart.get_config()
    with workdir.take(config, str(tmp_path), source, OF_RUN):
        pass
    longer = quickstart.get_config()
    longer.num_epochs += 1
    with workdir.take(longer, str(tmp_path), source, OF_RUN):
        assert workdir.read_config(str(tmp_path)) == config


def test_the_log_is_written_within_the_block_alone(tmp_path, source):
    before = list(LOG.handlers)
    with workdir.take(quickstart.get_config(), str(tmp_path), source, OF_RUN):
        LOG.error("within")
    LOG.error("after")
    assert LOG.handlers == before
    (line,) = (tmp_path / "train.log").read_text().splitlines()
    assert line.endswith(" within")
    with pytest.raises(ValueError), workdir.take(quickstart.get_config(), str(tmp_path), source, OF_RUN):
        raise ValueError
    assert LOG.handlers == before


def test_one_training_at_a_time(tmp_path, source):
    config, before = quickstart.get_config(), list(LOG.handlers)
    with workdir.take(config, str(tmp_path), source, OF_RUN):
        handlers = list(LOG.handlers)
        with (
            pytest.raises(InputError, match="another process trains there"),
            workdir.take(config, str(tmp_path), source, OF_RUN),
        ):
            pass
        assert LOG.handlers == handlers
    assert LOG.handlers == before
    with workdir.take(config, str(tmp_path), source, OF_RUN):
        pass


def test_a_file_system_without_locks_is_told_of(tmp_path, source, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with workdir.take(quickstart.get_config(), str(tmp_path), source, OF_RUN):
        assert "has no locks" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, source):
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "run")
    with (
        pytest.raises(InputError, match="cannot be written .*; give another"),
        workdir.take(quickstart.get_config(), folder, source, OF_RUN),
    ):
        pass
    assert not pathlib.Path(folder).exists()


def test_a_process_that_does_not_find_what_process_0_wrote_says_so(tmp_path, source, monkeypatch):
    monkeypatch.setattr(workdir.processes, "on_process_0", lambda *_: None)  # as on another machine
    with (
        pytest.raises(InputError, match="give a folder that all processes share"),
        workdir.take(quickstart.get_config(), str(tmp_path), source, OF_RUN),
    ):
        pass


@pytest.mark.parametrize("text", ["[" * 5000, "{}" + " " * workdir.LARGEST_JSON, "[]", "\xff"])
def test_files_of_other_lengths_and_depths_are_one_line(tmp_path, text):
    for name in ("config.json", "eval.json", "identity.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"config.json: is not a configuration") as raised:
        workdir.read_config(str(tmp_path))
    assert "\n" not in str(raised.value)
    assert workdir.read_result(str(tmp_path)) == {}
    if text != "{}" + " " * workdir.LARGEST_JSON:
        with pytest.raises(InputError, match=r"identity.json: cannot be read"):
            identity.read(str(tmp_path))


def test_a_result_whose_numbers_are_none_is_not_one(tmp_path):
    result = dict.fromkeys(workdir.RESULT_FIELDS, 1) | {"split": "val", "step": 1}
    workdir.write_result(result, str(tmp_path))
    assert workdir.read_result(str(tmp_path)) == result
    workdir.write_result(result | {"loss": "high"}, str(tmp_path))
    assert workdir.read_result(str(tmp_path)) == {}


def test_statistics_of_other_images_are_one_line(tmp_path):
    config = quickstart.get_config()
    for content, line in (
        (STATISTICS, "is for 4x4x3 images and 0 classes, but config.json for 28x28x1 and 10"),
        (STATISTICS | {"label_names": np.array(["a", "b"])}, "is for 4x4x3 images and 2 classes"),
        (STATISTICS | {"mean_image": np.full((4, 4, 3), np.nan)}, "not finite"),
    ):
        statistics.save(tmp_path / "statistics.npz", content)
        if "not finite" in line or "2 classes" in line:
            config.data.update(image_size=4, crop_size=4, channels=3)
            config.model.num_classes = 1
        with pytest.raises(InputError, match=rf"statistics\.npz: .*{line}") as told:
            workdir.read_statistics(str(tmp_path), config)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", '"x"', "\0"])
def test_a_configuration_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: is not a configuration") as told:
        workdir.read_config(str(tmp_path))
    assert "\n" not in str(told.value)


FAILING = (
    ("config.json", workdir.read_config), ("eval.json", workdir.read_result),
    ("identity.json", identity.read), ("metrics.jsonl", metrics.read_rows),
    ("statistics.npz", lambda folder: workdir.read_statistics(folder, quickstart.get_config())),
)  # fmt: skip


@pytest.mark.parametrize("name, read", FAILING, ids=[name for name, _ in FAILING])
def test_a_file_that_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, name, read):
    """Reading /proc/self/mem fails with EIO, as a network file system may for a while."""
    monkeypatch.setattr(files, "WAITS", (0.0, 0.0))
    (tmp_path / name).symlink_to("/proc/self/mem")
    with pytest.raises(Unavailable, match=rf"{name}: cannot be read now \(Input/output error\); try again"):
        read(str(tmp_path))
    assert os.listdir(tmp_path) == [name]


def test_a_line_of_the_log_that_cannot_be_written_names_the_file(tmp_path, source):
    config = quickstart.get_config()
    with workdir.take(config, str(tmp_path), source, OF_RUN):
        (handler,) = [h for h in LOG.handlers if isinstance(h, logging.FileHandler)]
        handler.setStream(open("/dev/full", "w")).close()  # noqa: SIM115
        with pytest.raises(OSError, match="No space left on device") as told:
            LOG.error("a line")
        assert told.value.filename == str(tmp_path / "train.log")
        LOG.error("nobody hears the next")


def test_a_full_disk_at_the_start_is_one_line_and_not_the_users_mistake(tmp_path, source, monkeypatch):
    def full(path, arrays):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(statistics, "save", full)
    line = (
        r"statistics.npz: cannot be written \(No space left on device\); make room; the same command resumes"
    )
    with (
        pytest.raises(Unavailable, match=line),
        workdir.take(quickstart.get_config(), str(tmp_path), source, OF_RUN),
    ):
        pass
