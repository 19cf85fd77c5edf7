"""Several processes as one program, over loopback: the same run everywhere, lost machines, bad input."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest
from helpers import folders, programs
from helpers.runs import FEW_LAYERS, rows

from alexnet_jax import optimizer
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import abstract_state
from alexnet_jax.workdirs.checkpoint import Checkpoints
from alexnet_jax.workdirs.workdir import read_config

pytestmark = pytest.mark.program

ROOT = pathlib.Path(__file__).parent.parent
# Four steps an epoch.
TINY = (
    "--config=configs/quickstart.py",
    "--config.data.train_split=train[:256]",
    "--config.data.val_split=train[59800:]",
    "--config.data.test_split=test[:99]",
    "--config.batch_size=64",
    "--config.model.width=0.25",
    *FEW_LAYERS,
    "--config.eval.batch_size=100",
    "--config.eval.views=1",
    "--config.optimizer.plateau.patience=20",
)
# alexnet_jax.main, which also prints the loss and the checksum of each image of each step, as its devices
# hold them.
RECORDING = """
import runpy, zlib
import numpy as np
from alexnet_jax import train

batches, train_step = train.training_batches, train.make_train_step

def recording_batches(source, config, sharding, first, last):
    for step, (images, labels) in enumerate(batches(source, config, sharding, first, last), first + 1):
        for pixels, classes in zip(images.addressable_shards, labels.addressable_shards, strict=True):
            rows = range(*pixels.index[0].indices(len(images)))
            local = zip(rows, np.asarray(pixels.data), np.asarray(classes.data), strict=True)
            for row, image, label in local:
                print("IMAGE", step, row, zlib.crc32(image.tobytes()), label)
        yield images, labels

def recording_step(*args):
    step = train_step(*args)

    def run(state, *batch):
        number = int(state.step) + 1
        state, loss = step(state, *batch)
        print("LOSS", number, float(loss))
        return state, loss

    return run

train.training_batches, train.make_train_step = recording_batches, recording_step
runpy.run_module("alexnet_jax.main", run_name="__main__")
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def by_flags(number, process):
    return {}, ("--processes", number, "--process", process)


def as_slurm(number, process):
    """Where `srun` starts `number` tasks; JAX takes the port from the job's number."""
    return {
        "SLURM_JOB_ID": 4096 + os.getpid() % 4096, "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": number, "SLURM_PROCID": process, "SLURM_LOCALID": process,
    }, ()  # fmt: skip


def as_open_mpi(number, process):
    return {
        "OMPI_MCA_orte_hnp_uri": f"{(os.getpid() % 2048 + 2048) * 4096}.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": number, "OMPI_COMM_WORLD_RANK": process,
        "OMPI_COMM_WORLD_LOCAL_RANK": process,
    }, ()  # fmt: skip


