"""experiments/claims.py: its statistics, what it adds to its files, and its page."""

import pathlib
import shutil

import numpy as np
import pytest
from scipy import stats

from alexnet_jax.runtime.errors import InputError
from configs import imagenette
from experiments import claims
from experiments.plots import overfitting
from experiments.sweeps import claims as lines

RESULTS = pathlib.Path(claims.__file__).parent / "results" / "claims"


def rows_of(errors):
    """Rows of runs.jsonl for {line: errors by seed}."""
    return [
        {"variant": name, "seed": seed, "best_epoch": 3, "top1_error": x, "top5_error": x / 2, "loss": 2 * x}
        | {f"last_{split}_{key}": x for split in ("train", "test") for key in ("top1_error", "loss")}
        for name, of_seeds in errors.items()
        for seed, x in enumerate(of_seeds)
    ]


def curves_of(rows, errors):
    names = [f"{split}_{key}" for split in ("val", "clean_train") for key in ("top1_error", "loss")]
    return [
        {"variant": row["variant"], "seed": row["seed"], "epoch": epoch, **dict.fromkeys(names, error)}
        for row in rows
        for epoch, error in enumerate(errors, 1)
    ]


def test_the_spread_is_that_of_a_model_of_lines_and_seeds():
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(200, 3))
    errors = 0.5 * noise + draw.normal(size=(200, 1)) * 9 + draw.normal(size=3) * 9
    deviation, degrees = claims.residual(errors)
    assert degrees == 398 and deviation == pytest.approx(0.5, rel=0.1)
    assert claims.residual(errors + 7 * np.arange(3)) == (pytest.approx(deviation), degrees)
    # Two lines: the t test of pairs.
    two = errors[:2]
    test = stats.ttest_rel(*two)
    low, high = test.confidence_interval(0.95)
    assert claims.half_width(*claims.residual(two), seeds=3) == pytest.approx((high - low) / 2)


def test_a_detectable_difference_is_detected_as_often_as_it_says():
    found = claims.detectable(0.5, 16, 3, 8, power=0.8)
    draw, runs = np.random.default_rng(0), 20_000
    error = 0.5 * np.sqrt(2 / 3)
    deviations = 0.5 * np.sqrt(draw.chisquare(16, runs) / 16)
    seen = found + error * draw.normal(size=runs) > [claims.half_width(d, 16, 3, 8) for d in deviations]
    assert seen.mean() == pytest.approx(0.8, abs=0.02)


def test_a_verdict_waits_for_all_seeds():
    errors = {name: [0.30, 0.31, 0.32] for name in lines.LINES}
    errors["no dropout"] = [0.40, 0.42, 0.41]
    errors["no conv4"] = [0.25, 0.25, 0.27]
    errors["no conv5"] = [0.30, 0.31]
    found = claims.compare(rows_of(errors), lambda row: 100 * row["top1_error"])
    change, seeds, half = found["no dropout"]
    whole = 100 * np.array([of_seeds for of_seeds in errors.values() if len(of_seeds) == 3])
    deviation, degrees = claims.residual(whole)
    of_eight = stats.t.ppf(1 - 0.05 / 2 / 8, degrees) * deviation * np.sqrt(2 / 3)  # Bonferroni's
    assert (change, seeds, half) == (pytest.approx(10), 3, pytest.approx(of_eight))
    assert found["no conv5"][1] == 2 and np.isnan(found["no conv5"][2])
    table = {line.split(" | ")[0].strip("| "): line for line in claims.errors_table(rows_of(errors))}
    ends = {
        "no dropout": "| agrees |", "no conv4": "| disagrees |", "no conv5": "| open: seeds are missing |",
        "columns never meet": "| not reported |  |",
        "one GPU": "| no difference seen; below the paper's 1.7 |",
    }  # fmt: skip
    for name, end in ends.items():
        assert table[name].endswith(end)
    assert claims.verdict(0.1, 0.5, 2.0) == "no difference seen; below the paper's 2"
    assert claims.verdict(0.1, 0.5, 0.55) == claims.verdict(0.1, 0.5, None) == "no difference seen"
    assert claims.compare(rows_of({"no dropout": [0.4]}), lambda row: 1.0) == {}


