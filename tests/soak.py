"""python tests/soak.py [--minutes=60] [--seed=N]

Trains quickstart in small, again and again, and disturbs every run several times at random moments: SIGKILL,
SIGTERM, a full disk, files cut short, read errors that pass. After each disturbance the same command is
started again. At the end a run must equal one that nobody disturbed: checkpoint, metrics and evaluation, to
the bit. Every start must end in time, with the right exit code and at most one `error:` line. What differs is
printed and its workdir kept in soak-failures/; the exit code is 1 then. The same seed draws the same
disturbances, but they meet the program elsewhere. Not a part of `make test`.

The disk is a tmpfs if this user may mount one; RLIMIT_FSIZE makes writes fail everywhere.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from helpers.runs import rows

ROOT = pathlib.Path(__file__).parent.parent
FAILURES = pathlib.Path("soak-failures")
LAST_STEP = 96  # three epochs of 32 steps
FLAGS = (
    "--config=configs/quickstart.py", "--config.num_epochs=3", "--config.checkpoint.every_steps=5",
    "--config.data.train_split=train[:2048]", "--config.data.val_split=train[59000:]",
    "--config.data.test_split=test[:500]", "--config.eval.views=1",
)  # fmt: skip
DISTURBANCES = ("SIGKILL", "SIGKILL", "SIGTERM", "full disk", "truncated file", "read error")
DONE = r"written to .*eval\.json$|is finished"
DISK, SECONDS = 64 << 20, 180  # bytes of the tmpfs; no start takes so long
# alexnet_jax.main, which prints a line a step. From the FIRST-th on, TIMES reads of one path in FOLDER fail.
CHILD = """
import errno, os, runpy, sys
first, times, folder, target = FIRST, TIMES, FOLDER, None

def hook(event, args):
    global first, times, target
    if event not in ("open", "os.listdir", "os.scandir") or not times:
        return
    if not str(args[0]).startswith(folder) or event == "open" and args[2] & (os.O_ACCMODE | os.O_CREAT):
        return
    first -= 1
    if first < 0 and target in (None, args[0]):
        target, times = args[0], times - 1
        code = (errno.EIO, errno.ESTALE)[times % 2]
        print("READ ERROR", target, flush=True)
        raise OSError(code, os.strerror(code), str(target))

