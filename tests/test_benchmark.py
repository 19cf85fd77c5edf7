"""experiments/benchmark.py as its user runs it."""

import contextlib
import importlib
import json
import os
import pathlib
import sys
import time

import numpy as np
import pytest
from helpers import programs, small_archives
from helpers.networks import TWO_COLUMNS, assert_close, draw_views, draw_weights, our_activations

from alexnet_jax.runtime.errors import InputError
from configs import paper
from experiments import benchmark
from experiments.benchmarks import hosts, steps
from experiments.benchmarks.program import Program
from experiments.benchmarks.step_programs import ours, product, timed

ROOT = pathlib.Path(__file__).parent.parent
PAPER = "--config=configs/paper.py"


def run(*flags, code=0):
    """stdout and stderr of the finished program."""
    return programs.run("-m", "experiments.benchmark", *flags, code=code, timeout=120)


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


@pytest.mark.program
def test_input_measures_both_stores_beside_the_baselines(data, tmp_path):
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
    assert all(row["times_better_baseline"] > 0 for row in rows if row["what"] in ("raw", "jpeg"))
    assert os.listdir(tmp_path) == ["input.json"]


SMALL = (
    "--config=configs/quickstart.py",
    "--config.model.width=0.25",
    *(f"--config.model.layers.{layer}.enabled=False" for layer in ("conv3", "conv4", "fc6")),
    "--steps=2",
    "--rounds=1",
)
FACTS = {"compile_seconds", "first_step_seconds", "peak_memory_bytes", "fraction_of_product"}


@pytest.mark.program
def test_train_measures_variants_in_turn(tmp_path):
    path = tmp_path / "train.json"
    variants = ["mesh.column=1", "mesh.column=2,batch_size=6"]
    printed = run("train", *SMALL, "--batch=4", f"--variants={';'.join(variants)}", f"--json={path}")
    results = json.loads(path.read_text())
    assert {key: results[key] for key in ("what", "config", "steps", "rounds")} == {
        "what": "train", "config": "quickstart", "steps": 2, "rounds": 1
    }  # fmt: skip
    assert results["cpus"] >= 1 and {"jax", "jaxlib"} == set(results["versions"])
    assert results["product_flops_per_second"] > 1e8
    one, two = results["programs"]
    assert [one["name"], two["name"]] == variants
    assert [one["batch"], two["batch"]] == [4, 6]
    assert [one["mesh"], two["mesh"]] == [{"data": 1}, {"data": 1, "column": 2}]
    for row in (one, two):
        assert np.shape(row["seconds"]) == (1, 2)
        assert row["images_per_second"] == pytest.approx(row["batch"] / np.median(row["seconds"]), rel=1e-2)
        assert all(row[fact] > 0 for fact in FACTS)
        assert row["first_step_seconds"] > row["compile_seconds"]
    ratio = one["images_per_second"] / two["images_per_second"]
    assert two["first_over_this"] == {key: pytest.approx(ratio, rel=1e-2) for key in ("median", "min", "max")}
    assert "round 1/1" in printed and "0 s left" in printed


@pytest.mark.program
def test_infer_runs_beside_onnx_runtime(tmp_path):
    path = tmp_path / "infer.json"
    run("infer", PAPER, "--batch=1", "--steps=1", "--rounds=1", "--peer=onnxruntime", f"--json={path}")
    results = json.loads(path.read_text())
    ours, theirs = results["programs"]
    assert theirs["name"] == "onnxruntime" and theirs["threads"] == results["cpus"]
    assert theirs["batch"] == ours["batch"] == 1
    assert theirs["first_over_this"]["median"] > 0 and theirs["peak_memory_bytes"] > 0
    assert ours["flops_per_second"] == pytest.approx(ours["images_per_second"] * 2 * 724_406_816, rel=1e-2)
    assert "onnxruntime" in results["versions"]