@contextlib.contextmanager
def started(folder, number, *flags, program=("-m", "alexnet_jax.main"), launcher=by_flags, own=None):
    """Processes 0 to number - 1, which write FOLDER/I.out and FOLDER/I.err; at the end none is left.

    `own`: process -> flags of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    coordinator = f"--coordinator=127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        processes = []
        for process in range(number):
            environment, several = launcher(number, process)
            if launcher is by_flags:
                several = (coordinator, *several) if number > 1 else ()
            words = *program, *flags, *several, *(own or {}).get(process, ())
            out, err = (
                stack.enter_context(open(folder / f"{process}.{name}", "w")) for name in ("out", "err")
            )
            environment = {name: str(value) for name, value in environment.items()}
            processes.append(programs.start(*words, stdout=out, stderr=err, environment=environment))
            stack.callback(processes[-1].wait)
            stack.callback(processes[-1].kill)
        yield processes


def texts(folder, number, name):
    return [(folder / f"{process}.{name}").read_text() for process in range(number)]


def run(folder, number, *flags, code=0, timeout=240, **options):
    """What each of the finished processes wrote: a list of stdout, a list of stderr."""
    with started(folder, number, *flags, **options) as processes:
        limit = time.monotonic() + timeout
        codes = [process.wait(max(limit - time.monotonic(), 0.1)) for process in processes]
    out, err = texts(folder, number, "out"), texts(folder, number, "err")
    assert codes == [code] * number, "\n".join(out + err)
    return out, err


def tiny(data_dir, workdir, epochs):
    return *TINY, f"--config.num_epochs={epochs}", f"--config.data.dir={data_dir}", f"--workdir={workdir}"


# (processes, devices of each): flags and launcher.
PLACES = {
    (1, 1): (("--config.mesh.column=1",), by_flags),
    (1, 2): ((), lambda *who: as_slurm(*who)),  # one task: nothing is started
    (2, 1): ((), by_flags),
    (2, 2): (("--config.mesh.data=2",), as_slurm),
    (4, 1): ((), as_open_mpi),
}


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """{(processes, devices of each): (its workdir after two epochs, what its processes printed)}."""
    results = {}
    for (number, devices), (flags, launcher) in PLACES.items():
        folder = tmp_path_factory.mktemp(f"{number}x{devices}")
        out, _ = run(
            folder, number, *tiny(data_dir, folder / "run", 2), *flags,
            program=("-c", RECORDING), launcher=launcher,
        )  # fmt: skip
        results[number, devices] = folder / "run", out
    return results


def images_of(out):
    """{(step, row): all (checksum, label) that any device held}"""
    held = {}
    for line in re.findall(r"IMAGE (.*)", "\n".join(out)):
        step, row, *image = line.split()
        held.setdefault((int(step), int(row)), set()).add(tuple(image))
    return held


def losses_of(printed):
    return [float(loss) for _, loss in re.findall(r"LOSS (\d+) (\S+)", printed)]


@pytest.mark.parametrize("place", list(PLACES)[1:])
def test_every_number_of_processes_gives_the_same_run(runs, place):
    """The same batches bit for bit, the same losses to rounding."""
    (workdir, out), (reference, (alone,)) = runs[place], runs[1, 1]
    images = images_of([alone])
    assert len(images) == 8 * 64 and all(len(image) == 1 for image in images.values())
    assert images_of(out) == images
    want = losses_of(alone)
    assert len(want) == 8
    for printed in out:
        np.testing.assert_allclose(losses_of(printed), want, rtol=1e-5)
    for row, wanted in zip(rows(workdir), rows(reference), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    if place[0] * place[1] == 2:  # a column a device, on one process or two: not even rounding differs
        same_end(workdir, reference, 8)
    assert f"{max(place[0] * place[1] // 2, 1)} (data) x 2 (column) cpu devices" in out[0]


def params_at(workdir, step):
    config = read_config(workdir)
    config.mesh.update(data=1, column=1)
    shapes = abstract_state(config, make_mesh(config), optimizer.make(config)).params
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore_params(shapes, step)[1]


def same_end(one, other, step):
    for x, y in zip(*(jax.tree.leaves(params_at(workdir, step)) for workdir in (one, other)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert rows(one) == rows(other)


def test_process_0_alone_writes(runs):
    workdir, out = runs[4, 1]
    assert "epoch 1/2" in out[0] and not any("epoch" in printed for printed in out[1:])
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
    assert [row["step"] for row in rows(workdir)] == [4, 8]
    assert json.loads((workdir / "eval.json").read_text())["examples"] == 99
    assert (workdir / "train.log").read_text().count("epoch 2/2: ") == 1


def test_a_checkpoint_goes_on_on_any_other_number_of_processes(runs, data_dir, tmp_path):
    """Two devices to one, one process to two, four to one, two to one: a third epoch, the same everywhere."""
    found = {}
    for source, place in (((1, 2), (2, 1)), ((4, 1), (1, 1)), ((2, 1), (1, 2))):
        workdir = tmp_path / f"{source}" / "run"
        shutil.copytree(runs[source][0], workdir)
        out, _ = run(workdir.parent, place[0], *tiny(data_dir, workdir, 3), *PLACES[place][0])
        assert "steps 9 to 12" in out[0]
        found[source] = rows(workdir)
        assert [row["step"] for row in found[source]] == [4, 8, 12]
    assert found[1, 2] == found[2, 1]
    assert found[4, 1][-1] == pytest.approx(found[2, 1][-1], rel=1e-4)


def steps(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()}


def wait_for(condition, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def error_line(text):
    """Our own line on stderr; XLA and TensorFlow may write others, but no traceback."""
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


LAST_STEP = 64


def test_a_lost_or_stopped_process_ends_the_others_and_the_run_goes_on(data_dir, tmp_path):
    """SIGKILL of either of two, then SIGTERM to one, and the end is that of an undisturbed run."""
    workdir, longer = tmp_path / "disturbed", "--config.data.train_split=train[:1024]"  # 16 steps an epoch
    epochs = LAST_STEP // 16
    flags = *tiny(data_dir, workdir, epochs), longer, "--config.checkpoint.every_steps=5"
    for victim, first in ((1, 5), (0, 15)):
        with started(tmp_path, 2, *flags) as processes:
            wait_for(lambda first=first: max(steps(workdir), default=0) >= first)
            processes[victim].kill()
            killed = time.monotonic()
            code = processes[1 - victim].wait(60)
        assert code == 1 and time.monotonic() - killed < 60
        line = error_line(texts(tmp_path, 2, "err")[1 - victim])
        assert line.startswith("error: another process has ended,") and "last checkpoint" in line
    with started(tmp_path, 2, *flags) as processes:  # the coordinator no longer answers, as on a stuck host
        wait_for(lambda: max(steps(workdir), default=0) >= 20)
        processes[0].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        code = processes[1].wait(90)
        processes[0].kill()
    assert code == 1 and time.monotonic() - stopped < 80
    assert error_line(texts(tmp_path, 2, "err")[1]).startswith("error: another process has ended,")
    with started(tmp_path, 2, *flags) as processes:
        wait_for(lambda: max(steps(workdir), default=0) >= 30)
        processes[1].terminate()
        assert [process.wait(60) for process in processes] == [128 + signal.SIGTERM] * 2
    out, err = texts(tmp_path, 2, "out"), texts(tmp_path, 2, "err")
    assert not [line for line in "".join(err).splitlines() if line.startswith("error: ")]
    saved = max(steps(workdir))
    assert f"stopped by SIGTERM; step {saved} is saved" in out[0] and saved < LAST_STEP
    out, _ = run(tmp_path, 2, *flags, "--config.checkpoint.every_steps=0")
    assert f"steps {saved + 1} to {LAST_STEP}" in out[0]

    run(tmp_path, 1, *tiny(data_dir, tmp_path / "undisturbed", epochs), longer)
    same_end(workdir, tmp_path / "undisturbed", LAST_STEP)


# alexnet_jax.main, whose validations take long and print their batches.
SLOW = """
import runpy, time
from alexnet_jax import train

