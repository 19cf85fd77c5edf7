"""alexnet_jax/train.py: what follows each step, at the first, the last and those that complete an epoch."""

import pytest

from alexnet_jax import train
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
