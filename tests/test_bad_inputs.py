"""Bad inputs of every command: each ends with one line on stderr and its exit code, and writes nothing.

Mistakes in the flags of main are in test_main.py, those of files of weights in test_weights.py.
"""

import importlib
import json
import os
import pathlib
import shutil
import sys

import pytest
from helpers import folders

from alexnet_jax import train
from alexnet_jax.datasets import statistics
from alexnet_jax.runtime import command_line

pytestmark = pytest.mark.program  # a run is trained for all

ROOT = pathlib.Path(__file__).parent.parent
Q = "--config=configs/quickstart.py"
DEEP = "[" * 100_000
ABLATIONS = "--sweep=experiments/sweeps/ablations.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run, `run`, copies of it that are damaged in one way each, and other files."""
    place = tmp_path_factory.mktemp("place")
    data = folders.make(place / "data", ["ant", "bee", "cow"])
    train.train(folders.config_of(data, 4), str(place / "run"))
    (place / "file").write_text("no folder\n")
    (place / "empty").mkdir()
    (place / "broken").symlink_to(place / "nowhere")
    (place / "text.png").write_text("no picture")

    def damaged(name, file, content):
        shutil.copytree(place / "run", place / name)
        if content is None:
            (place / name / file).unlink()
        else:
            (place / name / file).write_text(content)

    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((place / "run" / "config.json").read_text())
    result = json.loads((place / "run" / "eval.json").read_text())
    damaged("deep", "config.json", DEEP)
    damaged("list", "config.json", "[]")
    damaged("old", "config.json", json.dumps({"name": "quickstart"}))
    damaged("typed", "config.json", json.dumps(config | {"batch_size": "8"}))
    damaged("other", "config.json", json.dumps(config | {"model": config["model"] | {"num_classes": 2}}))
    damaged("size", "config.json", json.dumps(config | {"data": config["data"] | {"image_size": 30}}))
    damaged("half", "config.json", (place / "run" / "config.json").read_text()[:500])
    damaged("no config", "config.json", None)
    damaged("no statistics", "statistics.npz", None)
    damaged("text statistics", "statistics.npz", "text")
    damaged("null rows", "metrics.jsonl", json.dumps(rows[0] | {"val_top1_error": None}) + "\n")
    damaged("text rows", "metrics.jsonl", json.dumps(rows[0] | {"epoch": "1"}) + "\n")
    damaged("deep rows", "metrics.jsonl", DEEP + "\n")
    damaged("no rows", "metrics.jsonl", None)
    damaged("null eval", "eval.json", json.dumps(result | {"top1_error": None}))
    damaged("deep identity", "identity.json", DEEP)
    shutil.copytree(place / "run", place / "no checkpoints")
    shutil.rmtree(place / "no checkpoints" / "checkpoints")
    shutil.copytree(place / "run", place / "surrogate")
    arrays = statistics.load(place / "run" / "statistics.npz")
    names = arrays["label_names"].astype("U4")
    names.view("u4")[0] = 0x7FFFFFFF  # no character
    statistics.save(place / "surrogate" / "statistics.npz", arrays | {"label_names": names})
    return place


