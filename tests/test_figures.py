"""experiments/figures.py: what the figures are drawn from, and that every one is written."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from alexnet_jax import config as configuration
from alexnet_jax import predict, trained
from alexnet_jax.datasets import images
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs.workdir import write_config
from configs import quickstart
from experiments import columns, figures
from experiments.plots import common, curves, effects, figure1, kernels, neighbors
from experiments.plots.runs import find_workdirs, short_names


def fake_run(folder, activation, errors, seed=0):
    folder.mkdir(parents=True)
    config = quickstart.get_config()
    config.seed = seed
    config.model.activation = activation
    write_config(config, folder)
    with open(folder / "metrics.jsonl", "w") as file:
        for epoch, error in enumerate(errors, 1):
            row = {"step": 10 * epoch, "epoch": epoch, "learning_rate": 0.1 if epoch < 3 else 0.01}
            row |= {"images_per_second": 100.0, "train_top1_error": error}
            row |= dict.fromkeys(("train_loss", "val_loss", "val_top1_error", "val_top5_error"), error)
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def runs(tmp_path):
    for seed, shift in enumerate((0.0, 0.1)):
        fake_run(tmp_path / "relu" / f"seed-{seed}", "relu", [0.5, 0.2 - shift, 0.1], seed)
        fake_run(tmp_path / "tanh" / f"seed-{seed}", "tanh", [0.6, 0.4, 0.3, 0.2 + shift / 10], seed)
    return tmp_path


def test_epochs_to_an_error_are_between_two_points():
    assert figure1.epochs_to(0.25, [0, 0.5, 1.5], [0.9, 0.5, 0.2]) == pytest.approx(0.5 + 0.25 / 0.3)
    assert figure1.epochs_to(0.25, [0, 0.5], [0.9, 0.25]) == 0.5
    assert figure1.epochs_to(0.25, [0, 0.5], [0.9, 0.1]) == pytest.approx(0.5 * 0.65 / 0.8)
    assert figure1.epochs_to(0.25, [0, 1, 2, 3], [0.9, 0.2, 0.4, 0.1]) == pytest.approx(0.65 / 0.7)
    assert figure1.epochs_to(0.25, [0, 0.5, 1.5], [0.9, 0.5, 0.3]) == np.inf


def test_a_mean_over_an_epoch_is_of_its_middle(tmp_path):
    """An error that falls on a straight line is met where the line has it."""
    fake_run(tmp_path / "run", "relu", [0.9 - 0.1 * (epoch + 0.5) for epoch in range(8)])
    epochs, errors = figure1.training_errors(str(tmp_path / "run"))
    assert list(epochs) == [0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]
    assert figure1.epochs_to(0.25, epochs, errors) == pytest.approx(6.5)


def test_figure1_gives_the_ratio_of_epochs_and_its_spread_over_seeds(runs, capsys):
    figures.main(["figure1", f"--workdir={runs}"])
    relu = np.array([0.5 + 0.25 / 0.3, 0.5 + 0.25 / 0.4])
    tanh = np.array([2.5 + 0.05 / 0.1, 2.5 + 0.05 / 0.09])
    of_relu, of_tanh, ratio, *files = capsys.readouterr().out.splitlines()
    for line, name, epochs in ((of_relu, "ReLU", relu), (of_tanh, "tanh", tanh)):
        words = f"{epochs.mean():.2f} ± {epochs.std(ddof=1):.2f} epochs to 25% training error"
        assert line == f"{name}: {words}"
    words = f"{(tanh / relu).mean():.2f} ± {(tanh / relu).std(ddof=1):.2f} times the epochs of ReLU to 25%"
    assert ratio == f"tanh takes {words} (seeds: 2)"
    assert files == [f"{runs}/figure1.png", f"{runs}/figure1.pdf"]
    picture = images.decode((runs / "figure1.png").read_bytes())
    assert picture.shape[0] > 400 and picture.std() > 5
    assert (runs / "figure1.pdf").read_bytes().startswith(b"%PDF")


def test_figure1_gives_no_ratio_where_a_run_never_came_there_or_no_two_are_a_pair(runs, capsys):
    figures.main(["figure1", f"--workdir={runs}/relu/seed-0", f"--workdir={runs}/tanh/seed-1"])
    assert "no ratio" in capsys.readouterr().out
    fake_run(runs / "short", "tanh", [0.6, 0.5], seed=2)
    figures.main(["figure1", f"--workdir={runs}"])
    printed = capsys.readouterr().out
    assert "tanh: 1 of 3 runs never got to 25%" in printed and "no ratio" in printed


def test_runs_without_a_validation_are_left_out_of_those_of_a_folder(runs, capsys):
    for name, text in (("begun", None), ("empty", ""), ("damaged", "{\n"), ("other", "7\n")):
        fake_run(runs / name, "relu", [])
        (runs / name / "metrics.jsonl").unlink() if text is None else (
            runs / name / "metrics.jsonl"
        ).write_text(text)
    figures.main(["curves", f"--workdir={runs}", f"--out={runs}/curves-0.25"])
    printed = capsys.readouterr()
    assert printed.out.split() == [f"{runs}/curves-0.25.png", f"{runs}/curves-0.25.pdf"]
    assert [line.split("/")[-2] for line in printed.err.splitlines()] == [
        "begun",
        "damaged",
        "empty",
        "other",
    ]
    for name in ("begun", "damaged", "empty", "other"):
        with pytest.raises(InputError, match=name):
            figures.main(["curves", f"--workdir={runs}/{name}"])


def test_curves_mark_the_drops_and_tell_the_runs_apart(runs):
    workdirs = find_workdirs(str(runs))
    assert short_names(workdirs) == ["relu/seed-0", "relu/seed-1", "tanh/seed-0", "tanh/seed-1"]
    errors, _ = curves.draw(workdirs).axes
    lines = errors.get_lines()
    dotted = [line for line in lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in dotted] == [2] * 4
    drawn = [line for line in lines if line not in dotted]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in drawn}) == len(drawn) == 8


def test_a_dollar_in_a_name_is_one(runs):
    """Between two of them matplotlib would read mathematics, and fail at what is none."""
    (runs / "relu").rename(runs / r"$\frac$")
    figures.main(["curves", f"--workdir={runs}"])
    (runs / "results.csv").write_text(
        "variant,top1_difference,top1_difference_error\n" + r"$\frac$,0.1,0.1" + "\n"
    )
    figures.main(["effects", f"--workdir={runs}"])
    figure = Figure()
    predict.draw_top_five(figure.subplots(), np.array([0.9, 0.1]), [r"$\frac$", "b"])
    common.save(figure, [str(runs / "top5.png")])


def test_effects_are_the_tables_differences_in_points(tmp_path):
    (tmp_path / "results.csv").write_text(
        "variant,top1_error,top1_difference,top1_difference_error\n"
        "first,0.3,,\nbetter,0.29,-0.01,0.0025\nonce,0.5,0.2,\nfailed,,,\n"
    )
    axes, right = effects.draw(str(tmp_path)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["better", "once"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["-1.00 ± 0.25", "+20.00"]
    np.testing.assert_allclose(right.get_ylim(), axes.get_ylim())
    points, _, (bars,) = axes.containers[0].lines
    np.testing.assert_allclose(np.asarray(points.get_xdata(), float), [-1, 20])
    np.testing.assert_allclose(bars.get_segments()[0][:, 0], [-1.25, -0.75])
    assert axes.get_xlim()[0] < -1.2 and axes.get_xlim()[1] > 20
    figures.main(["effects", f"--workdir={tmp_path}"])
    assert images.decode((tmp_path / "effects.png").read_bytes()).std() > 5


def test_figures_of_a_trained_network(swept, tmp_path, capsys, monkeypatch):
    workdir = swept[0] / "ReLU" / "seed-0"
    for name, flags in (("figure3", ()), ("figure4", ("--images=3,99",)), ("curves", ())):
        figures.main([name, f"--workdir={workdir}", f"--out={tmp_path}/{name}.png", *flags])
        assert images.decode((tmp_path / f"{name}.png").read_bytes()).std() > 5
        assert (tmp_path / f"{name}.pdf").exists()
    assert "colour" not in capsys.readouterr().out  # its images are grey
    # Fewer images than a row has room for, and another step than the best.
    four = ("--images=1,2", "--config.data.train_split=train[:4]", "--config.eval.step=7")
    with pytest.raises(InputError, match="eval.step: 7 is not in"):
        figures.main(["figure4", f"--workdir={workdir}", *four])
    drawn = []
    monkeypatch.setattr(common, "save", lambda figure, paths: drawn.append(figure))
    figures.main(["figure4", f"--workdir={workdir}", *four[:2]])
    with_pictures = [bool(axes.get_images()) for axes in drawn[0].axes]
    assert with_pictures == 2 * [True, False, *[True] * 4, False, False]
    config = configuration.of_run(str(workdir))
    test = open_source(config, "test_split")
    shown, labels = test.read([1, 2])
    for axes, picture, label in zip(drawn[0].axes[::8], shown, labels, strict=True):
        assert axes.get_title() == test.label_names[label]
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), picture[..., 0])


@pytest.mark.parametrize("name", ["m", "no normalisation " * 2 + "at all", "W" * 40, "long_" * 30])
def test_effects_are_legible_beside_long_names(name, tmp_path):
    """Every name is whole and inside the figure, and the plot keeps its width, in which no ticks overlap."""
    lines = [f"{name}{number}"[-max(len(name), 2) :] for number in range(4)]
    rows = [f"{line},{change},0.01\n" for line, change in zip(lines, (-0.3, -0.001, 0.02, 0.6), strict=True)]
    (tmp_path / "results.csv").write_text("variant,top1_difference,top1_difference_error\n" + "".join(rows))
    figure = effects.draw(str(tmp_path))
    figure.draw_without_rendering()
    axes, right = figure.axes
    assert axes.get_window_extent().width > 4.5 * figure.dpi
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [shown.replace("\n", "").replace(" ", "") for shown in names] == [
        line.replace(" ", "") for line in lines
    ]
    page = figure.bbox
    for labels in (axes.get_yticklabels(), right.get_yticklabels(), shown_ticks(axes)):
        extents = [label.get_window_extent() for label in labels]
        assert all(page.x0 <= extent.x0 and extent.x1 <= page.x1 for extent in extents)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))


def shown_ticks(axes):
    """Return the labels of the ticks that are within the limits of the x axis."""
    low, high = axes.get_xlim()
    return [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]


def test_a_legend_of_long_names_is_inside_the_figure(tmp_path):
    for number in range(5):
        fake_run(tmp_path / f"{'no normalisation in any layer at all':x<39}{number}", "relu", [0.5, 0.4])
    figure = curves.draw(find_workdirs(str(tmp_path)))
    figure.draw_without_rendering()
    extent = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= extent.x0 and extent.x1 <= figure.bbox.x1 and extent.y0 >= 0


def test_figure3_puts_one_column_above_the_other_and_tells_their_colour(monkeypatch, capsys):
    draw = np.random.default_rng(0)
    grey = np.repeat(draw.normal(size=(5, 5, 1, 20)), 3, axis=2)
    coloured = draw.normal(size=(5, 5, 3, 20))
    coloured -= coloured.mean(axis=2, keepdims=True)
    both = np.stack([grey, coloured])
    monkeypatch.setattr(columns, "conv1", lambda *_: (7, both))
    above, below = kernels.draw("w", {}).axes
    assert [line.partition(", ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "step 7, column 0: 0.0% of the energy is colour (2/3 at random)",
        "step 7, column 1: 100.0% of the energy is colour (2/3 at random)",
    ]
    scaled = (both - both.min()) / (both.max() - both.min())
    for axes, own in ((above, scaled[0]), (below, scaled[1])):
        sheet = axes.get_images()[0].get_array()
        assert sheet.shape == (2 * 6 + 1, 16 * 6 + 1, 3)
        np.testing.assert_array_equal(sheet[7:12, 13:18], own[..., 18])  # the third of the second row
        np.testing.assert_array_equal(sheet[7:12, 25:], 1)  # there are four in it


def test_nearest_images_are_those_of_all_distances(swept):
    workdir = str(swept[0] / "tanh" / "seed-0")
    network = trained.Trained(configuration.of_run(workdir), workdir)
    train = open_source(network.config, "train_split")
    pictures, _ = train.read(range(len(train)))
    features = neighbors.features(network, pictures)
    assert features.shape == (640, 128)  # a quarter of fc7's 512
    queries = [7, 400]
    distances = ((features[queries][:, None] - features[None]) ** 2).sum(axis=2)
    want = np.argsort(distances, axis=1)[:, :6]
    got = neighbors.nearest(network, pictures[queries], train)
    np.testing.assert_array_equal(got[:, 0], queries)
    np.testing.assert_allclose(
        np.take_along_axis(distances, got, 1), np.take_along_axis(distances, want, 1), rtol=1e-3
    )


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--workdir=x",), "^NAME: missing"),
        (("figure9", "--workdir=x"), "NAME: expected one of curves, effects, .* got .figure9"),
        (("curves",), "--workdir"),
        (("curves", "--workdir={folder}/nowhere"), "nowhere"),
        (("figure3", "--workdir={runs}"), "takes one workdir; these are 4"),
        (("figure1", "--workdir={run}", "--workdir={run}"), "another run with relu and seed 0"),
        (
            ("figure4", "--workdir={run}", "--images=one"),
            "--images: expected numbers, as in 0,1,2, got",
        ),
        (
            ("figure3", "--workdir={run}", "--out={table}/nowhere/x"),
            r"--out=.*/table/nowhere/x\.png: ",
        ),
        (("figure3", "--workdir={run}"), "statistics.npz|checkpoint"),
        (
            ("curves", "--workdir={run}", "--out={table}/nowhere/x"),
            r"--out=.*/table/nowhere/x\.png: ",
        ),
        (
            ("curves", "--workdir={run}", "--config.eval.step=7"),
            "--config.eval.step=7: is for figure3 and figure4",
        ),
        (("effects", "--workdir={runs}"), "has no results.csv; give the workdir of a sweep"),
        (("effects", "--workdir={damaged}"), "is not a table of a sweep .could not convert"),
        (("effects", "--workdir={negative}"), "is not a table of a sweep .it has 0.01 ± -0.01"),
        (("effects", "--workdir={table}"), "no line of its table has a difference"),
        (("effects", "--workdir={other}"), "is not a table of a sweep"),
        (("effects", "--workdir={runs}", "--workdir={run}"), "takes one workdir; these are 2"),
    ],
)
def test_bad_input_is_named(flags, words, runs, tmp_path):
    places = {"folder": tmp_path, "runs": runs, "run": runs / "relu" / "seed-0"}
    header = "variant,top1_difference,top1_difference_error\n"
    for name, content in (
        ("table", header + "first,,\n"),
        ("damaged", header + "x,0.O1,\n"),
        ("negative", header + "x,0.01,-0.01\n"),
        ("other", "seed,error\n0,0.1\n"),
    ):
        places[name] = tmp_path / name
        places[name].mkdir()
        (places[name] / "results.csv").write_text(content)
    with pytest.raises(InputError, match=words) as error:
        figures.main([flag.format(**places) for flag in flags])
    assert len(str(error.value).splitlines()) == 1
