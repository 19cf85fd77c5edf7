"""experiments/figures.py: what the figures are drawn from, and that every one is written."""

import json

import numpy as np
import pytest

from alexnet_jax import config as configuration
from alexnet_jax import images, input_pipeline, predict
from alexnet_jax.errors import InputError
from configs import quickstart
from experiments import figures


def fake_run(folder, activation, errors):
    folder.mkdir(parents=True)
    config = quickstart.get_config()
    config.model.activation = activation
    configuration.save(config, folder)
    with open(folder / "metrics.jsonl", "w") as file:
        for epoch, error in enumerate(errors, 1):
            row = {"epoch": epoch, "learning_rate": 0.1 if epoch < 3 else 0.01, "train_top1_error": error}
            row |= dict.fromkeys(("train_loss", "val_loss", "val_top1_error", "val_top5_error"), error)
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def runs(tmp_path):
    for seed, shift in enumerate((0.0, 0.1)):
        fake_run(tmp_path / "relu" / f"seed-{seed}", "relu", [0.5, 0.2 - shift, 0.1])
        fake_run(tmp_path / "tanh" / f"seed-{seed}", "tanh", [0.6, 0.4, 0.3, 0.2 + shift / 10])
    return tmp_path


def test_epochs_to_an_error_are_between_two_validations():
    assert figures.epochs_to(0.25, [0.5, 0.2]) == pytest.approx(1 + 0.25 / 0.3)
    assert figures.epochs_to(0.25, [0.25]) == 1 and figures.epochs_to(0.25, [0.1]) == pytest.approx(
        0.75 / 0.9
    )
    assert figures.epochs_to(0.25, [0.5, 0.3]) == np.inf


def test_figure1_gives_the_ratio_of_epochs(runs, capsys):
    figures.main(["figure1", f"--workdir={runs}"])
    relu = [1 + 0.25 / 0.3, 1 + 0.25 / 0.4]
    tanh = [3 + 0.05 / 0.1, 3 + 0.05 / 0.09]
    ratio = np.mean(tanh) / np.mean(relu)
    relative = [np.std(x, ddof=1) / 2**0.5 / np.mean(x) for x in (relu, tanh)]
    line, *files = capsys.readouterr().out.splitlines()
    spread = ratio * np.hypot(*relative)
    assert line == f"tanh takes {ratio:.2f} ± {spread:.2f} times the epochs of ReLU to 25%"
    assert files == [f"{runs}/figure1.png", f"{runs}/figure1.pdf"]
    picture = images.decode((runs / "figure1.png").read_bytes())
    assert picture.shape[0] > 400 and picture.std() > 5
    assert (runs / "figure1.pdf").read_bytes().startswith(b"%PDF")
    fake_run(runs / "short", "tanh", [0.6, 0.5])
    figures.main(["figure1", f"--workdir={runs}"])
    assert "times" not in capsys.readouterr().out  # one of the runs has not reached it


def test_curves_mark_the_drops_and_tell_the_runs_apart(runs):
    workdirs = figures.workdirs_of(str(runs))
    assert figures.names_of(workdirs) == ["relu/seed-0", "relu/seed-1", "tanh/seed-0", "tanh/seed-1"]
    errors, _ = figures.curves(workdirs).axes
    lines = errors.get_lines()
    dotted = [line for line in lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in dotted] == [2] * 4
    drawn = [line for line in lines if line not in dotted]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in drawn}) == len(drawn) == 8


def test_colourfulness_is_the_energy_that_is_not_grey():
    draw = np.random.default_rng(0)
    grey = np.repeat(draw.normal(size=(5, 5, 1, 7)), 3, axis=2)
    assert figures.colourfulness(grey) == pytest.approx(0, abs=1e-6)
    opponent = draw.normal(size=(5, 5, 1, 7)) * np.array([1.0, -2.0, 1.0])[:, None]
    assert figures.colourfulness(opponent) == pytest.approx(1)
    assert figures.colourfulness(np.concatenate([grey, opponent], axis=3)) == pytest.approx(0.5)
    assert figures.colourfulness(draw.normal(size=(11, 11, 3, 2000))) == pytest.approx(2 / 3, abs=0.01)


def test_figures_of_a_trained_network(swept, tmp_path, capsys):
    workdir = swept[0] / "ReLU" / "seed-0"
    for name, flags in (("figure3", ()), ("figure4", ("--images=3,99",)), ("curves", ())):
        figures.main([name, f"--workdir={workdir}", f"--out={tmp_path}/{name}.png", *flags])
        assert images.decode((tmp_path / f"{name}.png").read_bytes()).std() > 5
        assert (tmp_path / f"{name}.pdf").exists()
    assert "colour" not in capsys.readouterr().out  # its images are grey


def test_nearest_images_are_those_of_all_distances(swept):
    workdir = str(swept[0] / "tanh" / "seed-0")
    network = predict.Network(configuration.of_run(workdir), workdir)
    train = input_pipeline.open_source(network.config, "train_split")
    pictures, _ = train.read(range(len(train)))
    features = figures.features(network)(pictures)
    assert features.shape == (640, 256)  # half of fc7's 512
    queries = [7, 400]
    distances = ((features[queries][:, None] - features[None]) ** 2).sum(axis=2)
    want = np.argsort(distances, axis=1)[:, :6]
    got = figures.nearest(network, pictures[queries], train)
    assert (got[:, 0] == queries).all()
    assert np.allclose(
        np.take_along_axis(distances, got, 1), np.take_along_axis(distances, want, 1), rtol=1e-3
    )


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--workdir=x",), "required: NAME"),
        (("figure9", "--workdir=x"), "figure9"),
        (("curves",), "--workdir"),
        (("curves", "--workdir=nowhere"), "nowhere"),
        (("figure3", "--workdir={runs}"), "is of one workdir; these are 4"),
        (("figure4", "--workdir={run}", "--images=one"), "--images"),
        (("figure3", "--workdir={run}"), "statistics.npz|checkpoint"),
        (("curves", "--workdir={run}", "--out=/nowhere/x"), "--out=/nowhere/x.png"),
    ],
)
def test_bad_input_is_named(flags, words, runs):
    with pytest.raises(InputError, match=words) as error:
        figures.main([flag.format(runs=runs, run=runs / "relu" / "seed-0") for flag in flags])
    assert len(str(error.value).splitlines()) == 1
