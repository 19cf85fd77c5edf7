"""alexnet_jax/runtime/command_line.py: flags, their mistakes, --help, and what a program's exit code is."""

import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import Diverged, InputError, Unavailable

ROOT = pathlib.Path(__file__).parent.parent
SIGNALS = signal.SIGTERM, signal.SIGINT
DOC = "python -m program FILE...\n\nReads files, 100% of them."


def parser(**options):
    made = command_line.Parser(DOC, **options)
    made.add_argument("--mode", type=command_line.one_of("train", "eval"), default="train", help="what to do")
    made.add_argument("--steps", metavar="N", type=command_line.whole(1), help="steps of a turn")
    made.add_argument("--text", default="90%", help="any text")
    return made


@pytest.mark.parametrize(
    "arguments, config, overrides",
    [
        ([], None, {}),
        (["--config=a.py"], "a.py", {}),
        (["--config", "a.py:b"], "a.py:b", {}),
        (["--config=a.py", "--config=b.py"], "b.py", {}),
        (["--config.seed=1"], None, {"seed": "1"}),
        (["--config.seed", "1"], None, {"seed": "1"}),
        (["--config.seed", "-1"], None, {"seed": "-1"}),
        (["--config.seed=1", "--config=a.py", "--config.seed=2"], "a.py", {"seed": "2"}),
        (
            ["--config.a.b=x=y", "--config.c=", "--config.d=(1, 2)"],
            None,
            {"a.b": "x=y", "c": "", "d": "(1, 2)"},
        ),
        (["--config.FIELD=1"], None, {"FIELD": "1"}),
    ],
)
def test_the_configuration_and_its_overrides_are_given_as_they_were_typed(arguments, config, overrides):
    given = parser(config=True).parse(arguments)
    assert (given.config, given.overrides) == (config, overrides)


