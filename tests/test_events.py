"""alexnet_jax/workdirs/events.py, read back by TensorFlow, which checks each record's checksums."""

import pytest

from alexnet_jax.runtime import quiet_tensorflow
from alexnet_jax.workdirs.events import EventFile


def read(folder):
    """Return the events of each event file of a folder."""
    quiet_tensorflow.load("tests")
    import tensorflow as tf

    def parse(record):
        return tf.compat.v1.Event.FromString(record.numpy())

    return [
        [parse(record) for record in tf.data.TFRecordDataset(str(path))]
        for path in sorted(folder.glob("events.out.tfevents.*"))
    ]


def test_scalars_are_read_as_they_were_written(tmp_path):
    file = EventFile(tmp_path)
    file.write_scalars(10, {"val_loss": 0.5, "epoch": 2})
    file.write_scalars(20, {"val_loss": 0.25})
    ((version, first, second),) = read(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert {value.tag: value.simple_value for value in first.summary.value} == {"val_loss": 0.5, "epoch": 2}
    assert (first.step, second.step, second.summary.value[0].simple_value) == (10, 20, 0.25)
    assert first.wall_time > 1.7e9  # seconds since 1970


def test_hyperparameters_are_those_that_tensorboards_own_writer_makes(tmp_path):
    quiet_tensorflow.load("tests")
    from tensorboard.plugins.hparams import api, plugin_data_pb2

    fields = {"name": "alexnet", "batch_size": 128, "rate": 0.01, "on": True}
    EventFile(tmp_path).write_hparams(fields | {"sizes": (96, 256), "no": None})
    ((_, event),) = read(tmp_path)
    (ours,), (theirs,) = event.summary.value, api.hparams_pb(fields | {"sizes": "(96, 256)"}).value
    assert (ours.tag, ours.tensor.dtype) == (theirs.tag, theirs.tensor.dtype)
    got, wanted = (
        plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for value in (ours, theirs)
    )
    assert ours.metadata.plugin_data.plugin_name == theirs.metadata.plugin_data.plugin_name
    assert got.session_start_info.hparams == wanted.session_start_info.hparams
    assert got.version == wanted.version


def test_each_start_of_a_run_has_a_file(tmp_path):
    for step in (1, 2):
        EventFile(tmp_path).write_scalars(step, {"val_loss": 1.0})
    assert [[event.step for event in events] for events in read(tmp_path)] == [[0, 1], [0, 2]]


def test_what_was_written_is_there_before_the_end(tmp_path):
    """A killed run loses no event: nothing is kept for later."""
    file = EventFile(tmp_path)
    for step in range(3):
        file.write_scalars(step, {"val_loss": 1.0})
        assert len(read(tmp_path)[0]) == 2 + step


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as told:
        EventFile(tmp_path / "missing")
    assert "missing/events.out.tfevents." in told.value.filename
