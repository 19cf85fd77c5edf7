"""experiments/sweep.py and ensemble.py: which runs, their order, ends and restarts, the table."""

import csv
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from helpers import folders, programs
from helpers.sweeps import sweep_command

import alexnet_jax
from alexnet_jax import evaluate, table, train
from alexnet_jax.datasets import statistics
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs.metrics import FIELDS
from alexnet_jax.workdirs.workdir import config_of, read_config, read_result, write_config, write_result
from configs import paper, quickstart
from experiments import ensemble
from experiments.sweep import Sweep, _Progress, take
from experiments.sweeps import launchers
from experiments.sweeps.plan import Plan, Run, data_of, load_variants
from experiments.sweeps.variants import Ensemble, Variant

ROOT = pathlib.Path(__file__).parent.parent
SWEEPS = ROOT / "experiments" / "sweeps"
QUICKSTART = "--config=configs/quickstart.py"
ABLATIONS = (QUICKSTART, "--sweep=experiments/sweeps/ablations.py")
VARIANTS = [
    Variant("baseline", {}, "40.7 / 18.2 %"),
    Variant("tanh", {"model.activation": "tanh"}, "slower"),
    Ensemble("two", {"baseline": 2}, "38.1 / 16.4 %", {"eval.views": 1}),
]
# Instead of main.py and ensemble.py: counts its starts, and does as the file `do` beside its workdir says.
FAKE = """
import json, os, pathlib, sys, time
workdir = pathlib.Path(sys.argv[1])
with open(workdir / "starts", "a") as file:
    file.write("x")
do = workdir.parent / "do"
exec(do.read_text() if do.exists() else "")
result = {"split": "test", "views": 1, "step": 6, "examples": 100, "loss": 1.0}
result |= {"top1_error": float(sys.argv[2]), "top5_error": 0.125}
(workdir / "eval.json").write_text(json.dumps(result))
"""


def fake_plan(folder, seeds=2, variants=VARIANTS, config=None):
    config = config or quickstart.get_config()
    plan = Plan(variants, config, "configs/quickstart.py", {}, str(folder), seeds)
    replaced = {}
    for run in sorted(plan.runs, key=lambda run: len(run.needs)):
        error, slope = {"baseline": (0.25, 1), "tanh": (0.5, 3), "two": (0.125, 1)}[run.line]
        error += slope * run.seed / 64
        command = [sys.executable, "-c", FAKE, run.workdir, str(error)]
        needs = [replaced[need.name] for need in run.needs]
        replaced[run.name] = dataclasses.replace(run, command=command, needs=needs)
    plan.runs = list(replaced.values())
    return plan


def go(folder, jobs=2, launcher=None, **kwargs):
    sweep = Sweep(fake_plan(folder, **kwargs), str(folder), "title")
    sweep.go(launcher or launchers.Local(jobs), jobs)
    return sweep


def rows(folder):
    with open(folder / "results.csv") as file:
        return list(csv.DictReader(file))


def starts(folder):
    return {
        f"{path.parent.parent.name}/{path.parent.name}": len(path.read_text())
        for path in folder.glob("*/seed-*/starts")
    }


@pytest.fixture(autouse=True)
def handlers():
    """A sweep puts the handlers of signals back."""
    former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == former


def test_commands_are_those_of_main_with_the_variants_overrides_and_the_seed(tmp_path):
    given = {"num_epochs": 3, "data.train_split": "train[:10]"}
    plan = Plan(VARIANTS, quickstart.get_config(), "configs/quickstart.py", given, str(tmp_path), 1)
    by_name = {run.name: run for run in plan.runs}
    assert list(by_name) == ["baseline, seed 0", "tanh, seed 0", "two, seed 0", "baseline, seed 1"]
    assert by_name["tanh, seed 0"].command[1:] == [
        "-m", "alexnet_jax.main", "--config=configs/quickstart.py", "--config.num_epochs=3",
        "--config.data.train_split=train[:10]", "--config.model.activation=tanh", "--config.seed=0",
        f"--workdir={tmp_path}/tanh/seed-0",
    ]  # fmt: skip
    two = by_name["two, seed 0"]
    assert two.needs == [by_name["baseline, seed 0"], by_name["baseline, seed 1"]]
    assert two.command[2:] == [
        "experiments.ensemble", f"{tmp_path}/baseline/seed-0", f"{tmp_path}/baseline/seed-1",
        "--config.eval.views=1", f"--out={tmp_path}/two/seed-0/eval.json",
    ]  # fmt: skip


