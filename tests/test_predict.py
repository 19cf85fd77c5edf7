"""alexnet_jax/predict.py: pictures of any kind and size, named labels, what is no picture."""

import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers import small_archives

from alexnet_jax import config as configuration
from alexnet_jax import predict, trained
from alexnet_jax.datasets import images
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime import files
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs.workdir import read_result
from configs import paper


@pytest.fixture(scope="module")
def workdir(swept):
    return str(swept[0] / "ReLU" / "seed-0")


def test_every_kind_of_picture_gets_five_named_labels(workdir, tmp_path, capsys):
    odd = {**small_archives.odd_pictures()}
    del odd["gzipped"]
    paths = [tmp_path / f"{number}.JPEG" for number in range(len(odd))]
    for path, content in zip(paths, odd.values(), strict=True):
        path.write_bytes(content)
    (tmp_path / "text.jpg").write_text("no picture")
    wrong = [str(tmp_path / "text.jpg"), str(tmp_path / "not there.jpg"), str(tmp_path)]
    given = [f"--workdir={workdir}", *wrong[:1], *map(str, paths), *wrong[1:]]
    assert predict.main([*given, f"--figure={tmp_path}/figure.png"]) == 1
    printed, errors = capsys.readouterr()
    lines = printed.splitlines()
    assert lines[::6] == [str(path) for path in paths] and len(lines) == 6 * len(paths)
    for start in range(1, len(lines), 6):
        probabilities = [float(line.split()[0]) for line in lines[start : start + 5]]
        assert probabilities == sorted(probabilities, reverse=True) and 0.5 < sum(probabilities) <= 1.001
    assert any("Sneaker" in line for line in lines)
    assert [line.partition(":")[0] for line in errors.splitlines()] == ["error"] * 3
    assert all(path in errors for path in wrong)
    assert images.decode((tmp_path / "figure.png").read_bytes()).shape[2] == 3
    assert predict.main([f"--workdir={workdir}", str(paths[0])]) == 0


def test_a_picture_that_lies_on_its_side_is_set_upright(tmp_path):
    content = small_archives.odd_pictures()["oriented"]
    (tmp_path / "a.jpg").write_bytes(content)
    [(_, picture)] = predict.read([str(tmp_path / "a.jpg")], paper.get_config())
    np.testing.assert_array_equal(picture, small_archives.prepared(content, oriented=True))


@pytest.mark.program
def test_names_that_are_not_utf8_are_printed(workdir, tmp_path):
    """By the program, whose streams are UTF-8, and in a figure."""
    good, bad = (os.fsencode(tmp_path) + name for name in (b"/\xff.png", b"/\xfe.jpg"))
    with open(good, "wb") as picture, open(bad, "wb") as text:
        picture.write(small_archives.file_of(small_archives.photograph(0), "PNG"))
        text.write(b"not a picture")
    command = [
        sys.executable,
        "-m",
        "alexnet_jax.predict",
        f"--workdir={workdir}",
        f"--figure={tmp_path}/f.png",
    ]
    ended = subprocess.run([*command, good, bad], capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert ended.returncode == 1
    assert ended.stdout.decode().splitlines()[0] == f"{tmp_path}/\\xff.png"
    expected = f"error: {tmp_path}/\\xfe.jpg: cannot be read as a picture (not a picture of a known format)\n"
    assert ended.stderr.decode() == expected
    assert (tmp_path / "f.png").exists()


def test_classes_named_by_a_wordnet_id_alone_are_given_their_words(workdir, tmp_path, capsys):
    run = shutil.copytree(workdir, tmp_path / "run")
    with np.load(run / "statistics.npz") as stored:
        arrays = dict(stored)
    ids = (
        "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n99999999 n03888257"
    )
    np.savez(run / "statistics.npz", **{**arrays, "label_names": np.array(ids.split())})
    (run / "identity.json").unlink()  # has the fingerprint of the former file
    (tmp_path / "a.JPEG").write_bytes(small_archives.odd_pictures()["cmyk"])
    labels = trained.Trained(configuration.of_run(str(run)), str(run)).names
    assert labels[0] == "n01440764 tench" and labels[8:] == ["n99999999", "n03888257 parachute"]
    assert predict.main([f"--workdir={run}", str(tmp_path / "a.JPEG")]) == 0
    shown = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(shown) == 5 and set(shown) <= set(labels)


def test_predictions_are_those_that_evaluation_counts(workdir):
    """In batches of another size, with one view and with ten."""
    config = configuration.of_run(workdir)
    pictures, labels = open_source(config, "test_split").read(range(100))
    network = trained.Trained(config, workdir)
    parts = [network.predict(pictures[start : start + 40]) for start in (0, 40, 80)]
    probabilities = np.concatenate(parts)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) != labels).mean() == pytest.approx(
        read_result(workdir)["top1_error"]
    )
    ten = trained.Trained(configuration.of_run(workdir, {"eval.views": 10}), workdir)
    assert abs(ten.predict(pictures[:3]) - probabilities[:3]).max() > 1e-6