def test_floating_point_operations_are_those_counted_by_hand():
    conv1 = 55 * 55 * 96 * 11 * 11 * 3
    others = (
        27 * 27 * 256 * 5 * 5 * 48
        + 13 * 13 * 384 * 3 * 3 * 256
        + 13 * 13 * 384 * 3 * 3 * 192
        + 13 * 13 * 256 * 3 * 3 * 192
        + 9216 * 4096
        + 4096 * 4096
        + 4096 * 1000
    )
    config = paper.get_config()
    assert steps.flop_per_image(config, "infer") == 2 * (conv1 + others)
    # Forward, and the gradients to the weights; those to the inputs of all but conv1.
    assert steps.flop_per_image(config, "train") == 4 * conv1 + 6 * others


def their_views(views):
    return np.ascontiguousarray(np.moveaxis(views, -1, 1))


def test_the_network_in_onnx_runtime_is_ours():
    baseline = importlib.import_module("experiments.benchmarks.onnx_baseline")
    assert baseline.SHAPES == TWO_COLUMNS
    weights, views = draw_weights(TWO_COLUMNS), draw_views("paper")
    (got,) = baseline.session(weights, 2).run(None, {"views": their_views(views)})
    logits = our_activations("paper", weights, views)["fc8"]
    assert_close({"": got}, {"": logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))})


def test_the_network_in_pytorch_is_ours():
    torch = pytest.importorskip("torch")
    baseline = importlib.import_module("experiments.benchmarks.torch_baseline")
    model = baseline.AlexNet().eval()
    assert sum(p.numel() for p in model.parameters()) == 60_965_224
    weights, views = draw_weights(TWO_COLUMNS), draw_views("paper")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.no_grad():
        got = model(torch.from_numpy(their_views(views))).numpy()
    assert_close({"": got}, {"": our_activations("paper", weights, views)["fc8"]})


@pytest.mark.parametrize("channels_last", [False, True])
def test_pytorch_takes_steps(channels_last):
    pytest.importorskip("torch")
    baseline = importlib.import_module("experiments.benchmarks.torch_baseline")
    for what in ("train", "infer"):
        step, facts = baseline.start(what, 1, False, channels_last, 1, "cpu")
        step()
        assert facts == {"threads": 1, "device": "cpu"}


def test_a_baseline_that_is_not_installed_is_left_out(monkeypatch, caplog):
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(steps.log, "propagate", True)
    with caplog.at_level("INFO"):
        assert not steps.can_run("torch", [("", paper.get_config())])
    assert caplog.messages == ["torch: left out, torch is not installed; pip install '.[oracle]'"]


@contextlib.contextmanager
def started(start, *arguments):
    program = Program("it", start, *arguments)
    yield program
    program.stop()
    assert not program._process.is_alive()


def power(base):
    return lambda exponent: base**exponent, {"environment": dict(os.environ)}