def test_seeds_may_start_at_another_number_than_0(tmp_path):
    config = quickstart.get_config()
    plan = Plan(VARIANTS[:2], config, "configs/quickstart.py", {}, str(tmp_path), 2, first_seed=8)
    assert [run.name for run in plan.runs] == [
        "baseline, seed 8", "tanh, seed 8", "baseline, seed 9", "tanh, seed 9",
    ]  # fmt: skip
    assert plan.runs[3].command[-2:] == ["--config.seed=9", f"--workdir={tmp_path}/tanh/seed-9"]
    with pytest.raises(InputError, match="--first_seed=8: ensembles"):
        Plan(VARIANTS, config, "configs/quickstart.py", {}, str(tmp_path), 2, first_seed=8)


def test_an_ensemble_looks_for_the_data_where_the_sweep_does(tmp_path):
    given = {"data.dir": "data", "num_epochs": 3}
    plan = Plan(VARIANTS, quickstart.get_config(), "configs/quickstart.py", given, str(tmp_path), 1)
    flags = plan.of_line("two")[0].command[5:-1]
    assert flags == ["--config.data.dir=data", "--config.eval.views=1"]
    assert plan.overrides["two"] == "2 of baseline --config.eval.views=1"


def test_every_sweep_of_the_paper_fits_its_networks(tmp_path):
    for file, config, config_file, runs in (
        ("ablations.py", paper.get_config("2010"), "configs/paper.py:2010", 16),
        ("ablations.py", quickstart.get_config(), "configs/quickstart.py", 16),
        ("table1.py", paper.get_config("2010"), "configs/paper.py:2010", 2),
        ("table2.py", paper.get_config(), "configs/paper.py", 6),
        (f"table2.py:{tmp_path}", paper.get_config(), "configs/paper.py", 5 + 1 + 2 + 2 + 1),
    ):
        variants = load_variants(f"{SWEEPS}/{file}", config)
        plan = Plan(variants, config, config_file, {}, str(tmp_path), 1)
        assert len(plan.runs) == runs and all(variant.paper for variant in variants)


def test_a_sweep_that_experiments_lacks_is_looked_for_in_sweeps():
    config = paper.get_config()
    for file in ("experiments/ablations.py:tanh", f"{SWEEPS.parent}/ablations.py:tanh"):
        assert [variant.name for variant in load_variants(file, config)] == ["tanh"]
    with pytest.raises(InputError) as error:
        load_variants("experiments/ablation.py", config)
    there = "experiments/sweeps/ has ablations.py, claims.py, figure1.py, precision.py, table1.py, table2.py"
    assert str(error.value) == f"--sweep=experiments/ablation.py: there is no such file; {there}"


def test_each_ablation_changes_what_its_name_says():
    layers = "model.layers."
    expected = {
        "baseline": {},
        "tanh": {"model.activation": "tanh"}
        | {f"{layers}{name}.bias": 0.0 for name in ("conv2", "conv4", "conv5", "fc6", "fc7")},
        "one GPU": {"model.columns": 1}
        | {f"{layers}conv{n}.features": maps for n, maps in enumerate((48, 128, 192, 192), 1)},
        "no normalisation": {"model.lrn.enabled": False},
        "no overlap in pooling": {"model.pool.size": 2},
        "no dropout": {"model.dropout_rate": 0.0},
        "no colour noise": {"augment.pca_std": 0.0},
        "no crops": {"augment.crop": False},
        "no flips": {"augment.flip": False},
        **{
            f"no {name}": {f"{layers}{name}.enabled": False}
            for name in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
        },
        "columns never meet": {"model.gather": False},
    }
    config = paper.get_config("2010")
    variants = load_variants(f"{SWEEPS}/ablations.py", config)
    assert {variant.name: variant.overrides for variant in variants} == expected
    some = load_variants(f"{SWEEPS}/ablations.py:no dropout,baseline", config)
    assert [variant.name for variant in some] == ["baseline", "no dropout"]
    with pytest.raises(InputError, match="no drpout: give names of baseline, tanh"):
        load_variants(f"{SWEEPS}/ablations.py:no drpout", config)
    config.update_from_flattened_dict(expected["one GPU"])
    assert sum(layer.parameters for layer in table.layer_table(config)) == 59_798_312  # #145-half's