make_eval_step = train.make_eval_step

def make_slow(*args, **kwargs):
    evaluated = make_eval_step(*args, **kwargs)

    def run(*batch):
        print("BATCH", flush=True)
        time.sleep(2)
        return evaluated(*batch)

    return run

train.make_eval_step = make_slow
runpy.run_module("alexnet_jax.main", run_name="__main__")
"""


def test_a_stop_of_one_process_interrupts_a_validation_of_all(data_dir, tmp_path):
    workdir = tmp_path / "w"
    flags = *tiny(data_dir, workdir, 1), "--config.eval.batch_size=20"  # 10 batches of a validation
    with started(tmp_path, 2, *flags, program=("-c", SLOW)) as processes:
        wait_for(lambda: "BATCH" in (tmp_path / "0.out").read_text(), 240)
        processes[1].terminate()
        assert [process.wait(60) for process in processes] == [128 + signal.SIGTERM] * 2
    out, err = texts(tmp_path, 2, "out"), texts(tmp_path, 2, "err")
    assert not [line for line in "".join(err).splitlines() if line.startswith("error: ")]
    assert "stopped by SIGTERM; step 4 is saved" in out[0]
    assert out[0].count("BATCH") == out[1].count("BATCH") < 10
    assert not (workdir / "metrics.jsonl").exists()
    out, _ = run(tmp_path, 2, *flags)
    assert "devices: the validation of step 4, then no step" in out[0]
    assert [row["step"] for row in rows(workdir)] == [4]


# alexnet_jax.main, but one process cannot read the images of its third step. The other cannot answer for a
# while then, as one that holds the interpreter's lock.
UNREADABLE = """
import runpy, sys, time
from alexnet_jax import train
from alexnet_jax.runtime import processes
from alexnet_jax.runtime.errors import InputError

