"""Runs and data sets in object stores, against moto's S3 on loopback."""

import asyncio
import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from unittest.mock import ANY

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import programs, runs
from helpers.arrays import assert_same_trees
from helpers.runs import rows

import alexnet_jax
from alexnet_jax.datasets import remote as remote_data
from alexnet_jax.datasets.remote import data_folder
from alexnet_jax.runtime import object_store, processes
from alexnet_jax.runtime.errors import InputError, Stopped, Unavailable
from alexnet_jax.workdirs import remote
from alexnet_jax.workdirs.remote import MARKER

WHY = "needs the extras storage and storage-test"
BUCKET = "s3://bucket"
# 16 steps an epoch, two epochs; a checkpoint every four steps.
SMALL = (
    *runs.SMALL,
    "--config.data.train_split=train[:1024]",
    "--config.checkpoint.every_steps=4",
)
LAST_STEP = 32
MARKED = f"checkpoints/4/{MARKER}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an S3 server, with an empty bucket."""
    pytest.importorskip("moto", reason=WHY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with open(tmp_path_factory.mktemp("moto") / "log", "w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                put = urllib.request.Request(f"{address}/bucket", method="PUT")
                urllib.request.urlopen(put, timeout=10).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def use_store(monkeypatch, tmp_path):
    """Use an S3 server at an address, with an empty cache."""
    pytest.importorskip("s3fs", reason=WHY)
    environment = {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }  # fmt: skip

    def use(address):
        for name, value in {**environment, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)

    yield use
    data_folder.cache_clear()


@pytest.fixture
def files(server, use_store):
    """A client of the server, with which the tests look into the store."""
    import s3fs

    use_store(server)
    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


def names(files, url):
    return {name.removeprefix(url.removeprefix("s3://") + "/") for name in files.find(url)}


def write(folder, content):
    """Write files, {name: text}."""
    for name, text in content.items():
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def texts(folder):
    """All files below a folder, {name: text}."""
    paths = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


@pytest.mark.program
def test_a_killed_run_ends_as_an_undisturbed_local_one(files, data_dir, tmp_path):
    local, url, data = tmp_path / "local", f"{BUCKET}/runs/a", f"{BUCKET}/data"
    files.put(f"{data_dir}/", f"{data}/", recursive=True)
    command = "-m", "alexnet_jax.main", *SMALL, f"--config.data.dir={data}", f"--workdir={url}"
    undisturbed = *command[:-2], f"--config.data.dir={data_dir}", f"--workdir={local}"
    with open(os.devnull, "w") as nowhere:
        program = programs.start(*command, stdout=nowhere, stderr=nowhere)
        reference = programs.start(*undisturbed, stdout=nowhere, stderr=nowhere)
    end = time.monotonic() + 100
    while not any(name.endswith(f"4/{MARKER}") for name in names(files, url)):
        assert time.monotonic() < end and program.poll() is None
        time.sleep(0.05)
    program.kill()
    assert program.wait() == -signal.SIGKILL
    assert f"checkpoints/{LAST_STEP}/{MARKER}" not in names(files, url)
    printed = programs.run(*command)
    assert reference.wait() == 0
    assert f"resuming {url} on" in printed and f"of {data}" not in printed

    assert ".lock" not in names(files, url)
    assert any(name.startswith("events.out.tfevents.") for name in names(files, url))
    fetched = tmp_path / "fetched"
    files.get(f"{url}/", f"{fetched}/", recursive=True)
    assert_same_trees(*(params_at(workdir) for workdir in (local, fetched)))
    assert rows(local) == rows(fetched)
    for name in ("eval.json", "identity.json"):
        assert (local / name).read_text() == (fetched / name).read_text()
    assert f"resuming {url}" in (fetched / "train.log").read_text()
    assert json.loads((fetched / "config.json").read_text())["data"]["dir"] == data

    evaluation = "--mode=eval", f"--workdir={url}", "--config.eval.views=1"
    assert f"written to {url}/eval.json" in programs.run("-m", "alexnet_jax.main", *evaluation)
    assert json.loads(files.cat(f"{url}/eval.json"))["views"] == 1
    net = alexnet_jax.load(url)
    assert_same_trees(net.params, alexnet_jax.load(local).params)


def params_at(workdir):
    folder = pathlib.Path(workdir) / "checkpoints" / str(LAST_STEP) / "params"
    return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(folder.resolve()))


def opened(url, folder):
    """The run in a store as a program starts with it, with its copy in `folder`; no lock is renewed."""
    folder.mkdir(exist_ok=True)
    mirror = remote._Mirror(object_store.Store("--workdir", url), str(folder))
    mirror._take()
    mirror.fetch()
    return mirror


def stopped(*_):
    raise RuntimeError


@pytest.mark.program
def test_an_interrupted_upload_is_ignored(files, monkeypatch, tmp_path):
    url = f"{BUCKET}/runs/interrupted"
    mirror = opened(url, tmp_path / "one")
    write(mirror.folder, {"metrics.jsonl": "row 1\n", "checkpoints/4/rest/a": "4", "x.part": "no"})
    mirror.push()
    write(
        mirror.folder, {"metrics.jsonl": "row 2\n", "checkpoints/8/rest/a": "8", "checkpoints/8/rest/b": "8"}
    )
    with monkeypatch.context() as context, pytest.raises(RuntimeError):
        context.setattr(object_store.Store, "write", stopped)  # the marker comes last
        mirror.push()
    assert {"checkpoints/8/rest/a", "checkpoints/8/rest/b"} < names(files, url)
    with remote.copied(url) as folder:
        assert not pathlib.Path(folder, "checkpoints/8").exists()

    files.pipe(f"{url}/checkpoints/2/rest/a", b"its deletion was interrupted")
    mirror = opened(url, tmp_path / "one")
    assert "checkpoints/2/rest/a" not in names(files, url)
    assert texts(mirror.folder) == {"metrics.jsonl": "row 2\n", "checkpoints/4/rest/a": "4", MARKED: ANY}
    write(mirror.folder, {"checkpoints/8/rest/a": "other"})
    mirror.push()
    assert f"checkpoints/8/{MARKER}" in names(files, url) and "checkpoints/8/rest/b" not in names(files, url)
    shutil.rmtree(f"{mirror.folder}/checkpoints/4")
    mirror.push()
    assert not any(name.startswith("checkpoints/4/") for name in names(files, url))


@pytest.mark.program
def test_checkpoints_that_are_here_are_not_fetched_again(files, monkeypatch, tmp_path):
    url = f"{BUCKET}/runs/again"
    mirror = opened(url, tmp_path / "one")
    write(mirror.folder, {"config.json": "{}", "checkpoints/4/rest/a": "4", "checkpoints/4/rest/b": "4"})
    mirror.push()
    write(mirror.folder, {"checkpoints/4/metrics/metrics": "0.5"})
    mirror.push()
    write(mirror.folder, {"checkpoints/4/rest/b": "cut short", "checkpoints/8/rest/a": "not in the store"})
    fetched, download = [], object_store.Store.download
    monkeypatch.setattr(
        object_store.Store, "download", lambda *given: fetched.extend(given[2]) or download(*given)
    )
    mirror = opened(url, tmp_path / "one")
    assert sorted(fetched) == [MARKED, "checkpoints/4/metrics/metrics", "checkpoints/4/rest/b", "config.json"]
    here = texts(mirror.folder)
    assert here.pop(MARKED)
    assert here == {
        "config.json": "{}", "checkpoints/4/rest/a": "4", "checkpoints/4/rest/b": "4",
        "checkpoints/4/metrics/metrics": "0.5",
    }  # fmt: skip


@pytest.mark.program
def test_one_program_trains_a_run(files, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "RENEWAL", 0.1)
    monkeypatch.setattr(remote, "PATIENCE", 1.0)
    url = f"{BUCKET}/runs/locked"
    first = opened(url, tmp_path / "one")
    with first.locked(), pytest.raises(InputError, match=r"process \d+ on .* trains there; wait"):
        opened(url, tmp_path / "two")
    assert names(files, url) == set()
    first = opened(url, tmp_path / "one")  # a killed program renews no more
    second = opened(url, tmp_path / "two")
    second.push()
    write(first.folder, {"metrics.jsonl": "of the first"})
    with pytest.raises(InputError, match="trains there now; end one"):
        first.push()
    assert names(files, url) == {".lock"}


@pytest.mark.program
def test_a_run_that_changes_while_it_is_copied_is_copied_again(files, monkeypatch):
    url, download = f"{BUCKET}/runs/changing", object_store.Store.download

    def change(step):
        names = "config.json", "metrics.jsonl", f"checkpoints/{step}/params/a", f"checkpoints/{step}/{MARKER}"
        for name in names:
            files.pipe(f"{url}/{name}", str(step).encode())

    def changing(self, folder, objects, *done):
        monkeypatch.setattr(object_store.Store, "download", download)
        first = dict(list(objects.items())[:2])
        self.download(folder, first, *done)
        files.rm(f"{url}/checkpoints/4", recursive=True)
        change(8)
        self.download(folder, {name: objects[name] for name in objects.keys() - first.keys()}, *done)

    change(4)
    monkeypatch.setattr(object_store.Store, "download", changing)
    with remote.copied(url) as folder:
        assert texts(folder) == {
            "config.json": "8", "metrics.jsonl": "8", "checkpoints/8/params/a": "8",
            f"checkpoints/8/{MARKER}": "8",
        }  # fmt: skip


@pytest.mark.program
def test_data_is_fetched_once_and_again_if_it_changes(files, caplog):
    url = f"{BUCKET}/small"

    def fetched(name=""):
        caplog.clear()
        data_folder.cache_clear()
        folder = data_folder(url, name)
        return texts(folder), [record.getMessage() for record in caplog.records]

    stored = {"a/1.0.0/x": "x", "a/1.0.0/y": "y", "ab/1.0.0/z": "z", "a/.hidden": "no"}
    for name, text in stored.items():
        files.pipe(f"{url}/{name}", text.encode())
    with caplog.at_level("INFO", "alexnet_jax"):
        line = f"fetching 2 files (0.0 kB) of {url}"
        assert fetched("a") == ({"a/1.0.0/x": "x", "a/1.0.0/y": "y"}, [line])
        assert fetched("a")[1] == []
        files.pipe(f"{url}/a/1.0.0/x", b"X")
        files.rm(f"{url}/a/1.0.0/y")
        assert fetched("a") == ({"a/1.0.0/x": "X"}, [line.replace("2 files", "1 file")])
        everything = {"a/1.0.0/x": "X", "ab/1.0.0/z": "z"}
        assert fetched()[0] == fetched("a")[0] == everything
    with pytest.raises(InputError, match="has no c; prepare it in a folder"):
        fetched("c")


def small_data(files, url, content):
    """Return the files of the local copy, after the data set in the store got this content."""
    data_folder.cache_clear()
    there = set(files.find(url))
    for name, text in content.items():
        files.pipe(f"{url}/{name}", text.encode())
    for path in there - {f"{url}/{name}".removeprefix("s3://") for name in content}:
        files.rm_file(path)
    return texts(data_folder(url))


@pytest.mark.program
def test_files_of_an_interrupted_download_are_fetched_again(files, monkeypatch):
    url, download = f"{BUCKET}/interrupted", object_store.Store.download
    assert small_data(files, url, {"x": "x", "y": "y"}) == {"x": "x", "y": "y"}

    def killed(self, folder, objects, done):
        download(self, folder, objects)
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as context, pytest.raises(Stopped):
        context.setattr(object_store.Store, "download", killed)
        small_data(files, url, {"x": "X", "y": "y", "z": "z"})
    assert small_data(files, url, {"x": "x", "y": "y"}) == {"x": "x", "y": "y"}


@pytest.mark.program
def test_data_that_another_program_reads_is_not_changed(files):
    url = f"{BUCKET}/shared"
    assert small_data(files, url, {"x": "x"}) == {"x": "x"}
    (used,) = pathlib.Path(os.environ["XDG_CACHE_HOME"]).rglob(".used")
    fcntl.flock(remote_data._used.pop(str(used.parent)), fcntl.LOCK_UN)
    with used.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert small_data(files, url, {"x": "x", "y": "y"}) == {"x": "x", "y": "y"}
        with pytest.raises(InputError, match="another program reads the copy"):
            small_data(files, url, {"x": "X", "y": "y"})
        with pytest.raises(BlockingIOError):  # now this program reads it
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert small_data(files, url, {"x": "X"}) == {"x": "X"}


@pytest.mark.parametrize(
    "url", ["s3://bucket", "s3://", "gs:///run", "http://host/run", "az://a/b", "s3://b/a?b", "s3://b/../a"]
)
def test_other_urls_are_refused(url, tmp_path):
    for use in (lambda: object_store.Store("--workdir", url), lambda: data_folder(url)):
        with pytest.raises(InputError, match="expected gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"):
            use()


def test_local_paths_are_no_urls(tmp_path):
    assert not any(map(object_store.is_url, ("runs/a", "/runs/a", "~/runs", "C:/runs", "s3:/run", tmp_path)))
    assert object_store.is_url("s3://bucket/run")


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"needs gcsfs; pip install 'alexnet_jax\[storage\]'"):
        object_store.Store("--workdir", "gs://bucket/run")


