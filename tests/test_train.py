"""alexnet_jax/train.py: what follows each step, at the first, the last and those that complete an epoch."""

import json
import logging
import os
import signal
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import folders
from helpers.runs import rows

from alexnet_jax import optimizer, step, train
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.workdirs.checkpoint import Checkpoints
from configs import quickstart


def config_of(num_epochs, batch_size, every_steps=0):
    config = quickstart.get_config()
    config.num_epochs, config.batch_size, config.checkpoint.every_steps = num_epochs, batch_size, every_steps
    return config


@pytest.mark.parametrize(
    "examples, batch_size, num_epochs, validations, last",
    [
        (100, 10, 2, [10, 20], 20),
        (100, 30, 3, [4, 7, 10], 10),  # batches run on across epochs
        (100, 100, 2, [1, 2], 2),
        (100, 250, 3, [1, 2], 2),  # several epochs in a step
        (101, 10, 1, [11], 11),
    ],
)
def test_every_step_that_completes_an_epoch_is_validated(examples, batch_size, num_epochs, validations, last):
    config = config_of(num_epochs, batch_size)
    assert train.last_step(config, examples) == last
    due = {step: train.due(config, examples, step) for step in range(1, last + 1)}
    assert [step for step, what in due.items() if what == "validate"] == validations
    assert due[last] == "validate" and set(due.values()) <= {"validate", ""}
    assert train.epochs(config, examples, last) >= num_epochs > train.epochs(config, examples, last - 1)


def test_checkpoints_are_saved_between_validations():
    config = config_of(2, 10, every_steps=4)
    due = {step: train.due(config, 100, step) for step in range(1, 21)}
    assert [step for step, what in due.items() if what == "save"] == [4, 8, 12, 16]
    assert [step for step, what in due.items() if what == "validate"] == [10, 20]  # 20 is saved by it


def test_epochs_are_complete_at_their_last_step_and_not_before():
    config = config_of(3, 30)
    assert [train.epochs(config, 100, step) for step in (0, 3, 4, 6, 7, 9, 10)] == [0, 0, 1, 1, 2, 2, 3]


def test_a_compiled_step_keeps_what_rounding_takes_from_the_sums():
    config = folders.config_of("", 3)
    mesh, tx = make_mesh(config), optimizer.make(config)
    shapes = step.abstract_state(config, mesh, tx)
    state = step.init_state(config, mesh, tx).replace(loss_sum=np.float32(2**24), error_sum=np.float32(2**24))
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, shapes))
    images, labels = np.full((8, 28, 28, 1), 9, np.uint8), np.arange(8, dtype=np.int32) % 3
    arrays = np.zeros((28, 28, 1)), np.eye(1), np.ones(1)
    names = "mean_image", "eigenvectors", "standard_deviations"
    statistics = {name: array.astype(np.float32) for name, array in zip(names, arrays, strict=True)}
    state, loss = step.make_train_step(config, mesh, tx)(state, images, labels, statistics)
    assert 0.5 < float(loss) < 2 and float(loss) % 1  # one unit in the last place of the sum is 2
    assert step.training_means(state)[0] == pytest.approx(2**24 + float(loss), abs=1e-6)
    zero = state.replace(loss_count=np.int32(0), **dict.fromkeys(("loss_sum", "error_sum"), np.float32(0)))
    assert step.training_means(zero.replace(low_sums=np.zeros(2))) == (0, 0)


def test_an_epoch_starts_with_sums_of_zero():
    config = folders.config_of("", 3)
    mesh, sums = make_mesh(config), ("loss_sum", "error_sum", "loss_count", "low_sums")
    state = step.init_state(config, mesh, optimizer.make(config))
    state = state.replace(**{name: getattr(state, name) + 1 for name in sums})
    run = types.SimpleNamespace(config=config, mesh=mesh, train_source=range(8))
    after = train.Run.after_validation(run, state, 0.5)
    assert [np.any(getattr(after, name)) for name in sums] == [False] * 4


class Killed(BaseException):
    """The process is gone."""