def test_table2_tunes_what_was_pretrained_with_the_same_seed(tmp_path):
    variants = load_variants(f"{SWEEPS}/table2.py:{tmp_path}/autumn", paper.get_config())
    plan = Plan(variants, paper.get_config(), "configs/paper.py", {}, str(tmp_path), 1)
    (seven,) = plan.of_line("7 CNNs*")
    assert [need.name for need in seven.needs] == [
        *(f"1 CNN, seed {seed}" for seed in range(5)), "1 CNN*, seed 0", "1 CNN*, seed 1",
    ]  # fmt: skip
    tuned = seven.needs[-1]
    (first,) = tuned.needs
    assert first.name == "pre-training, seed 1" and "--config=configs/pretrain22k.py" in first.command
    assert "--config=configs/finetune.py" in tuned.command
    assert (
        f"--config.init_from={first.workdir}" in tuned.command
        and f"--config.data.dir={tmp_path}/autumn" in first.command
    )


@pytest.mark.parametrize(
    "listed, words",
    [
        ("[]", "lists nothing"),
        ("[V('a', {}, ''), V('a', {}, '')]", "two with one name"),
        ("[V('..', {}, '')]", "two with one name"),
        ("['a']", "its get_variants does not return a list of Variant and Ensemble"),
        ("None", "its get_variants does not return a list of Variant and Ensemble"),
        (
            "[V('a', {}, '', init_from='b'), V('b', {}, '', init_from='a')]",
            "a names 'b', which is not a network listed",
        ),
        (
            "[V('a', {}, ''), E('b', {'a': 2}, ''), E('c', {'b': 2}, '')]",
            "c names 'b', which is not a network listed",
        ),
        ("[V('a', None, '')]", "a: overrides are not {FIELD: VALUE}"),
        ("[V('a', {7: 1}, '')]", "a: overrides are not {FIELD: VALUE}"),
        ("1 / 0", "cannot be used (ZeroDivisionError: division by zero)"),
        ("[V('a', {}, ''), E('b', {}, '')]", "b: members are not {VARIANT: NUMBER OF SEEDS}"),
        ("[V('a', {}, ''), E('b', ['a'], '')]", "b: members are not"),
        ("[V('a', {}, ''), E('b', {'a': 0}, '')]", "b: members are not"),
        ("[V('a', {}, ''), E('b', {'a': '2'}, '')]", "b: members are not"),
        (
            "[V('a', {}, ''), E('b', {'a': 2}, '', {'eval.views': 3})]",
            "'b': eval.views: expected one of 1, 10",
        ),
        (
            "[V('a', {}, ''), V('b', {'data.name': 'x'}, ''), E('c', {'a': 1, 'b': 1}, '')]",
            "'c': its members",
        ),
        (
            "[V('a', {}, '', 'configs/no.py')]",
            "'a': --config=configs/no.py: there is no such file; configs/ has",
        ),
        ("[V('a', {'model.wdth': 1}, '')]", "'a': "),
    ],
)
def test_mistakes_in_a_sweeps_file_are_named(listed, words, tmp_path):
    (tmp_path / "sweep.py").write_text(
        "from experiments.sweeps.variants import Ensemble as E, Variant as V\n"
        f"def get_variants(config):\n    return {listed}\n"
    )
    config = quickstart.get_config()
    with pytest.raises(InputError) as error:
        variants = load_variants(f"{tmp_path}/sweep.py", config)
        Plan(variants, config, "configs/quickstart.py", {}, str(tmp_path), 1)
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.program
def test_the_table_has_means_deviations_and_differences(tmp_path):
    sweep = go(tmp_path)
    assert not sweep.failed
    baseline, tanh, two = rows(tmp_path)
    # Four seeds of the baseline, since two ensembles take two each.
    assert (
        baseline["variant"] == "baseline" and baseline["seeds"] == "4" and baseline["top1_difference"] == ""
    )
    assert float(baseline["top1_error"]) == pytest.approx(0.25 + 1.5 / 64, abs=1e-6)
    assert float(baseline["top1_std"]) == pytest.approx((5 / 3) ** 0.5 / 64, abs=1e-8)
    assert tanh["overrides"] == "--config.model.activation=tanh" and tanh["paper"] == "slower"
    # To the baseline of the same seed: 0.25 and 0.25 + 2/64.
    assert float(tanh["top1_difference"]) == pytest.approx(0.25 + 1 / 64, abs=1e-6)
    assert float(tanh["top1_difference_error"]) == pytest.approx(1 / 64, abs=1e-6)
    # To its own two networks: -0.125 - 0.5/64 and -0.125 - 1.5/64.
    assert two["seeds"] == "2" and float(two["top1_error"]) == pytest.approx(0.125 + 0.5 / 64, abs=1e-6)
    assert float(two["top1_difference"]) == pytest.approx(-0.125 - 1 / 64, abs=1e-6)
    assert float(two["top1_difference_error"]) == pytest.approx(0.5 / 64, abs=1e-6)
    markdown = (tmp_path / "results.md").read_text()
    assert "| tanh | 2 | 52.34 ± 3.31 | 12.50 ± 0.00 | +26.56 ± 1.56 | +0.00 ± 0.00 | slower |" in markdown
    assert "8 of 8 runs finished, 0 failed" in markdown