TABLE = [
    # command, arguments, exit code, words of the line
    ("alexnet_jax.main", f"{Q} --workdir=FILE", 2, "FILE: is a file; give a folder"),
    ("alexnet_jax.main", f"{Q} --workdir=FILE/below", 2, "FILE/below: cannot be written (Not a directory)"),
    ("alexnet_jax.main", f"{Q} --workdir=BROKEN", 2, "BROKEN: cannot be written (No such file or directory)"),
    ("alexnet_jax.main", f"{Q} --workdir=\udcff", 2, r"--workdir=\xff: is not UTF-8; rename it"),
    ("alexnet_jax.main", "--config=\udcff.py", 2, r"--config=\xff.py: is not UTF-8; rename it"),
    ("alexnet_jax.main", "--config=configs", 2, "--config=configs: there is no such file; configs/ has"),
    ("alexnet_jax.main", "--config=FILE", 2, "--config=FILE: cannot be used (SyntaxError"),
    ("alexnet_jax.main", f"{Q} --workdir=run --config.seed=1", 2, "run: belongs to another configuration"),
    ("alexnet_jax.main", f"{Q} --workdir=deep", 2, "config.json: is not a configuration (nested too deeply)"),
    ("alexnet_jax.main", f"{Q} --workdir=no+config", 2, "config.json: missing beside its checkpoints"),
    ("alexnet_jax.main", f"{Q} --config.eval.step=3", 2, "eval.step: 3 is for --mode=eval"),
    ("alexnet_jax.main", f"{Q} --config.data.name=folder --config.data.dir=EMPTY", 2, "has no folders of"),
    ("alexnet_jax.main", f"{Q} --config.data.name=folder --config.data.dir=nowhere", 2, "nowhere"),
    ("alexnet_jax.main", f"{Q} --mode=prepare --config.data.name=nothing", 2, "data.name"),
    ("alexnet_jax.main", f"{Q} --mode=describe --config.model.width=0.001", 2, "features"),
    ("alexnet_jax.main", f"{Q} --mode=describe --config.data.crop_size=4", 2, "crop_size"),
    ("alexnet_jax.main", f"{Q} --mode=describe --config.model.layers.conv1.then=('x',)", 2, "conv1.then"),
    ("alexnet_jax.main", f"{Q} --mode=describe --config.seed=1e9", 2, "seed: expected a whole number from 0"),
    ("alexnet_jax.main", f"{Q} --mode=describe --config.optimizer.learning_rate=nan", 2, "got nan"),
    ("alexnet_jax.main", f"{Q} --mode=describe --config.optimizer.drop_epochs=(2,1)", 2, "rising epochs"),
    ("alexnet_jax.main", "--mode=eval --workdir=EMPTY", 2, "EMPTY: has no config.json"),
    ("alexnet_jax.main", "--mode=eval --workdir=FILE", 2, "FILE: has no config.json"),
    ("alexnet_jax.main", "--mode=eval --workdir=BROKEN", 2, "BROKEN: has no config.json"),
    ("alexnet_jax.main", "--mode=eval --workdir=deep", 2, "config.json: is not a configuration"),
    ("alexnet_jax.main", "--mode=eval --workdir=list", 2, "config.json: is not a configuration"),
    ("alexnet_jax.main", "--mode=eval --workdir=half", 2, "config.json: is not a configuration"),
    ("alexnet_jax.main", "--mode=eval --workdir=old", 2, "missing from the configuration"),
    ("alexnet_jax.main", "--mode=eval --workdir=typed", 2, "batch_size: expected a whole number"),
    ("alexnet_jax.main", "--mode=eval --workdir=size", 2, "statistics.npz: is for 28x28x1 images"),
    ("alexnet_jax.main", "--mode=eval --workdir=other", 2, "images and 3 classes, but config.json"),
    ("alexnet_jax.main", "--mode=eval --workdir=no+statistics", 2, "statistics.npz: missing or damaged"),
    ("alexnet_jax.main", "--mode=eval --workdir=text+statistics", 2, "statistics.npz: missing or damaged"),
    ("alexnet_jax.main", "--mode=eval --workdir=no+checkpoints", 2, "no checkpoint that can be read"),
    ("alexnet_jax.main", "--mode=eval --workdir=run --config.eval.step=99", 2, "eval.step: 99 is not in"),
    ("alexnet_jax.main", "--mode=eval --workdir=run --config.eval.views=2", 2, "eval.views: expected one of"),
    ("alexnet_jax.main", "--mode=eval --workdir=run --config.data.dir=EMPTY", 2, "EMPTY"),
    ("alexnet_jax.main", "--mode=eval --workdir=deep+identity", 2, "identity.json: cannot be read"),
    ("alexnet_jax.predict", "--workdir=run", 2, "IMAGE: missing"),
    ("alexnet_jax.predict", "text.png", 2, "--workdir: missing"),
    ("alexnet_jax.predict", "--workdir=run text.png", 1, "text.png: cannot be read as a picture"),
    ("alexnet_jax.predict", "--workdir=run \udcff.png", 1, r"\xff.png: cannot be read as a picture"),
    ("alexnet_jax.predict", "--workdir=run EMPTY", 1, "EMPTY: cannot be read as a picture"),
    ("alexnet_jax.predict", "--workdir=\udcff text.png", 2, r"--workdir=\xff: is not UTF-8"),
    ("alexnet_jax.predict", "--workdir=run --figure=x.doc text.png", 2, "give a name that ends in .png"),
    ("alexnet_jax.predict", "--workdir=run --figure=no/x.png text.png", 2, "cannot be written"),
    ("alexnet_jax.predict", "--workdir=surrogate text.png", 2, "statistics.npz: missing or damaged"),
    ("alexnet_jax.predict", "--workdir=size text.png", 2, "statistics.npz: is for 28x28x1 images"),
    ("alexnet_jax.weights", "import nowhere.pth --from=torchvision --workdir=new", 2, "nowhere.pth"),
    ("alexnet_jax.weights", "import FILE --from=torchvision --workdir=new", 2, "FILE"),
    ("alexnet_jax.weights", "import EMPTY --from=torchvision --workdir=new", 2, "EMPTY"),
    ("alexnet_jax.weights", "import FILE --from=torchvision --workdir=run", 2, "run: is not empty"),
    ("alexnet_jax.weights", "export out.safetensors --workdir=EMPTY", 2, "EMPTY: has no config.json"),
    ("alexnet_jax.weights", "export out.safetensors --workdir=size", 2, "statistics.npz: is for 28x28x1"),
    ("alexnet_jax.weights", "export out.pth --workdir=run", 2, "out.pth: is not the name of a .safetensors"),
    ("alexnet_jax.weights", "export no/out.safetensors --workdir=run", 2, "cannot be written"),
    ("experiments.sweep", f"{Q} {ABLATIONS} --workdir=run", 2, "belongs to a run"),
    ("experiments.sweep", f"{Q} {ABLATIONS} --workdir=FILE", 2, "cannot be written"),
    ("experiments.sweep", f"{Q} --sweep=nowhere.py --workdir=new", 2, "--sweep=nowhere.py: there is no such"),
    ("experiments.sweep", f"{Q} {ABLATIONS} --workdir=new --config.seed=1", 2, "--config.seed"),
    ("experiments.figures", "curves --workdir=EMPTY", 2, "has no config.json"),
    ("experiments.figures", "curves --workdir=null+rows", 2, "line 1 is not a validation"),
    ("experiments.figures", "curves --workdir=text+rows", 2, "line 1 is not a validation"),
    ("experiments.figures", "curves --workdir=deep+rows", 2, "metrics.jsonl: line 1 is not a validation"),
    ("experiments.figures", "curves --workdir=no+rows", 2, "has no validation yet"),
    ("experiments.figures", "curves --workdir=run --out=no/x", 2, "--out=no/x.png: cannot be written"),
    ("experiments.figures", "figure3 --workdir=deep", 2, "is not a configuration"),
    ("experiments.report", "nowhere", 2, "nowhere: has no config.json"),
    ("experiments.report", "deep", 2, "is not a configuration"),
    ("experiments.ensemble", "run EMPTY", 2, "EMPTY: has no config.json"),
    ("experiments.ensemble", "run size", 2, "size: data.image_size is 30, but 28 in run"),
    ("experiments.ensemble", "size size", 2, "size/statistics.npz: is for 28x28x1 images"),
    ("experiments.ensemble", "run --out=no/x", 2, "--out=no/x: cannot be written"),
    ("experiments.benchmark", f"fly {Q}", 2, "expected one of train, infer, input"),
    ("experiments.benchmark", f"train {Q} --seconds=2", 2, "--seconds: is for input"),
    ("experiments.benchmark", f"train {Q} --variants=x", 2, "--variants: 'x' has no FIELD=VALUE"),
    ("experiments.shrink", "EMPTY new 8", 2, "EMPTY: has no files"),
    ("experiments.shrink", "data FILE 8", 2, "exists already; give a new folder"),
    ("experiments.shrink", "data new 0", 2, "expected a whole number of at least 1"),
]  # fmt: skip


