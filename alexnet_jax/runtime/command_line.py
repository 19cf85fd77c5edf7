"""The command line of every command: flags, one-line errors for mistakes, --help and the log.

A command has this form:

    def main(arguments: list[str]) -> int | None:  # the exit code
        parser = command_line.Parser(__doc__, config=True)
        parser.add_argument("--steps", type=command_line.whole(1), default=5, help="steps per turn")
        given = parser.parse(arguments)
        config = configuration.load(given.config, given.overrides)

    if __name__ == "__main__":
        command_line.run(main)

--help prints the docstring and the flags with their defaults. Import slow modules inside functions, so that
--help and mistakes in flags are answered at once.
"""

import argparse
import atexit
import contextlib
import io
import logging
import os
import pathlib
import re
import runpy
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from absl import logging as absl_logging

from alexnet_jax.runtime.errors import (
    CLOSED_PIPE,
    InputError,
    Stopped,
    first_line,
    may_pass,
    nearest,
    one_line,
    printable,
)

log = logging.getLogger("alexnet_jax")

_AGAIN_SECONDS = 0.1  # delay before a dropped signal is sent again


class Parser(argparse.ArgumentParser):
    """Parse the flags of a command, written --flag=VALUE or --flag VALUE, and its arguments.

    `config` adds --config=FILE[:ARG]; `overrides`, which `config` implies, adds --config.FIELD=VALUE. The
    parser returns their texts as `config`, which may be None, and `overrides`, {FIELD: text}.
    """

    def __init__(self, doc: str, config: bool = False, overrides: bool = False):
        self._flags: list[str] = []
        super().__init__(
            usage=argparse.SUPPRESS,
            description=doc.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._overrides = config or overrides
        if config:
            self.add_argument("--config", metavar="FILE[:ARG]", help="the configuration, configs/NAME.py")
        if self._overrides:
            self._add_field("--config.FIELD")

    def add_argument(self, *names: str, **options) -> argparse.Action:
        """Add a flag or an argument as argparse does, and its default to its help."""
        action = super().add_argument(*names, **options)
        self._flags += action.option_strings
        shown = str(action.default) not in ("None", "False", "", argparse.SUPPRESS)
        if shown and action.help and action.option_strings:
            action.help += f" (default: {str(action.default).replace('%', '%%')})"
        return action

    def _add_field(self, name: str) -> None:
        text = "the value of a field, such as --config.batch_size=64"
        self.add_argument(
            name, action=_Override, dest="overrides", default=argparse.SUPPRESS, metavar="VALUE", help=text
        )

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Return the parsed arguments, and call quiet_xla.

        Print --help and exit, or raise InputError for a mistake.
        """
        flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
        if {"-h", "--help"} & set(flags):
            self.print_help()
            sys.exit(0)
        for name in dict.fromkeys(arg.partition("=")[0] for arg in flags):
            if self._overrides and name.startswith("--config.") and name not in self._flags:
                self._add_field(name)
            elif re.match("--?[a-zA-Z]", name) and name not in self._flags:
                raise InputError(f"{name}: there is no such flag{nearest(name, self._flags)}; see --help")
        given, rest = self.parse_known_intermixed_args(arguments, argparse.Namespace(overrides={}))
        if rest:
            raise InputError(f"unexpected argument {rest[0]!r}; see --help")
        for action in self._actions:
            value = getattr(given, action.dest, None)
            if action.option_strings and not _is_text(str(value)):
                raise InputError(
                    f"{action.option_strings[0]}={printable(str(value))}: is not UTF-8; rename it"
                )
        quiet_xla()
        return given

    def error(self, message: str) -> NoReturn:
        """Raise InputError with argparse's message in our form."""
        message = re.sub("^the following arguments are required: (.*)", r"\1: missing", message)
        message = re.sub("^argument ", "", message).replace("expected one argument", "its value is missing")
        raise InputError(f"{message}; see --help")


def _is_text(value: str) -> bool:
    """Return whether the value of a flag was UTF-8, as Orbax and JSON require."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Override(argparse.Action):
    def __call__(self, parser, namespace, value, option=None):
        del parser
        namespace.overrides[option.removeprefix("--config.")] = value


def one_of(*choices: str) -> Callable[[str], str]:
    """Return the `type` of a flag with these possible values."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(choices)}, got {text!r}")
        return text

    return read