batches, processes.SHUTDOWN_SECONDS = train.training_batches, 2

def broken_batches(*args):
    for number, batch in enumerate(batches(*args), 1):
        if number == 3:
            if processes.index() == VICTIM:
                raise InputError("data.dir: cannot be read")
            sys.setswitchinterval(60)
            limit = time.monotonic() + 6
            while time.monotonic() < limit:
                pass
            sys.setswitchinterval(0.005)
        yield batch

train.training_batches = broken_batches
runpy.run_module("alexnet_jax.main", run_name="__main__")
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_bad_input_of_one_process_while_training_ends_all(data_dir, tmp_path, victim):
    """Each with one line, its own or that another has ended, and sooner than a silent one counts as lost."""
    program = "-c", UNREADABLE.replace("VICTIM", str(victim))
    with started(tmp_path, 2, *tiny(data_dir, tmp_path / "w", 1), program=program) as processes:
        wait_for(lambda: "error" in (tmp_path / f"{victim}.err").read_text(), 240)
        told = time.monotonic()
        codes = [process.wait(60) for process in processes]
        assert time.monotonic() - told < 25
    assert codes == [2 if process == victim else 1 for process in (0, 1)]  # and not XLA's abort
    err = texts(tmp_path, 2, "err")
    assert error_line(err[victim]) == "error: data.dir: cannot be read"
    assert error_line(err[1 - victim]).startswith("error: another process has ended,")


# alexnet_jax.main, but process 1 hangs in reading the images of its third step, as from a dead disk.
STUCK = """
import runpy, time
from alexnet_jax import train
from alexnet_jax.runtime import processes

batches = train.training_batches

def stuck_batches(*args):
    for number, batch in enumerate(batches(*args), 1):
        if number == 3:
            print("third step", flush=True)
            if processes.index() == 1:
                time.sleep(1000)
        yield batch

train.training_batches = stuck_batches
runpy.run_module("alexnet_jax.main", run_name="__main__")
"""


@pytest.mark.parametrize("end", ["SIGTERM", "watchdog"])
def test_a_stuck_process_ends_all(data_dir, tmp_path, end):
    """Its heart beats; the other waits for it in a collective, where no signal's handler in Python runs."""
    minutes = "--config.mesh.watchdog_minutes=" + ("0.1" if end == "watchdog" else "30")
    flags = *tiny(data_dir, tmp_path / "w", 1), minutes
    with started(tmp_path, 2, *flags, program=("-c", STUCK)) as processes:
        wait_for(lambda: all("third step" in out for out in texts(tmp_path, 2, "out")), 240)
        time.sleep(1)
        if end == "SIGTERM":
            processes[0].terminate()
        assert [process.wait(90) for process in processes] == [1, 1]
    lines = [error_line(text) for text in texts(tmp_path, 2, "err")]
    assert all(line.endswith("the run resumes from its last checkpoint") for line in lines)
    if end == "SIGTERM":
        assert lines[0].startswith("error: SIGTERM, and no further step for ")
        assert lines[1].startswith("error: another process has ended,")
    else:
        assert any(line.startswith("error: no step or batch for 0.1 minutes") for line in lines)


# alexnet_jax.main, but the folder of process 1 does not list the checkpoints yet.
LATE = """
import runpy
import orbax.checkpoint as ocp
from alexnet_jax.runtime import processes

manager = ocp.CheckpointManager
all_steps, latest_step = manager.all_steps, manager.latest_step
late = lambda: processes.index() == 1
manager.all_steps = lambda self, *args, **named: [] if late() else all_steps(self, *args, **named)
manager.latest_step = lambda self: None if late() else latest_step(self)
runpy.run_module("alexnet_jax.main", run_name="__main__")
"""