def test_epochs_are_compared_seed_by_seed():
    rows = rows_of({"baseline": [0.3, 0.3], "no dropout": [0.3, 0.3], "no conv4": [0.3]})
    slow, fast = curves_of(rows[:2], [0.9, 0.4, 0.1, 0.05]), curves_of(rows[2:4], [0.5, 0.1, 0.05, 0.05])
    table = claims.epochs_table(slow + fast + curves_of(rows[4:], [0.8]), rows)
    assert "| baseline | 2.5 ± 0.0 | 3.0 ± 0.0 |" in table[2]
    assert "| no dropout | 1.6 ± 0.0, 0.65 ± 0.00 times | 2.0 ± 0.0, 0.67 ± 0.00 times |" in table[3]
    assert "| no conv4 | never in 1 of 1 runs |" in "\n".join(table)
    errors, losses = overfitting.draw(slow + fast).axes
    assert len(errors.get_lines()) == len(losses.get_lines()) == 8


@pytest.mark.program
def test_a_finished_run_is_measured_once(swept, tmp_path, monkeypatch):
    """On all training images the last network has the errors that its curve ends with."""
    monkeypatch.setattr(claims, "PART", 640)
    shutil.copytree(swept[0] / "ReLU", tmp_path / "w" / "no-ReLU")
    for _ in range(2):
        claims.main(["measure", f"{tmp_path}/w", f"--results={tmp_path}"])
        claims.main(["rates", f"{tmp_path}/w", f"--results={tmp_path}"])
    (row,), curve, (rate,) = (
        claims.read(tmp_path / name) for name in ("runs.jsonl", "curves.csv", "rates.csv")
    )
    assert row["variant"] == rate["variant"] == "no ReLU" and row["epochs"] == 2
    assert [each["epoch"] for each in curve] == [1, 2]
    for key in ("loss", "top1_error"):
        assert row[f"last_train_{key}"] == pytest.approx(curve[1][f"clean_train_{key}"], rel=1e-4)
    assert rate["val_loss"] == pytest.approx(np.mean([each["val_loss"] for each in curve]), rel=1e-4)


def test_lines_of_the_study_change_what_they_name():
    config = imagenette.get_config()
    studied, grid = lines.get_variants(config), lines.get_variants(config, "rates")
    assert [variant.name for variant in studied] == list(lines.LINES) == ["baseline", *claims.PAPER]
    assert studied[1].overrides == {"model.dropout_rate": 0.0, "optimizer.learning_rate": 0.005}
    rates = {variant.name: variant.overrides["optimizer.learning_rate"] for variant in grid}
    assert len(rates) == 26 and rates["no conv4 at 0.02"] == 0.02
    (one,) = lines.get_variants(config, "no conv4 at 0.02")
    assert one.overrides["model.layers.conv4.enabled"] is False
    with pytest.raises(ValueError, match="no conv9"):
        lines.get_variants(config, "baseline,no conv9")


def test_bad_input_is_reported():
    for arguments in (["write", "DIR"], ["measure"], ["measure", "none"]):
        with pytest.raises(InputError):
            claims.main(arguments)
    with pytest.raises(InputError, match="lacks"):
        claims.with_table("", "errors", [])


def test_the_page_has_the_tables_of_its_data():
    text = (RESULTS / "README.md").read_text()
    assert claims.with_tables(text, RESULTS) == text
    spread, three, eight, *_ = claims.power()
    assert "0.52 points" in spread and all(number in text for number in ("0.91", "1.34", "1.73", "2.13"))
    assert "0.91" in three and "1.34" in eight
