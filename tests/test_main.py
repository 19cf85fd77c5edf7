"""The whole program, as its user runs it: modes, resuming, kills, bad input."""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import programs, runs
from helpers.arrays import assert_same_trees
from helpers.runs import rows

from alexnet_jax import main, train
from alexnet_jax.runtime.errors import InputError
from configs import quickstart

ROOT = pathlib.Path(__file__).parent.parent
# 32 steps an epoch, two epochs; a checkpoint every five steps.
SMALL = (
    *runs.SMALL,
    "--config.data.train_split=train[:2048]",
    "--config.checkpoint.every_steps=5",
)
LAST_STEP = 64


def run(*flags, code=0):
    """stdout and stderr of the finished program."""
    return programs.run("-m", "alexnet_jax.main", *flags, code=code)


@contextlib.contextmanager
def started(*flags):
    """The program, running; what it prints is dropped."""
    with open(os.devnull, "w") as nowhere:
        program = programs.start("-m", "alexnet_jax.main", *flags, stdout=nowhere, stderr=nowhere)
    try:
        yield program
    finally:
        program.kill()
        program.wait()


def small(data_dir, workdir):
    return *SMALL, f"--config.data.dir={data_dir}", f"--workdir={workdir}"


def params_at(workdir, step):
    folder = pathlib.Path(workdir) / "checkpoints" / str(step) / "params"
    return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(folder.resolve()))