sys.addaudithook(hook)
from alexnet_jax.workdirs import metrics
tick = metrics.Clock.tick
metrics.Clock.tick = lambda *args: (tick(*args), print("STEP", flush=True))
runpy.run_module("alexnet_jax.main", run_name="__main__")
"""


def start(folder: pathlib.Path, workdir: pathlib.Path, first: int = 0, times: int = 0) -> subprocess.Popen:
    """Start to train; stdout and stderr go to files in `folder`."""
    program = f"FIRST, TIMES, FOLDER = {first}, {times}, {str(folder)!r}\n{CHILD}"
    flags = *FLAGS, f"--config.data.dir={folder / 'data'}", f"--workdir={workdir}"
    env = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        return subprocess.Popen(
            [sys.executable, "-c", program, *flags], cwd=ROOT, env=env, stdout=out, stderr=err
        )


def steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())


def truncate(folder: pathlib.Path, workdir: pathlib.Path, draw: random.Random) -> set[int]:
    """Cut a file short; return the steps whose rows of metrics.jsonl are gone."""
    kind = draw.choice(("checkpoint", "checkpoint", "metrics", "cache"))
    saved, files = steps(workdir), []
    if kind == "metrics":
        files = list(workdir.glob("metrics.jsonl"))
        if files and b'"step": %d,' % LAST_STEP in files[0].read_bytes():  # no row is written again
            files = []
    elif kind == "cache":
        files = list(folder.glob("cache/*/*/*-cache"))
    elif len(saved) > 1:  # the only checkpoint is not to be replaced by a new start
        files = list((workdir / "checkpoints" / str(saved[-1])).rglob("*"))
    files = sorted(file for file in files if file.is_file() and file.stat().st_size)
    if not files:
        return set()
    file = draw.choice(files)
    content = file.read_bytes()
    size = draw.randrange(len(content))
    print(f"  cut to {size} of {len(content)} bytes: {file.relative_to(folder)}", flush=True)
    os.truncate(file, size)
    if file.name != "metrics.jsonl":
        return set()
    lost = content.split(b"\n")[content[:size].count(b"\n") : -1]  # the last may be cut already
    return {json.loads(line)["step"] for line in lost}


def resize(disk: pathlib.Path, size: int) -> bool:
    command = ["mount", "-o", f"remount,size={size}", str(disk)]
    return os.path.ismount(disk) and subprocess.run(command, capture_output=True).returncode == 0


def fill(disk: pathlib.Path, process: subprocess.Popen, draw: random.Random) -> None:
    """Leave little room on the disk, or let no file grow beyond some size."""
    room = draw.choice((0, 4096, 100_000, 1_000_000, 3_000_000))
    if draw.random() < 0.7:
        for _ in range(20):  # what is used grows meanwhile, and less cannot be set
            status = os.statvfs(disk)
            if resize(disk, max((status.f_blocks - status.f_bfree) * status.f_frsize + room, 4096)):
                return
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000 + room // 4, resource.RLIM_INFINITY))


def attempt(folder, disk, what: str, moment: float, draw: random.Random) -> list[str]:
    """Start once and disturb it; return what is wrong."""
    workdir = disk / "run"
    first, times = (draw.randrange(120), draw.choice((1, 1, 2, 9))) if what == "read error" else (0, 0)
    process, printed = start(folder, workdir, first, times), ""
    try:
        if what in ("SIGKILL", "SIGTERM", "full disk", "truncated file"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
        if what == "full disk":
            fill(disk, process, draw)
        elif what == "SIGTERM":
            process.terminate()
            printed = (folder / "out").read_text()
        elif what in ("SIGKILL", "truncated file"):
            process.kill()
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        return [f"still running after {SECONDS} s"]
    finally:
        process.kill()
        process.wait()
        resize(disk, DISK)
    out, err = ((folder / name).read_text() for name in ("out", "err"))
    lines = [line for line in err.splitlines() if line.strip()]
    told = len(lines) == 1 and lines[0].startswith("error: ")
    finished = re.search(DONE, out, re.MULTILINE)
    # SIGTERM ends Python before it has a handler, and while it ends. After the last batch it changes nothing:
    # the run is complete without another step. One may have been on its way to be printed.
    too_late = finished and out.count("STEP") <= printed.count("STEP") + 1
    allowed = {
        "SIGKILL": code == -signal.SIGKILL and not lines,
        "truncated file": code == -signal.SIGKILL and not lines,
        "SIGTERM": (code == -signal.SIGTERM and not lines and (finished or not out))
        or (code == 128 + signal.SIGTERM and (told or not lines)),  # in training the line is on stdout
        "full disk": code == 1 and told and bool(re.search("No space left|File too large", err)),
        "read error": code == 1 and told and "READ ERROR" in out and "Traceback" not in out,
    }
    if (code == 0 and not lines and (what != "SIGTERM" or too_late)) or allowed.get(what):
        return []
    return [f"exit code {code} and on stderr:\n{err}"]


def checkpoint(workdir: pathlib.Path, like: tuple | None = None) -> tuple:
    """Read the last checkpoint, in the form of another as training does: some files are not needed then."""
    folder, reader = workdir.resolve() / "checkpoints" / str(LAST_STEP), ocp.StandardCheckpointer()
    return tuple(
        jax.tree.map(np.asarray, reader.restore(folder / item, like and like[place]))
        for place, item in enumerate(("params", "rest"))
    )


def differences(workdir: pathlib.Path, reference: pathlib.Path, cut: set[int]) -> list[str]:
    """Compare two finished runs; rows of the steps `cut` may be missing."""
    wrong, found = [], rows(workdir)
    here = [row["step"] for row in found]
    wanted = [row for row in rows(reference) if row["step"] in here or row["step"] not in cut]
    if found != wanted:
        wrong.append(f"metrics.jsonl: {found}\ninstead of {wanted}")
    right = checkpoint(reference)
    if not all(map(np.array_equal, jax.tree.leaves(checkpoint(workdir, right)), jax.tree.leaves(right))):
        wrong.append(f"checkpoint {LAST_STEP}")
    ours, theirs = (json.loads((place / "eval.json").read_text()) for place in (workdir, reference))
    if ours != theirs:
        wrong.append(f"eval.json: {ours} instead of {theirs}")
    names = [str(path.relative_to(workdir)) for path in workdir.rglob("*")]
    wrong += [f"left over: {name}" for name in names if re.search(r"\.part|tmp", name)]
    return wrong + ["a traceback in train.log"] * ("Traceback" in (workdir / "train.log").read_text())


def round_of(
    folder, disk, reference, duration: float, draw: random.Random, count: collections.Counter
) -> None:
    """Disturb a run until it is finished, and count what happened."""
    workdir, cut, trained, wrong, done = disk / "run", set(), 0, [], []
    shutil.rmtree(workdir, ignore_errors=True)
    disturbances = [*draw.choices(DISTURBANCES, k=draw.randrange(2, 9)), "none"]
    for what in disturbances:
        damaged = len(list(workdir.glob("checkpoints/damaged-*")))
        wrong += attempt(folder, disk, what, draw.uniform(0, 1.1 * duration), draw)
        done.append(what)
        count[what] += 1
        out = (folder / "out").read_text()
        trained += out.count("STEP")
        if what == "truncated file":
            cut |= truncate(folder, workdir, draw)
        elif "truncated file" not in done and len(list(workdir.glob("checkpoints/damaged-*"))) > damaged:
            wrong.append("a checkpoint that nobody has cut short was put aside")
        if wrong:
            break
    if not wrong:
        try:
            wrong = differences(workdir, reference, cut)
        except Exception as error:  # a file that is missing or damaged, as another library says
            wrong = [f"{type(error).__name__}: {error}"]
        count["steps"] += trained - LAST_STEP
    count["runs"] += 1
    if wrong:
        count["losses"] += 1
        kept = FAILURES / f"{time.strftime('%H%M%S')}-{count['runs']}"
        shutil.copytree(workdir, kept / "run") if workdir.exists() else kept.mkdir(parents=True)
        for name in ("out", "err"):
            shutil.copy(folder / name, kept)
        print(
            f"run {count['runs']}, after {', '.join(done)}: " + "\n".join(wrong) + f"\nkept in {kept}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    given = parser.parse_args()
    draw, count = random.Random(given.seed), collections.Counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # not before the disk is gone
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        disk, reference = folder / "disk", folder / "reference"
        disk.mkdir()
        for place in (disk / "first", reference):  # the first prepares and compiles for all
            begin = time.monotonic()
            if start(folder, place).wait():
                print((folder / "err").read_text())
                return 1
        duration, end = time.monotonic() - begin, time.monotonic() + 60 * given.minutes
        shutil.rmtree(disk / "first")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(disk)]
        mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        print(f"seed {given.seed}; an undisturbed run takes {duration:.0f} s; tmpfs: {mounted}", flush=True)
        try:
            while time.monotonic() < end:
                round_of(folder, disk, reference, duration, draw, count)
                left = max(end - time.monotonic(), 0) / 60
                print(f"{count['runs']} runs, {count['losses']} losses, {left:.0f} minutes left", flush=True)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(disk)], check=True)
    kinds = {
        "SIGKILL": "kills", "SIGTERM": "SIGTERMs", "full disk": "full disks",
        "truncated file": "truncated files", "read error": "transient errors",
    }  # fmt: skip
    parts = [f"{count[kind]:,} {words}" for kind, words in kinds.items()]
    print(
        f"{count['runs']:,} runs finished, {', '.join(parts)}, {count['steps']:,} steps trained again,"
        f" {count['losses']:,} losses"
    )
    return int(count["losses"] > 0)


if __name__ == "__main__":
    sys.exit(main())