@pytest.mark.program
def test_a_missing_bucket_or_key_is_one_line(server, use_store, monkeypatch):
    use_store(server)
    for use in (remote.run_folder, remote.copied):
        with pytest.raises(InputError, match="the bucket does not exist"), use("s3://absent/run"):
            pass
    with pytest.raises(InputError, match="is empty or not there"), remote.copied(f"{BUCKET}/absent"):
        pass
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(InputError, match="access is denied"), remote.copied(f"{BUCKET}/absent"):
        pass


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("AWS_PROFILE", "absent", r"The config profile \(absent\) could not be found"),
        ("AWS_ENDPOINT_URL", "localhost", "Invalid endpoint: localhost"),
        ("AWS_DEFAULT_REGION", "a region", "Provided region_name 'a region' doesn't match"),
    ],
)
def test_wrong_settings_of_the_client_are_a_mistake(use_store, monkeypatch, name, value, reason):
    use_store("http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=rf"cannot be opened \({reason}.*\); check the URL") as raised:
        object_store.Store("--workdir", f"{BUCKET}/run").read("name")
    assert raised.value.exit_code == 2


def test_errors_are_reported_with_their_whole_text(use_store):
    use_store("http://127.0.0.1:1")
    store = object_store.Store("--workdir", f"{BUCKET}/run")
    for error, text, code in (
        (OSError("Forbidden: b/bucket/o\nno storage.objects.list"), "bucket/o no storage.objects.list", 2),
        (ValueError("Bad Request: b/B\nInvalid bucket name: 'B'"), "b/B Invalid bucket name: 'B'", 2),
        (OSError(errno.EINVAL, "The specified bucket is not valid."), "bucket is not valid", 2),
        (ExceptionGroup("", [ConnectionResetError()]), "connection reset error", 1),
        (TimeoutError(), "no answer in time", 1),
    ):
        line = store._explained(error)
        assert text in str(line) and line.exit_code == code
    full = OSError(errno.ENOSPC, "No space left on device")
    assert store._explained(full) is full


def test_a_signal_ends_the_work_of_the_client(use_store):
    use_store("http://127.0.0.1:1")
    store, ended = object_store.Store("--workdir", f"{BUCKET}/run"), threading.Event()

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    def stop(number, frame):
        raise Stopped(number)

    former = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Stopped):
            store._run(endless())
    finally:
        signal.signal(signal.SIGALRM, former)
    assert ended.wait(10)