def same_end(one, other):
    a, b = params_at(one, LAST_STEP), params_at(other, LAST_STEP)
    assert_same_trees(a, b)
    assert rows(one) == rows(other)
    read = [json.loads((pathlib.Path(workdir) / "eval.json").read_text()) for workdir in (one, other)]
    assert read[0] == read[1]


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """(the workdir of a run that nobody disturbed, what it printed)."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    return workdir, run(*small(data_dir, workdir))


@pytest.mark.program
def test_nothing_is_compiled_after_the_first_epoch(data_dir, tmp_path, monkeypatch):
    compiled, after_epoch = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    validate = train.Run.validate

    def counting(*args):
        validated = validate(*args)
        after_epoch.append(len(compiled))
        return validated

    monkeypatch.setattr(train.Run, "validate", counting)
    config = quickstart.get_config()
    config.data.dir, config.data.train_split = data_dir, "train[:640]"
    config.data.val_split, config.data.test_split = "train[59500:]", "test[:250]"
    config.num_epochs, config.checkpoint.every_steps, config.batch_size = 4, 3, 64
    config.model.width = 0.25
    for layer in ("conv3", "conv4", "conv5", "fc6"):
        config.model.layers[layer].enabled = False
    config.optimizer.learning_rate, config.eval.views = 1e-9, 1  # no better, so that the rate drops
    jax.config.update("jax_disable_most_optimizations", True)  # in half the time
    try:
        train.train(config, str(tmp_path / "run"))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert len(rows(tmp_path / "run")) == 4
    assert rows(tmp_path / "run")[-1]["learning_rate"] < 1e-9
    assert after_epoch[0] > 0
    assert after_epoch[1:] == after_epoch[:1] * 3


@pytest.mark.program
def test_a_second_start_finds_what_the_first_one_compiled(data_dir, tmp_path, monkeypatch):
    # In a folder of its own, whose path is part of what JAX finds programs by.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")  # a user's programs
    found = []
    for start in ("first", "second"):
        run(*small(data_dir, tmp_path / start), "--config.num_epochs=1")
        found.append({path.name for path in (tmp_path / "kept").glob("*-cache")})
    assert any(name.startswith("jit_step") for name in found[0])
    assert found[1] == found[0]


@pytest.mark.program
def test_programs_are_kept_in_the_users_cache(tmp_path):
    code = "import jax; from alexnet_jax.runtime.mesh import make_mesh; from configs import quickstart; "
    code += "make_mesh(quickstart.get_config()); print(jax.config.jax_compilation_cache_dir)"

    def folder(home):
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        environment["XDG_CACHE_HOME"] = str(home)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert not done.stderr
        return done.stdout.strip()

    assert pathlib.Path(folder(tmp_path)).parent == tmp_path / "alexnet_jax"
    (tmp_path / "file").touch()
    assert folder(tmp_path / "file") == "None"  # nothing can be kept there


def test_a_run_leaves_what_the_contract_lists(finished):
    workdir, printed = finished
    assert "validation top-1 error" in printed
    metrics = rows(workdir)
    assert [(row["step"], row["epoch"]) for row in metrics] == [(32, 1), (LAST_STEP, 2)]
    wanted = {
        "learning_rate", "train_loss", "train_top1_error", "val_loss", "val_top1_error", "val_top5_error",
    }  # fmt: skip
    assert all(wanted <= row.keys() and np.isfinite([row[name] for name in wanted]).all() for row in metrics)
    evaluation = json.loads((workdir / "eval.json").read_text())
    assert evaluation["examples"] == 199 and evaluation["split"] == "test[:199]"
    assert evaluation["views"] == 10 and 0 <= evaluation["top5_error"] <= evaluation["top1_error"] < 0.8
    config = json.loads((workdir / "config.json").read_text())
    assert config["batch_size"] == 64 and config["data"]["train_split"] == "train[:2048]"
    with np.load(workdir / "statistics.npz") as statistics:
        assert statistics["mean_image"].shape == (28, 28, 1) and "Sneaker" in statistics["label_names"]
    assert list(workdir.glob("events.out.tfevents.*")) and (workdir / "train.log").stat().st_size


@pytest.mark.program
def test_the_same_command_again_says_that_the_run_is_finished(finished, data_dir):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != "train.log"}
    assert "is finished" in run(*small(data_dir, workdir))
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != "train.log"}
    assert {p: t for p, t in before.items() if p.is_file()} == {p: t for p, t in after.items() if p.is_file()}


@pytest.mark.program
def test_evaluation_needs_only_the_workdir_and_gives_the_same_figures(finished):
    workdir, _ = finished
    of_the_run = json.loads((workdir / "eval.json").read_text())
    run("--mode=eval", f"--workdir={workdir}")
    assert json.loads((workdir / "eval.json").read_text()) == of_the_run
    run(
        "--mode=eval", "--config=configs/quickstart.py", f"--workdir={workdir}", "--config.eval.views=1",
        "--config.mesh.column=1", "--config.eval.batch_size=50", "--config.eval.step=60",
    )  # fmt: skip
    other = json.loads((workdir / "eval.json").read_text())
    assert (other["views"], other["step"], other["examples"]) == (1, 60, 199)
    run("--mode=eval", f"--workdir={workdir}", "--config.data.test_split=train[-50:]")
    other = json.loads((workdir / "eval.json").read_text())
    assert (other["split"], other["examples"]) == ("train[-50:]", 50)
    run("--mode=eval", f"--workdir={workdir}")


@pytest.mark.program
def test_one_device_gives_the_same_run_to_the_bit(finished, data_dir, tmp_path):
    workdir, _ = finished
    run(*small(data_dir, tmp_path / "one"), "--config.mesh.column=1")
    same_end(workdir, tmp_path / "one")  # rounding alone would grow to per cents within an epoch


def wait_for(condition, process, seconds=180):
    """Polls until condition() holds or the process has ended."""
    end = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.program
def test_sigkill_at_any_moment_changes_nothing(finished, data_dir, tmp_path):
    undisturbed, _ = finished
    workdir, checkpoints = tmp_path / "killed", tmp_path / "killed" / "checkpoints"
    seed = random.randrange(2**32)
    print("random moments from seed", seed)
    moments = random.Random(seed)

    def steps():
        return {int(p.name) for p in checkpoints.glob("*") if p.name.isdigit()}

    def being_written():
        return any(not p.name.isdigit() for p in checkpoints.glob("*"))

    first = moments.randrange(5, 30, 5)
    for condition in (
        lambda: workdir.exists(),  # while it starts
        being_written,  # in the first checkpoint
        lambda: max(steps(), default=0) >= first,
        lambda: (workdir / "metrics.jsonl").exists(),  # between a validation and its checkpoint
        lambda: max(steps(), default=0) >= 45,
    ):
        with started(*small(data_dir, workdir)) as process:
            wait_for(condition, process)
            time.sleep(moments.random() * 0.2)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    printed = run(*small(data_dir, workdir))
    assert "resuming" in printed
    same_end(undisturbed, workdir)


@pytest.mark.program
def test_sigterm_saves_and_the_same_command_goes_on(finished, data_dir, tmp_path):
    undisturbed, _ = finished
    workdir = tmp_path / "stopped"
    flags = small(data_dir, workdir) + ("--config.checkpoint.every_steps=0",)
    command = [sys.executable, "-m", "alexnet_jax.main", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), process)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "is saved" in printed
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert 32 <= saved < LAST_STEP and f"step {saved} is saved" in printed
    assert f"steps {saved + 1} to" in run(*flags)
    same_end(undisturbed, workdir)


@pytest.mark.program
def test_a_checkpoint_cut_short_is_skipped_and_more_epochs_go_on(finished, data_dir, tmp_path):
    undisturbed, _ = finished
    workdir = tmp_path / "grown"
    run(*small(data_dir, workdir), "--config.num_epochs=1")
    for path in (workdir / "checkpoints" / "32").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    printed = run(*small(data_dir, workdir))
    assert "checkpoints/32 cannot be read" in printed and "steps 31 to" in printed
    same_end(undisturbed, workdir)


@pytest.mark.program
def test_what_the_released_code_does_by_epoch_goes_on_after_a_stop(data_dir, tmp_path):
    """Rates, conv1's end, and the end of the noise: in one go, and stopped at the epoch that changes them."""
    fields = (
        "optimizer.drop_epochs=(1,)", "optimizer.conv1_drop_epoch=0", "optimizer.conv1_freeze_epoch=1",
        "optimizer.bias_rate_drops=False", "augment.pca_epochs=1", "augment.crop_group=32",
        "augment.mean_crop=centre", "data.reshuffle=False", "checkpoint.keep=20",
    )  # fmt: skip
    one, other = tmp_path / "one", tmp_path / "other"
    flags = [f"--config.{field}" for field in fields]
    printed = run(*small(data_dir, one), *flags)
    assert "drop_epochs says: learning rate 0.002" in printed and "stopped improving" not in printed
    assert [row["learning_rate"] for row in rows(one)] == pytest.approx([0.02, 0.002])
    run(*small(data_dir, other), *flags, "--config.num_epochs=1")
    run(*small(data_dir, other), *flags)
    same_end(one, other)
    before, after = (params_at(one, step) for step in (32, LAST_STEP))
    for layer in before:
        for kind in ("kernel", "bias"):
            assert np.array_equal(before[layer][kind], after[layer][kind]) == (layer == "conv1")