@pytest.fixture
def start(place, monkeypatch, capsys):
    """Run a command in `place`; return its exit code, stdout and stderr."""
    monkeypatch.setattr(command_line, "start_log", lambda: None)
    monkeypatch.chdir(place)
    for name in ("configs", "experiments"):
        if not os.path.lexists(place / name):
            (place / name).symlink_to(ROOT / name)

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", [command, *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.run(importlib.import_module(command).main)
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize("command, text, code, words", TABLE, ids=lambda value: ascii(value)[:70])
def test_a_bad_input_is_one_line(start, place, command, text, code, words):
    def left():
        ignored = "train.log", ".lock"
        return {path for path in place.rglob("*") if path.name not in ignored}

    def full(line):
        return line.replace("FILE", "file").replace("EMPTY", "empty").replace("BROKEN", "broken")

    arguments = [full(argument).replace("+", " ") for argument in text.split(" ")]
    before = left()
    got, _, errors = start(command, *arguments)
    (line,) = errors.splitlines()
    assert got == code and line.startswith("error: ") and full(words) in line, errors
    assert left() <= before | {place / "new"}


def test_a_report_tells_what_cannot_be_shown(start, place):
    """The rest of the page is still of use."""
    for name, words in (("null rows", "line 1 is not a validation"), ("null eval", "errors and losses")):
        code, _, errors = start("experiments.report", name, f"--out={place / 'page.html'}")
        assert (code, errors) == (0, "") and words in (place / "page.html").read_text()
    (place / "page.html").unlink()
