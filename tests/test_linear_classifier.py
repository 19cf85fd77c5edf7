"""experiments/linear_classifier.py against SciPy in float64, and what it refuses."""

import json
import re

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from alexnet_jax.runtime.errors import InputError
from experiments import linear_classifier, logistic_regression

CLASSES = ["cat", "dog", "eel"]


def examples(seed, count=300, noise=1.0):
    """Three classes, which overlap, in five dimensions of different scales, and a unit that is always 0."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, count).astype(np.int32)
    centres = np.random.default_rng(0).normal(size=(3, 5))
    rows = (centres[labels] + noise * draw.normal(size=(count, 5))) * [1, 10, 100, 0.1, 0.01]
    return np.c_[rows, np.zeros(count)].astype(np.float32), labels


def write(folder, rows, labels, **fields):
    folder.mkdir()
    np.save(folder / "fc7.npy", rows)
    np.save(folder / "labels.npy", labels)
    record = {
        "run": "a",
        "step": 7,
        "weights": "w",
        "examples": len(rows),
        "classes": CLASSES,
        "fingerprint": "f",
    }
    record |= {"column": None, "layers": {"fc7": [rows.shape[1]]}, **fields}
    (folder / "features.json").write_text(json.dumps(record))
    return str(folder)


@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_the_fit_is_the_minimum_that_scipy_finds(penalty):
    rows, labels = examples(1)
    rows = ((rows - rows.mean(axis=0)) / np.maximum(rows.std(axis=0), 1e-9)).astype(np.float64)

    def loss(flat):
        weights, biases = flat[:18].reshape(6, 3), flat[18:]
        logits = rows @ weights + biases
        nll = scipy.special.logsumexp(logits, axis=1) - logits[range(len(labels)), labels]
        return nll.mean() + 0.5 * penalty * (weights**2).sum()

    want = scipy.optimize.minimize(loss, np.zeros(21), tol=1e-12)
    start = {"weights": np.zeros((6, 3), np.float32), "biases": np.zeros(3, np.float32)}
    own = logistic_regression.Examples(rows.astype(np.float32), labels)
    got = logistic_regression.fit(start, own, penalty, 500)
    np.testing.assert_allclose(np.ravel(got["weights"]), want.x[:18], atol=2e-4)
    assert float(logistic_regression.objective(got, own, penalty)) == pytest.approx(want.fun, rel=1e-6)


def test_the_penalty_is_chosen_on_val_and_test_is_stated_once(tmp_path, capsys):
    folders = [write(tmp_path / name, *examples(seed)) for seed, name in enumerate(("a", "b", "c"), 1)]
    linear_classifier.main([*folders, "--layer=fc7"])
    *tried, last = capsys.readouterr().out.splitlines()
    on_val = [float(re.search(r"([\d.]+) on VAL", line)[1]) for line in tried]
    penalty = re.match("penalty ([^:]+)", tried[int(np.argmin(on_val))])[1]
    assert len(tried) == len(linear_classifier.PENALTIES) and f"6 features, penalty {penalty}: top-1" in last
    stated = float(re.search(r"error ([\d.]+) on TEST \(300 images\)", last)[1])
    rows, labels = examples(3)
    centres = np.random.default_rng(0).normal(size=(3, 5))
    scaled = rows[:, :5] / [1, 10, 100, 0.1, 0.01]
    best = np.linalg.norm(scaled[:, None] - centres, axis=2).argmin(axis=1) != labels  # Bayes' rule here
    assert best.mean() - 0.02 < stated < best.mean() + 0.06


def test_features_of_several_networks_are_refused(tmp_path):
    rows, labels = examples(1, 20)
    train = write(tmp_path / "train", rows, labels)
    for field, value in {
        "step": 8,
        "run": "b",
        "classes": ["dog", "cat", "eel"],
        "column": 1,
        "weights": "v",
    }.items():
        other = write(tmp_path / field, rows, labels, **{field: value})
        with pytest.raises(InputError, match=f"{field}: has another {field} than .*train"):
            linear_classifier.load([train, train, other], "fc7")
    with pytest.raises(InputError, match="--layer=fc6: .*train has 'fc7'; give one"):
        linear_classifier.load([train] * 3, "fc6")
    unlabelled = write(tmp_path / "unlabelled", rows, labels * 0 - 1)
    with pytest.raises(InputError, match="unlabelled: has images without a class"):
        linear_classifier.load([train, train, unlabelled], "fc7")
    np.save(tmp_path / "train" / "labels.npy", labels[:10])
    with pytest.raises(InputError, match=r"labels.npy: cannot be read \(is int32 \[10\], not int32 \[20\]\)"):
        linear_classifier.load([train] * 3, "fc7")
    for content in (b"", (tmp_path / "train" / "fc7.npy").read_bytes()[:-9]):
        (tmp_path / "train" / "fc7.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"fc7.npy: cannot be read \("):
            linear_classifier.load([train] * 3, "fc7")
    (tmp_path / "train" / "features.json").write_text("{}")
    with pytest.raises(InputError, match=r"features.json: cannot be read \(is not a record of features\)"):
        linear_classifier.load([train] * 3, "fc7")