def test_all_processes_read_the_checkpoint_that_process_0_finds(runs, data_dir, tmp_path):
    """The latest one to go on from, and the best to be evaluated."""
    workdir = tmp_path / "w"
    shutil.copytree(runs[2, 1][0], workdir)
    (workdir / "eval.json").unlink()
    run(tmp_path, 2, *tiny(data_dir, workdir, 2), program=("-c", LATE))
    found = [json.loads((folder / "eval.json").read_text()) for folder in (workdir, runs[2, 1][0])]
    assert found[0] == found[1]


def refused(folder, number, *flags, **options):
    """The one line of each process that ended for bad input."""
    _, err = run(folder, number, *flags, timeout=120, **options)
    lines = [text.splitlines() for text in err]
    assert all(len(text) == 1 and text[0].startswith("error: ") for text in lines), err
    return [text[0] for text in lines]


def test_a_process_that_never_joins_is_waited_for_so_long_and_no_longer(data_dir, tmp_path):
    flags = *tiny(data_dir, tmp_path / "w", 1), "--join_seconds=3"
    port = free_port()
    several = f"--coordinator=127.0.0.1:{port}", "--processes=2"
    for process in (0, 1):
        (line,) = refused(tmp_path, 1, *flags, *several, f"--process={process}", code=1)
        assert f"127.0.0.1:{port}" in line and "2 processes" in line and "3 s" in line
        (announced,) = texts(tmp_path, 1, "out")
        assert (
            announced == f"process {process} of 2: joining at 127.0.0.1:{port}, waiting at most 3 s for all\n"
        )
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "flags, own, words",
    [
        ((), ("--config.seed=1",), ("seed", "disagree", "0 in process 0", "1 in process 1")),
        (("--config.mesh.column=1", "--config.mesh.data=1"), (), ("mesh: data x column is 1 x 1", "2 proc")),
        (("--config.mesh.data=2", "--config.batch_size=33"), (), ("batch_size: 33",)),
        (("--config.data.train_split=train[:0]",), (), ("data.train_split", "train[:0]")),
    ],
)
def test_bad_input_is_one_line_in_every_process(data_dir, tmp_path, flags, own, words):
    workdir = tmp_path / "w"
    for line in refused(tmp_path, 2, *tiny(data_dir, workdir, 1), *flags, own={1: own}, code=2):
        assert all(word in line for word in words), line
    assert not workdir.exists()


def test_processes_with_different_data_are_refused(tmp_path):
    """One picture differs."""
    folders.make(tmp_path / "0", ("a", "b"))
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    shutil.copy(tmp_path / "1/train/a/3.bmp", tmp_path / "1/train/a/4.bmp")
    flags = [f"--config.data.{part}" for part in ("name=folder", "train_split=train", "val_split=val",
             "test_split=val")]  # fmt: skip
    own = {process: (f"--config.data.dir={tmp_path / str(process)}",) for process in (0, 1)}
    few = "--config.model.num_classes=2", "--config.batch_size=8", "--config.eval.batch_size=8"
    workdir = tmp_path / "w"
    for line in refused(
        tmp_path, 2, "--config=configs/quickstart.py", *flags, *few, f"--workdir={workdir}", own=own, code=2
    ):
        assert line.startswith("error: the content of train: the processes disagree: "), line
    assert not workdir.exists()


def test_a_checkpoint_of_another_network_is_one_line_in_every_process(runs, data_dir, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(runs[2, 1][0], workdir)
    wider = "--config.model.layers.fc7.features=256"
    for line in refused(tmp_path, 2, *tiny(data_dir, workdir, 2), wider, code=2):
        assert "belongs to another configuration" in line and "fc7.features" in line


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--processes=2",), ("--coordinator, --process", "missing")),
        (("--coordinator=here", "--processes=2", "--process=0"), ("--coordinator=here", "HOST:PORT")),
        (("--coordinator=here:1", "--processes=2", "--process=2"), ("--process=2", "0 to 1")),
    ],
)
def test_bad_flags_of_processes_are_one_line(data_dir, tmp_path, flags, words):
    (line,) = refused(tmp_path, 1, *tiny(data_dir, tmp_path / "w", 1), *flags, code=2)
    assert all(word in line for word in words), line