@pytest.mark.program
def test_a_program_takes_turns_with_huge_pages_and_without_caches(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    before = dict(os.environ)
    with started(power, 2) as program:
        environment = program.facts()["environment"]
        assert [program.turn(exponent) for exponent in (3, 5)] == [8, 32]
    assert (
        environment["JAX_ENABLE_COMPILATION_CACHE"] == environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    )
    assert environment["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] == "1"
    if sys.platform == "linux":
        assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert dict(os.environ) == before


@pytest.mark.program
def test_a_program_that_fails_is_one_line(capfd):
    with started(power, 0) as program:
        program.facts()
        with pytest.raises(ChildProcessError, match="^it: ZeroDivisionError: [^\n]*$"):
            program.turn(-1)
        with pytest.raises(ChildProcessError, match="^it: its process ended with exit code 0$"):
            program.turn(-1)
    with started(power) as program, pytest.raises(ChildProcessError, match="^it: TypeError: .* 'base'$"):
        program.facts()
    assert capfd.readouterr().err == ""


def slow():
    time.sleep(1)
    return None, {}


@pytest.mark.program
def test_a_program_that_is_stopped_while_it_starts_says_nothing(capfd):
    with started(slow):
        pass
    assert capfd.readouterr().err == ""


@pytest.mark.program
def test_a_program_that_is_killed_is_one_line():
    with started(timed, product, time.time()) as program:
        assert program.facts()["first_step_seconds"] > 0
        seconds, peak_memory = program.turn(2)
        assert peak_memory > 1e6 and np.shape(seconds) == (2,)
        program._process.kill()
        program._process.join()
        with pytest.raises(ChildProcessError, match="it: its process ended by signal 9; .*--batch"):
            program.turn(1)


@pytest.mark.program
def test_a_mesh_that_a_program_cannot_have_is_one_line():
    config = paper.get_config()
    config.mesh.data = 3
    with started(ours, "train", config) as program, pytest.raises(InputError, match="batch_size: 128 .* 3"):
        program.facts()


QUICK = "--config=configs/quickstart.py"


@pytest.mark.program
@pytest.mark.parametrize(
    "flags, words",
    [
        ((), ("WHAT: missing", "--help")),
        (("output", PAPER), ("'output'", "input")),
        (("train",), ("--config", "missing")),
        (("train", PAPER, "--rounds=-1"), ("--rounds", "at least 1, got '-1'")),
        (("train", PAPER, "--batch=-8"), ("--batch", "at least 1, got '-8'")),
        (("train", PAPER, "--seconds=1"), ("--seconds", "--steps")),
        (("train", PAPER, "--baseline=foo"), ("--baseline=foo", "torch")),
        (("train", PAPER, "--baseline=torch,onnxruntime"), ("--baseline=onnxruntime", "give torch")),
        (("infer", QUICK, "--peer=onnxruntime"), ("--baseline=onnxruntime", "configs/paper.py only")),
        (("input", PAPER, "--baseline=torch"), ("--baseline", "train")),
        (("input", PAPER, "--variants=seed=1"), ("--variants", "train")),
        (("train", QUICK, "--variants=mesh.colum=1"), ("--variants", "mesh.colum:", "mesh.column")),
        (("train", QUICK, "--variants=mesh.column"), ("--variants", "'mesh.column'", "FIELD=VALUE")),
        (("train", QUICK, "--variants=mesh.column=x"), ("--variants", "'x'", "1, 2")),
        (("train", QUICK, "--variants=seed=1;mesh.data=3"), ("--variants", "batch_size", "64", "3")),
        (("infer", PAPER, "--json={empty}/none/infer.json"), ("--json=", "none/infer.json", "No such file")),
        (("input",), ("--config", "missing")),
        (("input", "--config=configs/nope.py"), ("configs/nope.py", "paper.py")),
        (("input", PAPER, "--stepps=3"), ("stepps", "steps")),
        (("input", PAPER, "--workdir=x"), ("workdir",)),
        (("input", PAPER, "--steps=0"), ("--steps", "at least 1, got '0'")),
        (("input", PAPER, "--batch=many"), ("--batch", "got 'many'")),
        (("input", PAPER, "--config.data.threds=1"), ("data.threds", "data.threads")),
        (("input", PAPER, "--json={empty}/none/input.json"), ("--json=", "none/input.json", "No such file")),
        (("input", PAPER, "--json=tests"), ("--json=tests", "folder")),
        (("input", PAPER, "--config.data.name=folder"), ("data.name", "folder")),
        (("input", PAPER, "--config.data.dir={empty}"), ("data.manual_dir",)),
    ],
)
def test_bad_input_is_named(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError) as error:
        benchmark.main([flag.format(empty=tmp_path) for flag in flags])
    message = str(error.value)
    assert len(message.splitlines()) == 1 and all(word in message for word in words), message


@pytest.mark.program
def test_bad_input_is_one_line_and_exit_code_2():
    assert run("train", code=2).startswith("error: --config: missing; give --config=configs/")


@pytest.mark.program
def test_hosts_read_every_image_once_at_the_rate_of_their_disks(data_dir):
    overrides = {
        "data.dir": data_dir,
        "data.store": "raw",
        "data.train_split": "train[:600]",
        "batch_size": 100,
    }
    result = hosts.measure("configs/quickstart.py", overrides, 2, rate=784 * 400)
    assert (result["read"], result["read_twice"], result["steps"]) == (600, 0, 6)
    for host in result["hosts"]:
        assert host["images"] == 300 and host["seconds"] >= 0.7
