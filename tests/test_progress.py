"""alexnet_jax/runtime/progress.py: long passes, in order, and how far they are."""

import pytest

from alexnet_jax.runtime import progress


def test_results_come_in_order_and_few_are_taken_ahead():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    for got, result in enumerate(progress.in_order(lambda item: item * 2, items(), 3)):
        assert result == 2 * got and len(taken) <= got + 8
    with pytest.raises(ZeroDivisionError):
        list(progress.in_order(lambda item: 1 // (item - 5), range(100), 3))


def test_progress_tells_the_time_left(caplog):
    with caplog.at_level("INFO", "alexnet_jax"):
        progress.Progress("copy", 1000, every=0)(500)
    (line,) = caplog.messages
    assert line.startswith("copy: 500 of 1,000 images") and line.endswith("s left")