@pytest.mark.program
def test_a_run_may_start_from_the_layers_of_another(finished, data_dir, tmp_path):
    """Its classifier is drawn anew; where no update follows, the layers taken are the other run's best."""
    source, _ = finished
    step = json.loads((source / "eval.json").read_text())["step"]
    taken, workdir = ("conv1", "conv2", "fc7"), tmp_path / "tuned"
    flags = *small(data_dir, workdir), f"--config.init_from={source}", f"--config.init_layers={taken}"
    still = "--config.num_epochs=1", "--config.optimizer.learning_rate=1e-30"
    printed = run(*flags, *still)
    assert f"starting from step {step} of {source}: conv1, conv2, fc7" in printed
    got, theirs = params_at(workdir, 32), params_at(source, step)
    for layer in got:
        same = np.array_equal(got[layer]["kernel"], theirs[layer]["kernel"])
        assert same == (layer in taken), layer


@pytest.mark.program
def test_layers_that_cannot_be_taken_are_named(finished, data_dir, tmp_path):
    source, _ = finished
    for flags, words in (
        ([f"--config.init_from={tmp_path}/nowhere"], f"init_from: {tmp_path}/nowhere has no config.json"),
        (["--config.init_layers=('conv9',)"], "init_layers: 'conv9'"),
        (["--config.init_layers=('fc7',)", "--config.model.layers.fc7.features=256"], "init_layers: fc7 is"),
    ):
        printed = run(*small(data_dir, tmp_path / "w"), f"--config.init_from={source}", *flags, code=2)
        assert words in printed and len(printed.splitlines()) == 1
        assert not (tmp_path / "w").exists()


@pytest.mark.program
def test_a_workdir_takes_one_training_at_a_time(data_dir, tmp_path):
    flags = small(data_dir, tmp_path / "busy")
    with started(*flags) as first:
        wait_for(lambda: (tmp_path / "busy" / "checkpoints").exists(), first)
        (line,) = run(*flags, code=2).splitlines()
    assert "busy" in line and "another process" in line


@pytest.mark.program
def test_a_loss_that_is_not_finite_stops_the_run(data_dir, tmp_path):
    flags = *small(data_dir, tmp_path / "nan"), "--config.optimizer.learning_rate=1e30"
    printed = run(*flags, code=1)
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    assert "step " in line and "checkpoint" in line and "optimizer.learning_rate" in line


@pytest.mark.program
def test_describe_prints_the_table_and_trains_nothing(tmp_path):
    printed = run("--config=configs/paper.py", "--mode=describe", f"--workdir={tmp_path / 'x'}")
    assert printed.splitlines()[-1] == "total: 60,965,224 parameters, 724,406,816 multiply-adds"
    printed = run("--config=configs/paper.py", "--mode=describe", "--config.model.columns=1")
    assert printed.splitlines()[-1].startswith("total: 62,378,344 parameters, ")
    assert not (tmp_path / "x").exists()


@pytest.mark.program
def test_prepare_builds_the_data_set(data_dir):
    printed = run("--config=configs/quickstart.py", "--mode=prepare", f"--config.data.dir={data_dir}")
    assert "is prepared in" in printed
    assert list(pathlib.Path(data_dir).rglob("statistics-*.npz"))


QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), ("--config: missing", "configs/quickstart.py")),
        (("--config=configs/nope.py",), ("configs/nope.py", "paper.py")),
        (("--config=README.md",), ("README.md",)),
        (("--config=configs/paper.py:2011",), ("2011", "2010 or 2012")),
        ((QUICKSTART + ":x",), ("quickstart.py:x",)),
        ((QUICKSTART, "--flagfile=nowhere"), ("--flagfile: there is no such flag",)),
        ((QUICKSTART, "--mode=fly"), ("--mode: expected one of train, eval, prepare, describe, got 'fly'",)),
        ((QUICKSTART, "--modee=eval"), ("--modee", "did you mean --mode?")),
        (
            (QUICKSTART, "--processes=none"),
            ("--processes: expected a whole number of at least 1, got 'none'",),
        ),
        ((QUICKSTART, "train"), ("unexpected argument 'train'; see --help",)),
        ((QUICKSTART, "--config.model.widht=2"), ("model.widht", "did you mean model.width?")),
        ((QUICKSTART, "--config.model.layers.conv9.kernel=3"), ("conv9.kernel", "in configs/quickstart.py")),
        ((QUICKSTART, "--config.model.layers.conv1=3"), ("model.layers.conv1",)),
        ((QUICKSTART, "--config.model.width=abc"), ("model.width", "'abc'", "number")),
        ((QUICKSTART, "--config.model.lrn.enabled=maybe"), ("model.lrn.enabled", "'maybe'", "True")),
        ((QUICKSTART, "--config.model.dropout_rate=1.5"), ("model.dropout_rate", "1.5")),
        (
            (QUICKSTART, "--config.optimizer.learning_rate=-1"),
            ("optimizer.learning_rate: expected a number above 0, got -1.0",),
        ),
        ((QUICKSTART, "--config.model.activation=gelu"), ("model.activation", "'gelu'", "relu, tanh")),
        (
            (QUICKSTART, "--config.model.width=0.3"),
            ("model.layers.conv1.features", "7 features", "multiple of 2"),
        ),
        ((QUICKSTART, "--config.batch_size=33", "--config.mesh.data=2"), ("batch_size", "33")),
        ((QUICKSTART, "--config.model.columns=1", "--config.mesh.column=2"), ("mesh.column", "2")),
        ((QUICKSTART, "--config.data.crop_size=6"), ("model.pool.size", "crop_size")),
        ((QUICKSTART, "--mode=eval", "--workdir={folder}/nowhere"), ("nowhere", "config.json")),
        (("--config.eval.views=1",), ("--config.eval.views: needs --config=", "missing")),
        (("--mode=eval", "--config.eval.views=1", "--workdir="), ("--config.eval.views: needs",)),
        (("--mode=eval", "--config.eval.views=1"), ("has no config.json",)),
    ],
)
def test_a_mistake_in_the_flags_is_named_and_writes_nothing(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    workdir = () if any(flag.startswith("--workdir") for flag in flags) else (f"--workdir={tmp_path / 'x'}",)
    with pytest.raises(InputError) as error:
        main.main([*(flag.format(folder=tmp_path) for flag in flags), *workdir])
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message
    assert not (tmp_path / "x").exists()


def test_bad_data_and_workdirs_are_named_and_nothing_is_written(finished, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    new = tmp_path / "new"
    for flags, words in (
        ((*small(data_dir, workdir), "--config.seed=1"), ("seed is 0 there, 1 here",)),
        ((*small(data_dir, workdir), "--config.num_epochs=1"), ("num_epochs",)),
        ((*small(data_dir, new), "--config.data.train_split=train[:0]"), ("data.train_split", "train[:0]")),
        ((*small(data_dir, new), "--config.data.name=fashion"), ("data.name", "fashion")),
        ((*small(data_dir, new), "--config.model.num_classes=9"), ("model.num_classes", "10")),
        ((*small(data_dir, ROOT / "Makefile"),), ("Makefile", "is a file")),
        (("--mode=eval", f"--workdir={workdir}", "--config=configs/paper.py"), ("belongs to another",)),
        (("--mode=eval", f"--workdir={workdir}", QUICKSTART, "--config.eval.step=7"), ("eval.step", "7")),
        (("--mode=eval", f"--workdir={workdir}", QUICKSTART, "--config.model.width=2"), ("model.width",)),
        (("--mode=eval", f"--workdir={workdir}", "--config.model.width=2"), ("model.width",)),
        (("--mode=eval", f"--workdir={workdir}", "--config.eval.view=1"), ("did you mean eval.views?",)),
    ):
        with pytest.raises(InputError) as error:
            main.main(list(flags))
        message = str(error.value)
        assert all(word in message for word in words) and "\n" not in message, message
    assert not new.exists()
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
