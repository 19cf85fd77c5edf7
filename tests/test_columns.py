"""experiments/columns.py: how coloured kernels are, and what chance gives."""

import numpy as np
import pytest

from alexnet_jax.runtime.errors import InputError
from experiments import columns


def grey(draw, maps, size=5):
    return np.repeat(draw.normal(size=(size, size, 1, maps)), 3, axis=2)


def opponent(draw, maps, size=5):
    return draw.normal(size=(size, size, 1, maps)) * np.array([1.0, -2.0, 1.0])[:, None]


def test_colorfulness_is_the_energy_that_is_not_grey():
    draw = np.random.default_rng(0)
    assert columns.colorfulness(grey(draw, 7)) == pytest.approx(0, abs=1e-12)
    assert columns.colorfulness(opponent(draw, 7)) == pytest.approx(1)
    assert columns.colorfulness(draw.normal(size=(11, 11, 3, 2000))) == pytest.approx(2 / 3, abs=0.01)
    # One channel alone, r, is a third grey: (1, 1, 1) / 3 and the rest.
    assert columns.colorfulness(draw.normal(size=(5, 5, 1, 2)) * [[1.0], [0], [0]]) == pytest.approx(2 / 3)
    # Grey and colour of energies 3 and 6; a kernel of no energy changes nothing.
    kernels = np.stack([[1.0, 1, 1], [1.0, -2, 1], [0, 0, 0]], axis=1)[None, None]
    assert columns.colorfulness(kernels) == pytest.approx(6 / 9)


def test_shuffled_kernels_differ_as_all_deals_do():
    """Two grey kernels and two coloured ones, of one energy: 2 of 6 deals part them."""
    kernels = np.array([[[1.0, 1, 1], [1, 1, 1]], [[1, -1, 0], [0, 1, -1]]])  # [columns, maps, channels]
    kernels[1] *= 1.5**0.5
    parted = np.moveaxis(kernels, 1, 2)[:, None, None]
    by_chance = columns.differences_by_chance(parted, np.random.default_rng(0))
    np.testing.assert_allclose(np.unique(by_chance.round(9)), [0, 1], rtol=1e-7, atol=1e-8)
    assert by_chance.mean() == pytest.approx(1 / 3, abs=0.02)
    assert columns.p_value(1.0, by_chance) == pytest.approx(1 / 3, abs=0.02)
    assert columns.p_value(0.0, by_chance) == 1


def test_specialised_columns_are_told_from_chance():
    draw = np.random.default_rng(1)
    coloured = np.stack([grey(draw, 20), opponent(draw, 20)])
    assert columns.p_value(1.0, columns.differences_by_chance(coloured, draw)) < 0.001
    ps = []
    for _ in range(20):
        alike = draw.normal(size=(2, 5, 5, 3, 20))
        first, second = map(columns.colorfulness, alike)
        ps.append(columns.p_value(abs(first - second), columns.differences_by_chance(alike, draw)))
    assert min(ps) > 0.001 and 0.2 < np.mean(ps) < 0.8


def test_numbers_of_every_network_and_of_all(monkeypatch, capsys):
    draw = np.random.default_rng(2)
    networks = {
        "a": np.stack([grey(draw, 20), opponent(draw, 20)]),
        "b": np.stack([opponent(draw, 20), grey(draw, 20)]),
        "one": grey(draw, 20)[None],
    }
    monkeypatch.setattr(columns, "conv1", lambda workdir, overrides: (7, networks[workdir]))
    columns.main(["a", "b", "one"])
    a, b, one, both = capsys.readouterr().out.splitlines()
    colour = (
        "colour is column 0 0.0%, column 1 100.0% of conv1's energy; difference -100.0 points, by chance "
    )
    assert a.startswith(f"a, step 7: {colour}") and a.endswith("(p = 0.0001)")
    assert "difference +100.0 points" in b
    assert one == "one, step 7: colour is column 0 0.0% of conv1's energy"
    assert both.startswith("2 networks: absolute difference 100.0 ± 0.0 points, by chance ")
    assert both.endswith("(p = 0.0001)")


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), "DIR"),
        (("{folder}/nowhere",), "nowhere: has no config.json"),
        (("{grey}",), "seed-0: its images have 1 channel"),
        (("{grey}", "--config.eval.step=5000"), "eval.step: 5000 is not in"),
    ],
)
def test_bad_input_is_named(flags, words, swept, tmp_path):
    places = {"grey": swept[0] / "tanh" / "seed-0", "folder": tmp_path}
    with pytest.raises(InputError) as error:
        columns.main([flag.format(**places) for flag in flags])
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1