def killed(*_, **__):
    raise Killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(configuration of two epochs of three steps whose validation has three batches, workdir of its run)"""
    folder = folders.make(tmp_path_factory.mktemp("data"), ["ant", "bee", "cow"])
    changes = {"num_epochs": 2, "eval.batch_size": 4, "optimizer.plateau.patience": 1, "checkpoint.keep": 9}
    config = folders.config_of(folder, 3, **changes)
    config.optimizer.learning_rate = 1e-9  # no better, so that the rate drops
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    train.train(config.copy_and_resolve_references(), str(workdir))
    assert [row["step"] for row in rows(workdir)] == [3, 6]
    return config, workdir


def state_at(workdir, step):
    folder = (workdir / "checkpoints" / str(step)).resolve()
    items = (ocp.StandardCheckpointer().restore(folder / item) for item in ("params", "rest"))
    return jax.tree.map(np.asarray, list(items))


def same_end(one, other):
    for number in (3, 6):
        states = [jax.tree.leaves(state_at(workdir, number)) for workdir in (one, other)]
        for x, y in zip(*states, strict=True):
            np.testing.assert_array_equal(x, y)
    assert rows(one) == rows(other)
    read = [json.loads((workdir / "eval.json").read_text()) for workdir in (one, other)]
    assert read[0] == read[1]


def in_batch(number, do):
    """A replacement of make_eval_step: `do` is called with batch `number` of each validation."""
    make, batches = train.make_eval_step, []

    def replaced(*args, **kwargs):
        evaluated = make(*args, **kwargs)

        def run(*batch):
            batches.append(batch)
            if len(batches) == number:
                do()
            return evaluated(*batch)

        return run

    return replaced, batches


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("moment", ["in the validation", "before the error is kept", "after it"])
def test_a_kill_in_or_after_a_validation_loses_no_step(undisturbed, tmp_path, monkeypatch, moment, epoch):
    config, whole = undisturbed
    config, workdir = config.copy_and_resolve_references(), tmp_path / "run"
    with monkeypatch.context() as patch:
        owner, name, function = {
            "in the validation": (train, "make_eval_step", in_batch(3 * epoch - 1, killed)[0]),
            "before the error is kept": (Checkpoints, "rate", None),
            "after it": (train.Run, "after_validation", None),
        }[moment]
        before, calls = getattr(owner, name), []

        def at_the_epoch(*args):
            calls.append(args)
            return killed() if len(calls) == epoch else before(*args)

        patch.setattr(owner, name, function or at_the_epoch)
        with pytest.raises(Killed):
            train.train(config, str(workdir))
    assert (workdir / "checkpoints" / str(3 * epoch)).is_dir()
    train_step, steps = train.make_train_step, []

    def counted(*args):
        step = train_step(*args)
        return lambda *batch: steps.append(batch) or step(*batch)

    monkeypatch.setattr(train, "make_train_step", counted)
    train.train(config, str(workdir))
    assert len(steps) == 6 - 3 * epoch
    same_end(whole, workdir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_validation_is_interrupted_by_a_signal_and_made_on_resuming(
    undisturbed, tmp_path, monkeypatch, caplog, number
):
    config, whole = undisturbed
    config, workdir = config.copy_and_resolve_references(), tmp_path / "run"
    caplog.set_level(logging.INFO, "alexnet_jax")
    with monkeypatch.context() as patch:
        replaced, batches = in_batch(1, lambda: os.kill(os.getpid(), number))
        patch.setattr(train, "make_eval_step", replaced)
        with pytest.raises(SystemExit) as ended:
            train.train(config, str(workdir))
    assert ended.value.code == 128 + number and len(batches) == 1
    assert caplog.messages[-1] == f"stopped by {number.name}; step 3 is saved, the same command resumes"
    assert not (workdir / "metrics.jsonl").exists()
    train.train(config, str(workdir))
    assert rows(workdir)[0]["step"] == 3
    same_end(whole, workdir)


def test_a_run_with_batch_normalisation_and_lars_resumes_bit_for_bit(undisturbed, tmp_path, monkeypatch):
    config = undisturbed[0].copy_and_resolve_references()
    config.model.layers.conv1.then = ("batch_norm", "activation", "pool")
    config.optimizer.update(
        name="lars", schedule="polynomial", warmup_epochs=0.5, learning_rate=1.0, bias_rate=0.01
    )
    train.train(config.copy_and_resolve_references(), str(tmp_path / "whole"))
    # Three steps an epoch, two epochs; the rate is that of the last of an epoch's steps.
    assert [row["learning_rate"] for row in rows(tmp_path / "whole")] == pytest.approx([(4 / 6) ** 2, 1 / 36])
    averages = state_at(tmp_path / "whole", 6)[0]["conv1"]["mean"]
    assert (averages != state_at(tmp_path / "whole", 3)[0]["conv1"]["mean"]).all()
    with monkeypatch.context() as patch:
        patch.setattr(train, "make_eval_step", in_batch(2, killed)[0])
        with pytest.raises(Killed):
            train.train(config.copy_and_resolve_references(), str(tmp_path / "run"))
    train.train(config, str(tmp_path / "run"))
    same_end(tmp_path / "whole", tmp_path / "run")