def test_flags_stand_before_between_and_after_arguments():
    made = parser(overrides=True)
    made.add_argument("files", nargs="+", metavar="FILE")
    given = made.parse(["a", "--mode=eval", "--config.x=1", "b", "--steps", "3", "--", "--c"])
    assert (given.files, given.mode, given.steps) == (["a", "b", "--c"], "eval", 3)
    assert given.overrides == {"x": "1"} and not hasattr(given, "config") and given.text == "90%"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--modee=eval"], "--modee: there is no such flag; did you mean --mode?; see --help"),
        (["--mod=eval"], "--mod: there is no such flag; did you mean --mode?; see --help"),
        (["-x"], "-x: there is no such flag; see --help"),
        (["--mode"], "--mode: its value is missing; see --help"),
        (["--config.seed"], "--config.seed: its value is missing; see --help"),
        (["--config.seed", "--mode=eval"], "--config.seed: its value is missing; see --help"),
        (["--mode=fly"], "--mode: expected one of train, eval, got 'fly'; see --help"),
        (["--steps=0"], "--steps: expected a whole number of at least 1, got '0'; see --help"),
        (["--steps=1.5"], "--steps: expected a whole number of at least 1, got '1.5'; see --help"),
        (["--steps="], "--steps: expected a whole number of at least 1, got ''; see --help"),
        (["x", "y"], "unexpected argument 'x'; see --help"),
        (["--mode=eval", "--steps=1", "x"], "unexpected argument 'x'; see --help"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    with pytest.raises(InputError) as error:
        parser(config=True).parse(arguments)
    assert str(error.value) == message


def test_what_is_required_and_what_takes_no_configuration():
    made = command_line.Parser(DOC)
    made.add_argument("--out", required=True)
    made.add_argument("files", nargs="+", metavar="FILE")
    for arguments, message in (
        ([], "--out: missing; see --help"),
        (["--out=x"], "FILE: missing; see --help"),
        (["--config=a.py", "a"], "--config: there is no such flag"),
        (["--config.seed=1", "a"], "--config.seed: there is no such flag"),
        (["--our=x", "a"], "--our: there is no such flag; did you mean --out?"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}"):
            made.parse(arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--mode=fly", "x", "--help"]])
def test_help_prints_the_docstring_and_the_flags_with_their_defaults(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parser(config=True).parse(arguments)
    printed, errors = capsys.readouterr()
    assert ended.value.code == 0 and not errors and printed.startswith(DOC)
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert (
        "--mode MODE what to do (default: train)" in lines and "--text TEXT any text (default: 90%)" in lines
    )
    assert "--steps N steps of a turn" in lines
    assert any(line.startswith("--config FILE[:ARG] ") for line in lines)
    assert any(line.startswith("--config.FIELD VALUE ") for line in lines)


@pytest.mark.parametrize(
    "content, value, message",
    [
        (None, "{path}", "--x={path}: there is no such file; {folder}/ has another.py"),
        (None, "", "--x=: there is no such file; {folder}/ has another.py"),
        ("def get(*a): return a", "{path}:b:c", ("a", "b:c")),
        ("def get(*a): return a", "{path}:", ("a",)),
        ("import os", "{path}", "--x={path}: cannot be used (KeyError: 'get')"),
        ("def get(a): pass", "{path}:b", "--x={path}:b: cannot be used (TypeError: get() takes 1 positional"),
        ("def get(a): raise ValueError('give c\\n!')", "{path}", "--x={path}: cannot be used (give c)"),
        ("def get(a): raise OSError", "{path}", "--x={path}: cannot be used (OSError: OSError)"),
        ("import nowhere_at_all", "{path}", "--x={path}: cannot be used (ModuleNotFoundError: No module"),
        ("get = ", "{path}", "--x={path}: cannot be used (SyntaxError: invalid syntax"),
    ],
)
def test_a_python_file_with_an_argument(content, value, message, tmp_path):
    (tmp_path / "another.py").write_text("def get(a): pass")
    (tmp_path / "helper.py").write_text("def other(a): pass")
    path = tmp_path / "file.py"
    if content is not None:
        path.write_text(content)
    value = value.format(path=path)
    if isinstance(message, tuple):
        assert command_line.call_file("--x", value, "get", "a", folder=str(tmp_path)) == message
        return
    with pytest.raises(InputError) as error:
        command_line.call_file("--x", value, "get", "a", folder=str(tmp_path))
    assert str(error.value).startswith(message.format(path=path, folder=tmp_path))


def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path):
    command_line.check_writable("--out", str(tmp_path / "new"))
    assert not list(tmp_path.iterdir())
    for path, reason in ((tmp_path, "it is a folder"), (tmp_path / "no" / "x", "No such file or directory")):
        with pytest.raises(InputError, match=rf"--out={path}: cannot be written \({reason}\); give another"):
            command_line.check_writable("--out", str(path))


@pytest.fixture
def loggers(monkeypatch):
    """Puts back what the start of a program sets up; signals are as in the foreground of a shell."""
    foreground = signal.SIG_DFL, signal.default_int_handler
    handlers_of_signals = dict(zip(SIGNALS, map(signal.signal, SIGNALS, foreground), strict=True))
    names = (None, "absl", "alexnet_jax")
    before = [
        (logger, logger.level, logger.propagate, list(logger.handlers))
        for logger in map(logging.getLogger, names)
    ]
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(command_line.atexit, "register", lambda *_: None)  # it would end this process
    yield
    for number, handler in handlers_of_signals.items():
        signal.signal(number, handler)
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@pytest.mark.parametrize(
    "outcome, code, line",
    [
        (None, None, ""),
        (3, 3, ""),
        (InputError("x: is wrong"), 2, "error: x: is wrong\n"),
        (Diverged("nan"), 1, "error: nan\n"),
        (Unavailable("x: not now"), 1, "error: x: not now\n"),
        (
            OSError(28, "No space left on device", "a/b"),
            1,
            "error: a/b: No space left on device; make room; the same command works then\n",
        ),
        (
            OSError(5, "Input/output error"),
            1,
            "error: Input/output error; try again; the same command works then\n",
        ),
        (
            OSError(2, "No such file or directory", "x\n\udcff"),
            1,
            "error: x\\x0a\\xff: No such file or directory\n",
        ),
        (
            MemoryError(),
            1,
            "error: out of memory; lower batch_size or eval.batch_size, or end other programs\n",
        ),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."),
            1,
            "error: out of memory; lower batch_size or eval.batch_size, or end other programs\n",
        ),
    ],
)
def test_a_program_ends_with_one_line_and_its_exit_code(outcome, code, line, monkeypatch, capsys, loggers):
    def main(arguments):
        assert arguments == ["--a", "b"]
        logging.getLogger("alexnet_jax").info("ours")
        logging.getLogger("alexnet_jax").debug("not shown")
        logging.getLogger("a_library").warning("theirs")
        logging.getLogger("absl").warning("absl's")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(sys, "argv", ["program", "--a", "b"])
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert ended.value.code == code
    assert capsys.readouterr() == ("ours\n", line)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_one_line_and_its_exit_code(number, monkeypatch, capsys, loggers):
    closed = []

    def main(arguments):
        try:
            os.kill(os.getpid(), number)
            pytest.fail("the program goes on")
        except Exception:
            pytest.fail("a handler of errors takes the signal for one")
        finally:
            closed.append(True)

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert ended.value.code == 128 + number and closed
    then = "saved files are complete, and the same command resumes from them"
    line = f"error: stopped by {number.name}; {then}\n"
    assert capsys.readouterr() == ("", line)
    assert {signal.getsignal(n) for n in SIGNALS} == {signal.SIG_DFL}  # a second one ends it at once


@pytest.mark.program
@pytest.mark.parametrize("number", SIGNALS)
def test_what_crashes_at_the_interpreters_end_does_not_change_a_signals_exit_code(number):
    """As XLA's threads do, which a signal leaves in a compilation. What atexit has is called all the same."""
    program = (
        "import atexit, os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # in the background it is ignored
        "from alexnet_jax.runtime import command_line\n"
        "class Late:\n    __del__ = lambda self, abort=os.abort: abort()\n"
        "late = Late()\n"
        "def main(arguments):\n"
        "    atexit.register(print, 'closed')\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "command_line.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + number, done.stderr
    assert done.stdout == "closed\n" and done.stderr.startswith(f"error: stopped by {number.name}; ")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_destructor_is_not_lost(number, monkeypatch, capsys, loggers):
    class Dropping:
        def __del__(self):
            os.kill(os.getpid(), number)

    def main(arguments):
        dropping = Dropping()
        del dropping
        time.sleep(5)
        pytest.fail("the program goes on")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err.startswith(f"error: stopped by {number.name}; ")


def test_a_signal_that_is_ignored_stays_so(monkeypatch, loggers):
    """As SIGINT in the background of a script."""

    def main(arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return 5

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert ended.value.code == 5


def test_another_error_keeps_its_page(monkeypatch, loggers):
    def main(arguments):
        raise KeyError(arguments[0])

    monkeypatch.setattr(sys, "argv", ["program", "a mistake of ours"])
    with pytest.raises(KeyError):
        command_line.run(main)


@pytest.mark.program
@pytest.mark.parametrize(
    "code, exit_code",
    [
        ("print('x' * 100_000)", 141),
        ("print('x', flush=True)", 141),
        ("print('x')", 141),
        ("log.info('x' * 100_000)", 0),  # a run goes on without its terminal
    ],
)
def test_a_reader_of_stdout_that_has_gone_ends_the_program_in_silence(code, exit_code):
    program = (
        "import logging, time; from alexnet_jax.runtime import command_line\n"
        "log = logging.getLogger('alexnet_jax')\n"
        "def main(arguments):\n"
        f"    time.sleep(0.5)\n    {code}\n"
        "command_line.run(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == exit_code


@pytest.mark.parametrize(
    "jax_version, given, level",
    [
        ("0.8.2", None, "3"),
        ("0.10.1", None, "3"),
        ("0.10.2", None, "2"),
        ("0.11.0rc1", None, "2"),
        ("0.12.0.1", None, "2"),
        ("0.8.2", "0", "0"),
    ],
)
def test_xla_logs_errors_unless_they_are_those_of_old_versions(jax_version, given, level, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", {"jax": jax_version}.get)
    monkeypatch.setattr(os, "environ", {"TF_CPP_MIN_LOG_LEVEL": given} if given else {})
    parser().parse(["--steps=1"])
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == level


@pytest.mark.program
def test_commands_may_be_imported_by_a_program_with_flags_of_its_own():
    program = (
        "from absl import app, flags\n"
        "flags.DEFINE_string('config', '', ''); flags.DEFINE_string('workdir', '', '')\n"
        "import alexnet_jax.predict, alexnet_jax.main, alexnet_jax.weights, alexnet_jax.train\n"
        "app.run(lambda _: print(flags.FLAGS.config, flags.FLAGS.workdir))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--config=mine", "--workdir=w"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "mine w\n"), done.stderr


COMMANDS = {
    "alexnet_jax.main": (
        "--config",
        "--mode",
        "--config.FIELD",
        "--workdir",
        "--coordinator",
        "--processes",
        "--process",
        "--join_seconds",
    ),
    "alexnet_jax.predict": ("--config.FIELD", "--workdir", "--figure", "IMAGE"),
    "alexnet_jax.features": ("--config.FIELD", "--workdir", "--layers", "--out", "--column", "SOURCE"),
    "alexnet_jax.weights": (
        "--config",
        "--config.FIELD",
        "--workdir",
        "--from",
        "--labels",
        "--mean",
        "COMMAND",
        "FILE",
    ),
    "experiments.linear_classifier": ("--layer", "--steps", "TRAIN", "VAL", "TEST"),
}
# Runs a module as a program, and then prints what it has imported.
RUN = """
import runpy, sys, warnings
sys.argv = [sys.argv[1], *sys.argv[2:]]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    slow = {"jax", "jaxlib", "flax", "orbax", "tensorflow", "tensorflow_datasets", "matplotlib"}
    print("imported:", *sorted(slow & sys.modules.keys()))
"""


@pytest.mark.program
@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_mistakes_of_each_command_are_told_at_once(command):
    flag = next(flag for flag in COMMANDS[command] if flag in ("--workdir", "--layer"))
    for flags, code in (("--help",), 0), ((f"{flag}x=1",), 2):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", RUN, command, *flags],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        *lines, imported = done.stdout.splitlines()
        assert imported == "imported:"
        if code == 0:
            assert not done.stderr and lines[0].startswith(f"python -m {command} ")
            listed = {
                line.split()[0] for line in lines[lines.index("options:") - 8 :] if line.startswith("  ")
            }
            assert set(COMMANDS[command]) <= listed
        else:
            message = f"error: {flag}x: there is no such flag; did you mean {flag}?; see --help\n"
            assert done.stderr == message


@pytest.mark.program
def test_a_mistake_in_a_field_is_told_at_once_and_without_warnings():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, "alexnet_jax.main", "--config=configs/quickstart.py",
         "--config.seed=x"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "imported:\n"
    assert done.stderr == "error: seed: expected a whole number from 0 to 2147483647, got 'x'\n"