@pytest.mark.program
def test_what_is_finished_is_not_run_again_and_what_failed_is(tmp_path):
    (tmp_path / "baseline").mkdir(parents=True)
    (tmp_path / "baseline" / "do").write_text(
        "sys.exit('error: by intention') if workdir.name[-1] == '1' else 0"
    )
    sweep = go(tmp_path, seeds=1)
    # The ensemble of what failed fails; the rest goes on.
    assert sweep.failed == {"baseline, seed 1", "two, seed 0"}
    assert [(row["seeds"], row["failed"]) for row in rows(tmp_path)] == [("1", "1"), ("1", "0"), ("0", "1")]
    assert "| two | 0, 1 failed |  |  |  |  | 38.1 / 16.4 % |" in (tmp_path / "results.md").read_text()
    (tmp_path / "baseline" / "do").unlink()
    # An evaluation by hand does not change the table.
    (tmp_path / "tanh" / "seed-0" / "eval.json").write_text(json.dumps({"top1_error": 1, "top5_error": 1}))
    assert not go(tmp_path, seeds=1).failed
    assert starts(tmp_path) == {
        "baseline/seed-0": 1, "baseline/seed-1": 2, "tanh/seed-0": 1, "two/seed-0": 1,
    }  # fmt: skip
    assert float(rows(tmp_path)[1]["top1_error"]) == 0.5


@pytest.mark.program
def test_results_are_of_the_configuration_as_it_is_now(tmp_path):
    """The command alone does not tell: configs/NAME.py may have been edited since."""
    go(tmp_path, seeds=1)
    config = quickstart.get_config()
    assert all(run.result() for run in fake_plan(tmp_path, seeds=1).runs)
    config.optimizer.learning_rate = 0.5
    assert not any(run.result() for run in fake_plan(tmp_path, seeds=1, config=config).runs)