@pytest.mark.parametrize(
    "name, short",
    [
        ("n01440764 tench, Tinca tinca", "tench"),
        ("T-shirt/top", "T-shirt/top"),
        ("nightingale song", "nightingale song"),
        ("n02799175 basketball equipment of any kind", "basketball equipment …"),
    ],
)
def test_classes_are_shown_by_their_first_name(name, short):
    assert predict.short(name) == short


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), "--workdir: missing"),
        (("--workdir={folder}/nowhere", "x.jpg"), "nowhere: has no config.json"),
        (("--workdir={workdir}",), "IMAGE"),
        (("--workdir={workdir}", "{picture}", "--figure={folder}/nowhere/x.png"), "/nowhere/x.png: "),
        (("--workdir={workdir}", "{picture}", "--config.model.activation=tanh"), "model.activation"),
    ],
)
def test_bad_input_is_named(flags, words, workdir, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(small_archives.file_of(small_archives.photograph(0), "PNG"))
    with pytest.raises(InputError) as error:
        predict.main([flag.format(workdir=workdir, picture=picture, folder=tmp_path) for flag in flags])
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


def test_figures_of_many_pictures_have_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "FIGURE", 6)
    config = paper.get_config()
    config.data.image_size = 8

    class Undecided(trained.Trained):
        def __init__(self, *_):
            self.config, self.names = config, [f"class {number}" for number in range(5)]

        def predict(self, pictures):
            return np.full((len(pictures), 5), 0.2)

    monkeypatch.setattr(trained, "Trained", Undecided)
    monkeypatch.setattr(predict.configuration, "of_run", lambda *_: config)
    pictures = [tmp_path / f"{number}.jpg" for number in range(14)]
    for number, file in enumerate(pictures):
        file.write_bytes(images.encode(np.full((8, 8, 3), 9 * number, np.uint8)))
    assert predict.main(["--workdir=run", f"--figure={tmp_path}/top.png", *map(str, pictures)]) == 0
    assert sorted(file.name for file in tmp_path.glob("top*")) == ["top-1.png", "top-2.png", "top-3.png"]
    shapes = [images.decode((tmp_path / f"top-{n}.png").read_bytes()).shape for n in (1, 2, 3)]
    assert shapes == [(1020, 1320, 3), (1020, 1320, 3), (510, 660, 3)]


def test_a_figure_takes_a_time_that_grows_with_the_pictures_alone():
    """matplotlib's layouts compare all axes with each other; fixed positions need none."""
    network = types.SimpleNamespace(names=["a"] * 5)
    pictures = [(f"{number}.jpg", np.zeros((8, 8, 3), np.uint8), np.full(5, 0.2)) for number in range(9)]
    figure = predict.figure_of(pictures, network.names)
    assert figure.get_layout_engine() is None
    places = [axes.get_position().bounds for axes in figure.axes[1:]]
    assert len(set(places)) == 9 and all(left >= 0 and bottom >= 0 for left, bottom, *_ in places)


def test_a_pipe_that_nothing_writes_to_is_one_line_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.jpg").write_bytes(small_archives.odd_pictures()["grey"])
    read = list(predict.read([str(tmp_path / "pipe"), str(tmp_path / "a.jpg")], paper.get_config()))
    assert [path for path, _ in read] == [str(tmp_path / "a.jpg")]
    assert "pipe: cannot be read as a picture (a pipe or a device that is silent" in capsys.readouterr().err