def test_a_store_that_has_answered_is_asked_again(use_store):
    use_store("http://127.0.0.1:1")
    store, left = object_store.Store("--workdir", f"{BUCKET}/run"), [OSError(errno.EIO, "once")]

    async def answer():
        if left:
            raise left.pop()
        return "answer"

    with pytest.raises(Unavailable, match="once"):
        store._run(store._repeated(answer))
    assert store._run(store._repeated(answer)) == "answer"
    left.append(OSError(errno.EIO, "again"))
    assert store._run(store._repeated(answer)) == "answer"


def test_a_run_in_a_store_is_for_one_process(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    for use in (remote.run_folder, remote.copied):
        with pytest.raises(InputError, match="is for one process"), use(f"{BUCKET}/run"):
            pass


def test_a_store_that_does_not_answer_is_reported(use_store, monkeypatch):
    monkeypatch.setattr(object_store, "_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_store(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(Unavailable, match="does not answer as it should"):
            object_store.Store("--workdir", f"{BUCKET}/run").write("name", "text")
        assert time.monotonic() - began < 10


@pytest.mark.program
def test_local_runs_import_no_client():
    words = "import sys, alexnet_jax.main, alexnet_jax.train; print([*sys.modules])"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, cwd=programs.ROOT)
    assert done.returncode == 0
    assert not {"'s3fs'", "'gcsfs'", "'aiobotocore'"} & set(done.stdout.replace("]", ",").split())
