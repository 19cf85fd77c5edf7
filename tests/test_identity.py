"""alexnet_jax/workdirs/identity.py: what a run, and a result, are of; nothing else is taken for it."""

import json
import logging
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from helpers import folders
from helpers.runs import rows
from PIL import Image

from alexnet_jax import evaluate, train
from alexnet_jax.datasets import statistics
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs import identity
from alexnet_jax.workdirs.workdir import read_result


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A folder with data, pictures of three classes, and run, the workdir of a finished run."""
    folder = tmp_path_factory.mktemp("first")
    train.train(
        folders.config_of(folders.make(folder / "data", ["ant", "bee", "cow"]), 4), str(folder / "run")
    )
    return folder


@pytest.fixture
def trained(first_run, tmp_path):
    """(folder of pictures, workdir, configuration) of a copy of the first run."""
    shutil.copytree(first_run, tmp_path, dirs_exist_ok=True)
    return tmp_path / "data", tmp_path / "run", folders.config_of(tmp_path / "data", 4)


def files(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def change(folder, what):
    random = np.random.default_rng(9)
    match what:
        case "class added":
            for split in ("train", "val"):
                folders.picture(folder / split / "ape" / "0.bmp", random, 3)
        case "class renamed":
            for split in ("train", "val"):
                (folder / split / "bee").rename(folder / split / "zoo")
        case "class gone, as an unmounted disk":
            for split in ("train", "val"):
                (folder / split / "bee").rename(folder / split / ".bee")
                (folder / split / "bee").symlink_to(folder / "nothing")
        case "picture added":
            folders.picture(folder / "train" / "bee" / "x.bmp", random, 1)
        case "picture removed":
            (folder / "train" / "bee" / "0.bmp").unlink()
        case "validation picture removed":
            (folder / "val" / "bee" / "0.bmp").unlink()
        case "pixels changed":
            pixels = np.asarray(Image.open(folder / "train" / "bee" / "0.bmp"))
            Image.fromarray(255 - pixels).save(folder / "train" / "bee" / "0.bmp")


@pytest.mark.parametrize(
    "what, message",
    [
        ("class added", "3 classes there, 4 here, which also have 'ape'"),
        ("class renamed", "3 classes there, 3 here, which lack 'bee' and also have 'zoo'"),
        ("class gone, as an unmounted disk", "bee"),
        ("picture added", "24 examples there, 25 here"),
        ("picture removed", "24 examples there, 23 here"),
        ("validation picture removed", "data.val_split: .* 12 examples there, 11 here"),
        ("pixels changed", "the content differs"),
    ],
)
@pytest.mark.parametrize("epochs", [1, 2], ids=["finished", "to go on"])
def test_a_run_does_not_go_on_with_other_data(trained, what, message, epochs):
    folder, workdir, config = trained
    change(folder, what)
    config.num_epochs, before = epochs, files(workdir)
    with pytest.raises(InputError, match=message):
        train.train(config, str(workdir))
    assert files(workdir) == before


def test_data_may_move(trained, tmp_path):
    folder, workdir, config = trained
    before = files(workdir)
    folder.rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    for place in ("moved", "copy"):
        config.data.dir = str(tmp_path / place)
        train.train(config, str(workdir))
    assert {path: time for path, time in files(workdir).items() if path.name != "train.log"} == {
        path: time for path, time in before.items() if path.name != "train.log"
    }
    config.num_epochs = 2
    train.train(config, str(workdir))
    assert [row["epoch"] for row in rows(workdir)] == [1, 2]


def test_a_finished_run_is_evaluated_again_on_another_test_split(trained, caplog):
    folder, workdir, config = trained
    caplog.set_level(logging.INFO, "alexnet_jax")
    shutil.copytree(folder / "val", folder / "test")
    config.data.test_split = "test"
    with pytest.raises(InputError, match="test_split is 'val' there"):  # it belongs to the configuration
        train.train(config, str(workdir))
    config.data.test_split = "val"
    result = read_result(str(workdir))
    (workdir / "eval.json").write_text(json.dumps({**result, "fingerprint": "0", "top1_error": 0.0}))
    train.train(config, str(workdir))
    assert "is of another fingerprint; evaluating again" in caplog.text
    assert read_result(str(workdir)) == result


def test_a_result_names_its_data_and_its_run(trained):
    folder, workdir, config = trained
    result, stored = read_result(str(workdir)), identity.read(str(workdir))
    assert result["run"] == stored["run"] and result["fingerprint"] == stored["val"]["fingerprint"]
    assert stored["train"]["classes"] == ["ant", "bee", "cow"] and stored["train"]["examples"] == 24
    assert stored["origin"] == {"kind": "drawn"}
    assert all(re.fullmatch("[0-9a-f]{16}", result[name]) for name in ("run", "fingerprint", "classes"))


def test_runs_that_compute_the_same_share_their_identity_and_no_others(trained, tmp_path):
    folder, workdir, config = trained
    shutil.copytree(folder, tmp_path / "copy")
    runs = [identity.of_workdir(str(workdir))]
    same = {"data.dir": str(tmp_path / "copy"), "eval.views": 10, "num_epochs": 2}
    for number, changes in enumerate([same, {"seed": 1}, {"model.dropout_rate": 0.25}]):
        train.train(folders.config_of(folder, 4, **changes), str(tmp_path / f"run{number}"))
        runs.append(identity.of_workdir(str(tmp_path / f"run{number}")))
    assert runs[0] == runs[1] and len(set(runs)) == 3


def test_a_workdir_of_an_earlier_version_is_completed_with_one_line(trained, caplog):
    _, workdir, config = trained
    caplog.set_level(logging.INFO, "alexnet_jax")
    stored, result = identity.read(str(workdir)), read_result(str(workdir))
    (workdir / "identity.json").unlink()
    old = {name: value for name, value in result.items() if name not in ("run", "fingerprint", "classes")}
    (workdir / "eval.json").write_text(json.dumps(old))
    evaluate.evaluate(config, str(workdir))
    assert read_result(str(workdir)) == {**result, "run": None}
    train.train(config, str(workdir))
    lines = [line for line in caplog.messages if "identity.json: missing" in line]
    assert len(lines) == 1 and "24 and 12 examples" in lines[0]
    assert identity.read(str(workdir)) == stored and read_result(str(workdir)) == result


@pytest.mark.parametrize("change", ["mean image", "names"])
def test_statistics_that_were_edited_are_refused(trained, change):
    """Neither an evaluation nor a resumed run takes them; an earlier version recorded no fingerprint."""
    _, workdir, config = trained
    arrays = statistics.load(workdir / "statistics.npz")
    if change == "names":
        arrays["label_names"] = arrays["label_names"][::-1]
    else:
        arrays["mean_image"] = arrays["mean_image"] + 1
    statistics.save(workdir / "statistics.npz", arrays)
    before = files(workdir)
    config.num_epochs = 2
    for start in (evaluate.evaluate, train.train):
        with pytest.raises(InputError, match=r"statistics.npz: is not the file of this run \(fingerprint"):
            start(config, str(workdir))
    assert {p: t for p, t in files(workdir).items() if p.name != "train.log"} == {
        p: t for p, t in before.items() if p.name != "train.log"
    }
    stored = identity.read(str(workdir))
    del stored["statistics"]
    identity.write(str(workdir), stored)
    evaluate.evaluate(config, str(workdir))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"train": 1, "val": 2, "origin": {}}', "[" * 100_000])
def test_a_damaged_identity_is_told(trained, text):
    _, workdir, config = trained
    (workdir / "identity.json").write_text(text)
    with pytest.raises(InputError, match=r"identity.json: cannot be read .* delete it") as told:
        train.train(config, str(workdir))
    assert "\n" not in str(told.value)


def test_the_run_that_parameters_are_taken_from_is_recorded(trained, tmp_path):
    folder, workdir, _ = trained
    config = folders.config_of(folder, 4, init_from=str(workdir), init_layers=("conv1", "conv2"))
    train.train(config, str(tmp_path / "tuned"))
    stored = identity.read(str(tmp_path / "tuned"))
    other = identity.of_workdir(str(workdir))
    assert stored["origin"] == {"kind": "run", "run": other, "step": 3, "workdir": str(workdir)}
    for init_from, words in (
        ("", "but none is given now"),
        (str(tmp_path / "tuned"), "started from .*run, but .* is given now"),
    ):
        config.init_from = init_from
        with pytest.raises(InputError, match=f"^init_from: .* {words}"):
            train.train(config, str(tmp_path / "tuned"))
    workdir.rename(tmp_path / "moved")
    config.update(num_epochs=2, init_from=str(tmp_path / "moved"))
    train.train(config, str(tmp_path / "tuned"))
    config.num_epochs = 3  # what is recorded stays, also if the other run is gone
    shutil.rmtree(tmp_path / "moved")
    train.train(config, str(tmp_path / "tuned"))
    assert identity.read(str(tmp_path / "tuned")) == stored
    with pytest.raises(
        InputError, match=r"^init_from: .* started from no other run, but .*moved is given now"
    ):
        train.train(config, str(trained_apart(folder, tmp_path / "apart")))


def test_a_run_without_a_checkpoint_starts_from_the_step_that_it_recorded(trained, tmp_path):
    """It was killed before its first checkpoint, and the other run has gone on since."""
    folder, workdir, config = trained
    tuned = folders.config_of(folder, 4, init_from=str(workdir), init_layers=("conv1", "conv2"))
    train.train(tuned, str(tmp_path / "tuned"))
    shutil.rmtree(tmp_path / "tuned" / "checkpoints")
    shutil.copytree(workdir / "checkpoints" / "3", workdir / "checkpoints" / "6")
    (workdir / "checkpoints" / "6" / "metrics" / "metrics").write_text('{"val_top1_error": -1}')
    before = files(tmp_path / "tuned")
    with pytest.raises(InputError, match=r"^init_from: .* from step 3 of .*run, whose best step is 6 now"):
        train.train(tuned, str(tmp_path / "tuned"))
    assert files(tmp_path / "tuned") == before
    shutil.rmtree(workdir / "checkpoints" / "6")
    train.train(tuned, str(tmp_path / "tuned"))
    assert [row["step"] for row in rows(tmp_path / "tuned")] == [3]


def trained_apart(folder, workdir):
    train.train(folders.config_of(folder, 4, init_layers=("conv1", "conv2"), num_epochs=3), str(workdir))
    return workdir


@pytest.mark.parametrize("classes", [["ant", "cow"], ["cow", "bee"], ["Cow", "ANT", "bee"]], ids="-".join)
def test_classes_are_matched_by_name_in_evaluation(trained, tmp_path, classes):
    folder, workdir, config = trained
    for name in classes:
        for split in ("train", "val"):
            shutil.copytree(folder / split / name.lower(), tmp_path / "part" / split / name)
    config.data.dir = str(tmp_path / "part")
    evaluate.evaluate(config, str(workdir))
    part = read_result(str(workdir))
    for name in set(os.listdir(folder / "val")) - {name.lower() for name in classes}:
        shutil.rmtree(folder / "val" / name)
    config.data.dir = str(folder)
    evaluate.evaluate(config, str(workdir))
    whole = read_result(str(workdir))
    assert part["examples"] == whole["examples"] == 4 * len(classes)
    np.testing.assert_allclose(part["loss"], whole["loss"], rtol=1e-6)
    assert part["top1_error"] == whole["top1_error"] and part["run"] == whole["run"]


def test_an_evaluation_reports_that_the_content_changed(trained, caplog):
    folder, workdir, config = trained
    caplog.set_level(logging.INFO, "alexnet_jax")
    evaluate.evaluate(config, str(workdir))
    assert "has changed" not in caplog.text
    pictures = [folder / "val" / "bee" / name for name in ("0.bmp", "1.bmp")]
    for path, content in zip(pictures, [path.read_bytes() for path in reversed(pictures)], strict=True):
        path.write_bytes(content)  # of the same size
    evaluate.evaluate(config, str(workdir))
    assert "eval.json: the content of val has changed (fingerprint" in caplog.text


def test_a_class_that_the_network_lacks_is_refused(trained, tmp_path):
    _, workdir, config = trained
    before = files(workdir)
    config.data.dir = str(folders.make(tmp_path / "other", ["ant", "bee", "dog"]))
    with pytest.raises(
        InputError, match="the network lacks 1 of its 3 classes, 'dog'; the network has 'ant'"
    ):
        evaluate.evaluate(config, str(workdir))
    assert files(workdir) == before


def test_differences_name_both_sides():
    split = {"classes": ["a", "b", "c", "d"], "examples": 8, "fingerprint": "1f"}
    differ = identity.difference
    assert differ(split, split) == ""
    assert differ(split, {**split, "classes": ["b", "a", "c", "d"]}).endswith("which are in another order")
    assert "lack 'a', 'b', 'c' and 1 more" in differ(split, {**split, "classes": []})
    assert "1f there, 2f here" in differ(split, {**split, "fingerprint": "2f"})


def test_identity_does_not_depend_on_where_it_is(tmp_path):
    origin = {"kind": "run", "run": "1", "step": 2, "workdir": "a"}
    one, other = (identity.of_run({}, None, None, {**origin, "workdir": place}) for place in ("a", "b"))
    assert one["run"] == other["run"] and one["origin"]["workdir"] == "a"
    assert identity.of_run({}, None, None, {**origin, "step": 3})["run"] != one["run"]
    identity.write(str(tmp_path), one)
    assert identity.read(str(tmp_path)) == one and pathlib.Path(tmp_path, "identity.json").is_file()
