"""alexnet_jax/workdirs/metrics.py: rows of metrics.jsonl, event files, the clock of the loop."""

import json
import pathlib
import subprocess
import sys

import pytest

from alexnet_jax.runtime import processes
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs import metrics

ROOT = pathlib.Path(__file__).parent.parent
FIELDS = {"num_epochs": 3, "batch_size": 50}


def row(step):
    """A validation; its values tell its step."""
    values = {name: step + number / 100 for number, name in enumerate(sorted(metrics.FIELDS))}
    return values | {"step": step, "epoch": step // 10}


def test_rows_are_read_as_they_were_appended(tmp_path):
    for step in (10, 20):
        metrics.append_row(str(tmp_path), row(step))
    assert metrics.read_rows(str(tmp_path)) == [row(10), row(20)]


@pytest.mark.parametrize("step, left", [(0, []), (19, [10]), (20, [10, 20]), (99, [10, 20, 30])])
def test_rows_after_a_step_are_dropped_with_what_was_cut_short(tmp_path, step, left):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row(step)) + "\n" for step in (10, 20, 30)) + '{"step": 4')
    metrics.drop_rows_after(str(tmp_path), step)
    assert path.read_text() == "".join(json.dumps(row(step)) + "\n" for step in left)


def test_a_run_without_rows_has_none_to_drop(tmp_path):
    metrics.drop_rows_after(str(tmp_path), 0)
    assert not list(tmp_path.iterdir())


def test_the_line_that_a_run_is_writing_is_not_read(tmp_path):
    metrics.append_row(str(tmp_path), row(10))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row(20))[:-5])
    assert metrics.read_rows(str(tmp_path)) == [row(10)]


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "has no validation yet"),
        ("", "has no validation yet"),
        ("{\n", "line 1 is not a validation"),
        (json.dumps(row(10)) + "\n[]\n", "line 2 is not a validation"),
        ('{"step": 1}\n', "line 1 is not a validation"),
    ],
)
def test_rows_that_cannot_be_read_are_one_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        metrics.read_rows(str(tmp_path))
    assert str(tmp_path / "metrics.jsonl") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.program
def test_reading_loads_neither_tensorflow_nor_clu():
    code = (
        "import sys; from alexnet_jax.workdirs import metrics; print({'tensorflow', 'clu'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class Time:
    """The time of day, which moves as a test says."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """(a clock of batches of 50, the time)"""
    time = Time()
    monkeypatch.setattr(metrics, "time", time)
    return metrics.Clock(50), time


def test_the_first_step_is_not_counted(clock):
    clock, time = clock
    time.now += 1000  # it compiles
    clock.tick(0.0)
    for _ in range(4):
        time.now += 2
        clock.tick(0.0)
    assert clock.images_per_second() == 25 and clock.input_wait() == 0
    clock.restart()
    time.now += 5
    assert clock.images_per_second() is None and clock.input_wait() is None
    clock.tick(0.0)
    assert clock.images_per_second() == 10


def test_waiting_for_batches_is_told_from_computing(clock):
    clock, time = clock

    def batches():
        for _ in range(4):
            time.now += 1
            yield

    for _ in clock.waiting_for(batches()):
        time.now += 3
        clock.tick(0.0)
    assert clock.input_wait() == pytest.approx(3 / 12)  # of the steps after the first


def test_a_report_is_due_every_ten_seconds(clock):
    clock, time = clock
    told = []
    for second in range(1, 31):
        time.now += 1
        if clock.report_is_due():
            told.append(second)
    assert told == [10, 20, 30]


def test_the_writer_goes_on_after_a_step(tmp_path, caplog):
    for step in (10, 20):
        metrics.append_row(str(tmp_path), row(step))
    with caplog.at_level("INFO", "alexnet_jax"):
        writer = metrics.Writer(str(tmp_path), 10, FIELDS)
        writer.write_row(row(30))
    assert metrics.read_rows(str(tmp_path)) == [row(10), row(30)]
    (message,) = caplog.messages
    assert message.startswith("epoch 3/3: validation top-1 error 30.")


def test_progress_tells_the_time_left(tmp_path, clock, caplog):
    clock, time = clock
    clock.tick(0.0)
    with caplog.at_level("INFO", "alexnet_jax"):
        writer = metrics.Writer(str(tmp_path), 0, FIELDS)
        time.now += 10
        writer.write_progress(1, 100, 0, 2.5, clock)
        assert not caplog.messages  # the speed is not known yet
        clock.tick(0.0)
        writer.write_progress(2, 100, 1, 2.5, clock)
    assert caplog.messages == ["epoch 2/3  step 2/100  loss 2.5000  5 images/s  0:16:20 left"]


def test_a_speed_is_not_made_up_before_a_step_is_counted(clock):
    clock, time = clock
    assert clock.images_per_second() is None  # a validation that a killed run left
    clock.tick(0.0)
    assert clock.images_per_second() is None and clock.input_wait() is None  # nor divided by no time
    time.now += 5
    assert clock.images_per_second() is None


def test_a_speed_that_was_not_measured_is_null(tmp_path):
    metrics.Writer(str(tmp_path), 0, FIELDS).write_row(row(10) | {"images_per_second": None})
    assert metrics.read_rows(str(tmp_path))[0]["images_per_second"] is None


@pytest.mark.parametrize("completed, shown", [(2, "epoch 2/3: "), (3, "epoch 3/3: "), (4, "epoch 4: ")])
def test_epochs_beyond_the_last_are_not_shown_as_part_of_it(tmp_path, clock, caplog, completed, shown):
    clock, time = clock
    for _ in range(2):
        time.now += 1
        clock.tick(0.0)
    with caplog.at_level("INFO", "alexnet_jax"):
        writer = metrics.Writer(str(tmp_path), 0, FIELDS)
        writer.write_row(row(10) | {"epoch": completed})
        writer.write_progress(100, 100, completed, 2.5, clock)
    assert caplog.messages[0].startswith(shown)
    assert caplog.messages[1].startswith("epoch 3/3  step 100/100 ")


def test_process_0_alone_writes(tmp_path, monkeypatch):
    metrics.append_row(str(tmp_path), row(10))
    monkeypatch.setattr(processes, "index", lambda: 1)
    metrics.Writer(str(tmp_path), 0, FIELDS).write_row(row(20))
    assert metrics.read_rows(str(tmp_path)) == [row(10)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "line", ["[" * 5000, "[]", json.dumps(row(20) | {"step": "x"}), json.dumps(row(20)) + " " * 70_000]
)
def test_a_line_that_is_no_validation_is_told_and_dropped_by_a_run_that_goes_on(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(10)) + f"\n{line}\n")
    with pytest.raises(InputError, match="line 2 is not a validation"):
        metrics.read_rows(str(tmp_path))
    metrics.drop_rows_after(str(tmp_path), 30)
    assert metrics.read_rows(str(tmp_path)) == [row(10)]


def test_rows_of_any_length_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_LARGEST", 1000)
    (tmp_path / "metrics.jsonl").write_text((json.dumps(row(10)) + "\n") * 9)
    for read in (lambda: metrics.read_rows(str(tmp_path)), lambda: metrics.drop_rows_after(str(tmp_path), 1)):
        with pytest.raises(InputError, match="cannot be read .more than 1,000 bytes"):
            read()