def whole(least: int) -> Callable[[str], int]:
    """Return the `type` of a flag whose value is a whole number of at least `least`."""

    def read(text: str) -> int:
        if not re.fullmatch("-?[0-9]+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return read


def call_file(flag: str, value: str, function: str, *arguments, folder: str) -> Any:
    """Return function(*arguments[, ARG]) of the Python file named by `value`, FILE[:ARG].

    The error for a missing file lists those in `folder`. Raises InputError, which names `flag`.
    """
    path, _, argument = value.partition(":")
    if not os.path.isfile(path):
        own = f"def {function}("
        files = sorted(
            file.name for file in pathlib.Path(folder).glob("[a-z]*.py") if own in file.read_text()
        )
        there = f"; {folder}/ has {', '.join(files)}" if files else "; run from the clone"
        raise InputError(f"{flag}={value}: there is no such file{there}")
    try:
        return runpy.run_path(path)[function](*arguments, *[argument] * bool(argument))
    except Exception as error:  # the user's file may raise any exception
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise InputError(f"{flag}={value}: cannot be used ({kind}{first_line(error)})") from None


def check_writable(flag: str, path: str) -> None:
    """Raise InputError, before any work, if a result cannot be written to `path`, which `flag` gave."""
    reason = "it is a folder" if os.path.isdir(path) else ""
    error = _error_of_a_file_in(os.path.dirname(path) or ".")
    if error:
        reason = str(error.strerror)
    if reason:
        raise InputError(f"{flag}={path}: cannot be written ({reason}); give another")


def check_can_be_made(flag: str, folder: str) -> None:
    """Raise InputError, before any work, if `folder`, which `flag` gave, cannot be made for the results."""
    above = os.path.abspath(folder)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    error = _error_of_a_file_in(above)
    if error and not may_pass(error):
        raise InputError(f"{flag}={folder}: cannot be written ({error.strerror}); give another")


def _error_of_a_file_in(folder: str) -> OSError | None:
    """Return the error of creating a file in a folder, or None."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error
    return None


class _Output(logging.StreamHandler):
    """stdout. Lines are dropped once nobody reads them, so that a run continues without its terminal."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exception(), BrokenPipeError):
            super().handleError(record)


def quiet_xla() -> None:
    """Let XLA log errors only, unless the user has set its level. Call this before JAX is imported.

    With jax before 0.10.2, let it log fatal errors only: those versions report false errors whenever a CPU
    loads a program from the compilation cache.
    """
    import importlib.metadata  # takes 40 ms, which --help should not take

    numbers = re.findall(r"\d+", importlib.metadata.version("jax"))
    old = tuple(map(int, numbers[:3])) < (0, 10, 2)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if old else "2")


def start_log() -> None:
    """Print our own lines on stdout, and only errors of libraries on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may not be encodable
    handler = _Output(sys.stdout)
    handler.setLevel(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    logging.getLogger().setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.ERROR)


def fail(message: str, code: int) -> NoReturn:
    """End the program with one line on stderr."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a command with the arguments of this process, and exit with the result of `main`.

    Errors that `errors.one_line` knows are one line on stderr: InputError with exit code 2; Diverged, a full
    disk and other system errors with 1; SIGTERM and SIGINT with 128 plus their number. If the reader of
    stdout is gone, the exit code is 141, as for `cat`.
    """
    code_of_signal: list[int] = []
    atexit.register(_end_at_once, code_of_signal)  # registered first, so called last
    start_log()
    # An ignored signal, such as SIGINT in the background of a script, stays ignored.
    signals = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    for number in signals:
        signal.signal(number, _stop)
    sys.unraisablehook = _stop_again  # until this process ends
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        _end_output()
        sys.exit(CLOSED_PIPE)
    except SystemExit:
        _end_output()
        raise
    except Stopped as error:
        for number in signals:  # the next one ends the program at once, even while it closes files
            signal.signal(number, signal.SIG_DFL)
        code_of_signal.append(128 + error.signal)
        fail(f"{error}; saved files are complete, and the same command resumes from them", code_of_signal[0])
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        fail(*line)
    sys.exit(code)


def _end_at_once(code_of_signal: list[int]) -> None:
    """End the process if a signal has ended the program; otherwise return.

    A signal may interrupt a compilation of XLA, whose threads would crash, with another exit code, when the
    interpreter shuts down.
    """
    if code_of_signal:
        _end_output()
        os._exit(code_of_signal[0])


def _stop(number, frame) -> NoReturn:
    del frame
    raise Stopped(number)


def _stop_again(dropped) -> None:
    """Send the signal again a little later if Stopped was raised where Python drops exceptions.

    That happens in destructors and in callbacks of the garbage collector, such as JAX's.
    """
    if not isinstance(dropped.exc_value, Stopped):
        sys.__unraisablehook__(dropped)
        return
    timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), dropped.exc_value.signal))
    timer.daemon = True
    timer.start()


def _end_output() -> None:
    """Flush stdout, or drop its rest if the reader is gone: Python would print a traceback."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.close()
