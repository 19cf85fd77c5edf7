"""experiments/benchmark.py as its user runs it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import small_archives

ROOT = pathlib.Path(__file__).parent.parent
PAPER = "--config=configs/paper.py"


def run(*flags, code=0):
    """stdout and stderr of the finished program."""
    command = [sys.executable, "-m", "experiments.benchmark", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The flags that name a small ILSVRC-2012, not prepared yet."""
    archives, folder = tmp_path_factory.mktemp("archives"), tmp_path_factory.mktemp("data")
    train = {
        wnid: [
            (f"{wnid}_{n}.JPEG", small_archives.file_of(small_archives.photograph(n, (300, 270))))
            for n in range(3)
        ]
        for wnid in small_archives.WORDS
    }
    val = [("n00000010", small_archives.file_of(small_archives.photograph(9)))]
    small_archives.make(archives, "2012", train, val)
    return PAPER, f"--config.data.manual_dir={archives}", f"--config.data.dir={folder}"


def test_input_measures_both_stores_beside_the_peers(data, tmp_path):
    path = tmp_path / "input.json"
    # --steps=3 with 4 images each is more than an epoch of 9.
    printed = run("input", *data, "--batch=4", "--steps=3", "--rounds=1", "--seconds=0", f"--json={path}")
    rows = json.loads(path.read_text())
    whats = {row["what"] for row in rows}
    assert {"raw", "jpeg", "tf.data"} <= whats <= {"raw", "jpeg", "tf.data", "torch"}
    assert "torch" in whats or "torch: left out, torch is not installed" in printed
    assert sorted((row["what"], row["workers"]) for row in rows) == sorted(
        (what, workers) for what in whats for workers in (1, 2)
    )
    assert all(row["images_per_second"] > 0 and len(row["rounds"]) == 1 for row in rows)
    assert all(row["times_better_peer"] > 0 for row in rows if row["what"] in ("raw", "jpeg"))
    assert os.listdir(tmp_path) == ["input.json"]


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), ("input",)),
        (("output", PAPER), ("'output'", "input")),
        (("input",), ("--config", "missing")),
        (("input", "--config=configs/nope.py"), ("configs/nope.py", "paper.py")),
        (("input", PAPER, "--stepps=3"), ("stepps", "steps")),
        (("input", PAPER, "--workdir=x"), ("workdir",)),
        (("input", PAPER, "--steps=0"), ("--steps=0", "positive")),
        (("input", PAPER, "--batch=many"), ("--batch=many",)),
        (("input", PAPER, "--config.data.threds=1"), ("data.threds", "data.threads")),
        (("input", PAPER, "--json=nowhere/input.json"), ("--json=nowhere/input.json", "No such file")),
        (("input", PAPER, "--json=tests"), ("--json=tests", "folder")),
        (("input", PAPER, "--config.data.name=folder"), ("data.name", "folder")),
        (("input", PAPER, "--config.data.dir={empty}"), ("data.manual_dir",)),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, words, tmp_path):
    flags = [flag.format(empty=tmp_path) for flag in flags]
    # TFDS announces a preparation on a line of its own.
    (line,) = [line for line in run(*flags, code=2).splitlines() if not line.startswith("Downloading")]
    assert line.startswith("error: ") and all(word in line for word in words), line