@pytest.mark.program
def test_more_seeds_are_added_to_those_there_are(tmp_path):
    for seeds in (1, 3, 2):
        go(tmp_path, seeds=seeds, variants=VARIANTS[:2])
        assert [row["seeds"] for row in rows(tmp_path)] == [str(seeds)] * 2
    assert starts(tmp_path) == {
        f"{name}/seed-{seed}": 1 for name in ("baseline", "tanh") for seed in range(3)
    }


@pytest.mark.program
def test_damaged_files_of_a_run_are_its_own_trouble(tmp_path):
    go(tmp_path, seeds=1, variants=VARIANTS[:2])
    (tmp_path / "results.csv").write_text("variant,over")
    (tmp_path / "tanh" / "seed-0" / "sweep.json").write_text("[]")
    shutil.rmtree(tmp_path / "baseline" / "seed-0")
    (tmp_path / "baseline" / "seed-0").write_text("a file, where a folder is wanted")
    assert go(tmp_path, seeds=1, variants=VARIANTS[:2]).failed == {"baseline, seed 0"}
    assert starts(tmp_path) == {"tanh/seed-0": 2}
    assert [row["seeds"] for row in rows(tmp_path)] == ["0", "1"]
    (tmp_path / "tanh" / "do").write_text("(workdir / 'eval.json').write_text('{}'); sys.exit(0)")
    (tmp_path / "tanh" / "seed-0" / "sweep.json").unlink()
    assert "tanh, seed 0" in go(tmp_path, seeds=1, variants=VARIANTS[:2]).failed


def test_one_sweep_at_a_time_and_none_in_the_workdir_of_a_run(tmp_path):
    folder = str(tmp_path / "w")
    with take(folder), pytest.raises(InputError, match="another sweep runs there"), take(folder):
        pass
    with take(folder):
        pass
    write_config(quickstart.get_config(), tmp_path)
    with pytest.raises(InputError, match="belongs to a run"), take(str(tmp_path)):
        pass


def test_the_time_left_is_of_the_epochs_that_are_still_to_come(tmp_path, monkeypatch, caplog):
    plan = fake_plan(tmp_path, seeds=1, variants=VARIANTS[:2])  # of 6 epochs each
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("experiments.sweep.log", logging.getLogger("test"))
    sweep = Sweep(plan, str(tmp_path), "title")
    progress = _Progress(sweep)
    for run in plan.runs:
        os.makedirs(run.workdir)
    sweep.failed.add("tanh, seed 0")  # its epochs will not come, and took no time
    (tmp_path / "baseline" / "seed-0" / "metrics.jsonl").write_text(
        2 * (json.dumps(dict.fromkeys(FIELDS, 1)) + "\n")
    )
    now[0] = 40.0
    with caplog.at_level("INFO"):
        progress.tell(plan.runs[:1], False)
    assert caplog.messages == ["1 of 2 runs ended, about 0:01:20 left; baseline, seed 0: epoch 2/6"]


@pytest.mark.program
def test_a_stop_lets_the_runs_save_and_starts_no_more(tmp_path):
    (tmp_path / "baseline").mkdir(parents=True)
    waits = "import signal; signal.signal(15, lambda *_: ((workdir / 'saved').touch(), sys.exit(143)));"
    tells = "(workdir / 'ready').touch(); time.sleep(60)"
    (tmp_path / "baseline" / "do").write_text(waits + tells)

    class Stops(launchers.Local):
        def _add(self, process):
            super()._add(process)
            while not (tmp_path / "baseline" / "seed-0" / "ready").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    sweep = go(tmp_path, jobs=1, launcher=Stops(1))
    assert sweep.stopped == signal.SIGTERM and not sweep.failed
    assert (tmp_path / "baseline" / "seed-0" / "saved").exists() and list(starts(tmp_path)) == [
        "baseline/seed-0"
    ]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPUs to give away")
