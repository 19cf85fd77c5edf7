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
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs import identity, workdir
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


@pytest.mark.parametrize("text", [None, "", "[]", '{"split": '])
def test_a_result_that_cannot_be_read_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / "eval.json").write_text(text)
    assert workdir.read_result(str(tmp_path)) == {}


def test_statistics_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"statistics\.npz: missing or damaged"):
        workdir.read_statistics(str(tmp_path))


def test_what_a_run_needs_is_written_once(tmp_path, source):
    config, folder = quickstart.get_config(), tmp_path / "a" / "run"
    for _ in range(2):
        with workdir.take(config, str(folder), source, OF_RUN):
            assert workdir.read_config(str(folder)) == config
            stored = workdir.read_statistics(str(folder))
        assert list(stored["label_names"]) == ["cat", "dog"] and set(STATISTICS) <= set(stored)
        assert source.computed == 1
    (folder / "statistics.npz").write_bytes(b"cut short")
    with workdir.take(config, str(folder), source, OF_RUN):
        assert source.computed == 2 and workdir.read_statistics(str(folder))


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
        pytest.raises(InputError, match="give a folder that all share"),
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