@pytest.mark.parametrize("cpus", [1, 2, 5])
def test_runs_at_the_same_time_share_the_cpus(tmp_path, monkeypatch, cpus):
    machine, given = os.sched_getaffinity(0), []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, share: given.append(tuple(share)))
    go(tmp_path, jobs=2, variants=VARIANTS[:2])
    assert set(given) == {1: set(), 2: {(0,), (1,)}, 5: {(0, 1), (2, 3, 4)}}[cpus]
    monkeypatch.undo()
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(str(os.sched_getaffinity(0)))"
    run = Run("found", 0, str(tmp_path), [sys.executable, "-c", code, str(tmp_path / "found")], [])
    launcher = launchers.Local(len(machine))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(launcher.run, run).result() == 0
    assert (tmp_path / "found").read_text() == str({min(machine)}) and os.sched_getaffinity(0) == machine


@pytest.mark.program
@pytest.mark.parametrize(
    "given, found", [(None, "a=b:glibc.malloc.hugetlb=1"), ("0", "glibc.malloc.hugetlb=0")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="the variable is glibc's")
def test_runs_get_huge_pages_unless_the_user_has_decided(tmp_path, monkeypatch, given, found):
    monkeypatch.setenv("GLIBC_TUNABLES", f"glibc.malloc.hugetlb={given}" if given else "a=b")
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['GLIBC_TUNABLES'])"
    assert launchers.run_here([sys.executable, "-c", code, str(tmp_path / "found")], str(tmp_path)) == 0
    assert (tmp_path / "found").read_text() == found


@pytest.mark.program
def test_submitit_runs_the_same_commands(tmp_path):
    launcher = launchers.Submitit(str(tmp_path), {}, cluster="local", poll_seconds=0.05)
    (tmp_path / "tanh").mkdir()
    (tmp_path / "tanh" / "do").write_text("sys.exit('error: by intention')")
    sweep = go(tmp_path, jobs=2, launcher=launcher, seeds=1, variants=VARIANTS[:2])
    assert sweep.failed == {"tanh, seed 0"} and float(rows(tmp_path)[0]["top1_error"]) == 0.25


# A cluster of one machine, as far as submitit looks at it.
SLURM = {
    "sbatch": """#!/bin/bash
export SLURM_JOB_ID=$$ SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1
export SLURM_JOB_NODELIST=here
job=$(cat "$1")  # submitit renames the file
(bash -c "$job"; touch "{bin}/$$.ended") > /dev/null 2>&1 &
echo "Submitted batch job $$"
""",
    "srun": """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == *=* || $1 == --unbuffered ]] && shift || shift 2; done
exec "$@"
""",
    "sacct": """#!/bin/bash
echo "JobID|State|NodeList"
for id in "$@"; do
  [[ $id =~ ^[0-9]+$ ]] || continue
  [[ -e "{bin}/$id.ended" ]] && echo "$id|COMPLETED|here" || echo "$id|RUNNING|here"
done
""",
}


@pytest.mark.program
def test_slurm_jobs_outlive_the_sweep_and_are_found_again(tmp_path, monkeypatch):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in SLURM.items():
        (bin_folder / name).write_text(text.replace("{bin}", str(bin_folder)))
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    folder = tmp_path / "w"
    (folder / "baseline").mkdir(parents=True)
    (folder / "baseline" / "do").write_text("while not (workdir.parent / 'end').exists(): time.sleep(0.02)")
    plan = {"variants": VARIANTS[:1], "seeds": 1}

    with pytest.raises(InputError, match="--launcher=slurm: .*no_such"):
        launchers.Submitit(str(folder), {"no_such": 1})
    first = launchers.Submitit(str(folder), {"gpus_per_node": 1}, poll_seconds=0.05)

    def stop():
        while not starts(folder):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    sweep = go(folder, launcher=first, **plan)
    assert sweep.stopped == signal.SIGINT and not sweep.failed and rows(folder)[0]["seeds"] == "0"

    (folder / "baseline" / "end").touch()
    again = launchers.Submitit(str(folder), {"gpus_per_node": 1}, poll_seconds=0.05)
    assert not go(folder, launcher=again, **plan).failed
    assert rows(folder)[0]["seeds"] == "1" and starts(folder) == {"baseline/seed-0": 1}

    changed = quickstart.get_config()
    changed.num_epochs = 60
    assert not go(folder, launcher=again, config=changed, **plan).failed
    assert starts(folder) == {"baseline/seed-0": 2}


@pytest.mark.program
def test_a_sweep_killed_in_the_middle_ends_with_the_same_table(swept, data_dir, tmp_path):
    folder, printed = swept
    assert "3 of 3 runs ended" in printed and f"{folder}/results.md" in printed
    command = sweep_command(tmp_path, data_dir)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("w/*/seed-0/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "w" / "results.csv").read_text() == (folder / "results.csv").read_text()
    assert "resuming" in "".join(path.read_text() for path in tmp_path.glob("w/*/seed-0/console.log"))


@pytest.fixture
def small_sweep(tmp_path):
    """(folder of pictures, all variants but the first, run(): the sweep, and the lines that it started)."""
    folder = folders.make(tmp_path / "data", ["ant", "bee"])
    config = folders.config_of(folder, 2)
    _, *rest = variants = [
        Variant("first", {}, ""),
        Variant("tuned", {"init_layers": ("conv1",)}, "", init_from="first"),
        Variant("other", {"model.activation": "tanh"}, ""),
        Ensemble("both", {"first": 1, "other": 1}, ""),
    ]

    (tmp_path / "sweep").mkdir()

    def run(variants=variants, **changes):
        own = config.copy_and_resolve_references()
        own.update_from_flattened_dict(changes)
        plan = Plan(variants, own, "configs/quickstart.py", {}, str(tmp_path / "sweep"), 1, data_of)
        sweep, lines = Sweep(plan, str(tmp_path / "sweep"), "title"), []
        sweep.go(InProcess(own, lines), 1)
        assert not sweep.failed
        return sweep, lines

    return folder, rest, run


class InProcess:
    """A launcher that trains and evaluates in this process."""

    def __init__(self, config, started):
        self.config, self.started = config, started

    def run(self, run):
        self.started.append(run.line)
        if not run.config:
            write_result(ensemble.ensemble([need.workdir for need in run.needs], {}), run.workdir)
            return 0
        config = config_of(json.loads(run.config))
        config.init_from = "".join(need.workdir for need in run.needs)
        train.train(config, run.workdir)
        return 0


def renamed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.old-*"))


def test_a_sweep_makes_anew_what_changed_and_nothing_else(small_sweep, tmp_path, caplog):
    caplog.set_level(logging.INFO, "alexnet_jax")
    folder, rest, run = small_sweep
    assert sorted(run()[1]) == ["both", "first", "other", "tuned"]
    before = (tmp_path / "sweep" / "results.csv").read_text()
    assert run()[1] == [] and not renamed(tmp_path / "sweep")
    # The same data in another place.
    moved = {"data.dir": str(shutil.copytree(folder, tmp_path / "copy"))}
    run(**moved)
    assert not renamed(tmp_path / "sweep")
    assert (tmp_path / "sweep" / "results.csv").read_text() == before
    # Other pre-training: what started from it and what it is part of are made anew, and nothing else.
    old = read_result(str(tmp_path / "sweep/tuned/seed-0"))
    variants = [Variant("first", {"model.dropout_rate": 0.25}, ""), *rest]
    assert sorted(run(variants, **moved)[1]) == ["both", "first", "tuned"]
    kept = ["both/seed-0/eval.json.old-1", "first/seed-0.old-1", "tuned/seed-0.old-1"]
    assert renamed(tmp_path / "sweep") == kept and "is kept as" in caplog.text
    assert read_result(str(tmp_path / "sweep/tuned/seed-0.old-1")) == old


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_sweep_does_not_take_old_figures_for_those_of_other_data(small_sweep, tmp_path, split):
    folder, rest, run = small_sweep
    first = run()[0].results
    folders.picture(folder / split / "ant" / "0.bmp", np.random.default_rng(9), 1)
    second, started = run()
    assert sorted(started) == ["both", "first", "other", "tuned"]
    assert len([name for name in renamed(tmp_path / "sweep") if name.endswith("seed-0.old-1")]) == 3
    for name, result in second.results.items():
        assert result["fingerprint"] == first[name]["fingerprint"] or split == "val"
        assert result != first[name]


def test_an_ensemble_is_the_mean_of_the_softmax_outputs(swept, data_dir):
    folder, _ = swept
    result = json.loads((folder / "both" / "seed-0" / "eval.json").read_text())
    networks = [alexnet_jax.load(folder / name / "seed-0") for name in ("ReLU", "tanh")]
    images, labels = open_source(networks[0].config, "test_split").read(range(100))
    mean = np.mean([network.predict(images) for network in networks], axis=0)
    assert result["examples"] == 100 and result["views"] == 1 and len(result["steps"]) == 2
    assert result["top1_error"] == pytest.approx((mean.argmax(axis=1) != labels).mean())
    assert result["loss"] == pytest.approx(-np.log(mean[range(100), labels]).mean(), rel=1e-5)


@pytest.mark.program
def test_an_ensemble_matches_classes_by_name(swept, tmp_path, monkeypatch):
    """A network and the same one with its classes in another order are as good as the network alone."""
    workdir, other = swept[0] / "ReLU" / "seed-0", tmp_path / "other"
    shutil.copytree(workdir, other)
    (other / "identity.json").unlink()  # it has the fingerprint of the statistics
    order = np.random.default_rng(0).permutation(10)  # class i there is class order[i] here
    with np.load(workdir / "statistics.npz") as arrays:
        statistics.save(other / "statistics.npz", {**arrays, "label_names": arrays["label_names"][order]})
    stored_params = evaluate.stored_params

    def permuted(config, folder, mesh):
        step, params = stored_params(config, folder, mesh)
        if folder == str(other):
            params = params | {"fc8": jax.tree.map(lambda x: x[..., order], params["fc8"])}
        return step, params

    monkeypatch.setattr(evaluate, "stored_params", permuted)
    found, alone = ensemble.ensemble([str(workdir), str(other)], {}), read_result(workdir)
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert found["top1_error"] == pytest.approx(alone["top1_error"])


@pytest.mark.program
@pytest.mark.parametrize(
    "flags, words",
    [
        ((QUICKSTART,), "--sweep: missing"),
        ((QUICKSTART, "--sweep=README.md"), "README.md: cannot be used"),
        ((*ABLATIONS, "--config.model.width=0.3"), "model.width"),
        ((*ABLATIONS, "--config.seed=1"), "--seeds"),
        ((*ABLATIONS, "--launcher=slurm"), "--launcher=slurm"),
        ((*ABLATIONS, "--slurm=gpus_per_node=1"), "--slurm=gpus_per_node=1: comes with --launcher=slurm"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, words, tmp_path):
    (line,) = programs.run("-m", "experiments.sweep", *flags, f"--workdir={tmp_path}/w", code=2).splitlines()
    assert line.startswith("error: ") and words in line and not (tmp_path / "w" / "results.md").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), "--help"),
        (("{other}/nowhere",), "nowhere: has no config.json"),
        (("{relu}", "--config.eval.views=2"), "eval.views: expected one of 1, 10, got 2"),
        (("{relu}", "--config.eval.views=many"), "eval.views: expected one of 1, 10, got 'many'"),
        (("{relu}", "--config.model.width=1.0"), "model.width"),
        (("{relu}", "--config.data.dri=x"), "data.dir"),
        (("{relu}", "{other}"), "data.image_size is 64"),
        (("{relu}", "--out={other}/nowhere/x"), "/nowhere/x: cannot be written (No such file"),
    ],
)
def test_bad_input_of_an_ensemble_is_named(flags, words, swept, tmp_path):
    relu = swept[0] / "ReLU" / "seed-0"
    config = read_config(relu)
    config.data.image_size = 64
    write_config(config, tmp_path)
    shutil.copy(relu / "statistics.npz", tmp_path)
    with pytest.raises(InputError) as error:
        ensemble.main([flag.format(relu=relu, other=tmp_path) for flag in flags])
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1
