"""The command line of main.py and of experiments/: --config, its overrides, and mistakes in one line.

CONFIG, WORKDIR    the flags --config and --workdir
parser             reads the flags; a mistake is one line on stderr and exit code 2
fail               that line
Parser             argparse's, for commands that take no --config
check_writable     of a file that it will write
run                such a command
start_log          what is printed besides
"""

import argparse
import logging
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from alexnet_jax import config as configuration
from alexnet_jax.runtime.errors import InputError, first_line

log = logging.getLogger("alexnet_jax")


def fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


try:
    CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:ARG]")
except flags.Error as error:  # ml_collections reads the command line already here, --flagfile too
    fail(str(error), 2)
WORKDIR = flags.DEFINE_string("workdir", None, "the folder of the run; runs/NAME[-ARG] if left out")


def parser(usage: str, arguments: int = 0) -> Callable:
    """absl's parsing with its errors, and ml_collections', as one line and exit code 2.

    --help prints `usage`. `arguments` is how many there may be without --. The parser returns what absl's
    does: the name of the program, and these.
    """

    def parse(argv):
        if {"-h", "--help", "-help", "--helpfull", "--helpshort"} & set(argv):
            print(usage.strip())
            sys.exit(0)
        try:
            flags.FLAGS.set_gnu_getopt(bool(arguments))  # flags may follow them
            rest = flags.FLAGS(argv)
            if len(rest) > 1 + arguments:
                raise InputError(f"{rest[1 + arguments]!r}: is one argument without -- too many; see --help")
            if CONFIG.value is not None:
                CONFIG.value.items()  # raises here if the file could not be read
            return rest
        except InputError as error:
            fail(str(error), 2)
        except Exception as error:  # absl and ml_collections raise many kinds, and a config file any
            fail(_explain(argv, error), 2)

    return parse


def config_argument() -> str:
    """The value of --config as it was typed."""
    pairs = zip(sys.argv, [*sys.argv[1:], ""], strict=True)
    values = [
        arg.partition("=")[2] or following
        for arg, following in pairs
        if arg.lstrip("-").partition("=")[0] == "config"
    ]
    return values[-1] if values else ""


def _explain(argv, error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = lines[-1].strip() if lines else type(error).__name__
    path = config_argument().partition(":")[0]
    if path and not os.path.isfile(path):
        there = sorted(path.name for path in pathlib.Path("configs").glob("[a-z]*.py"))
        return f"--config={config_argument()}: there is no such file; configs/ has {', '.join(there)}"
    bad_value = re.match(r"flag --config\.(\S+?)=(.*?): ", message)
    if bad_value:
        field, value = bad_value.groups()
        return f"{field}: {value!r} does not work; {configuration.what_works(field)}"
    if message.startswith("flag --") and not message.startswith("flag --config="):
        return f"{message}; see --help"
    fields = [re.match(r"--?config\.([^=]+)", arg) for arg in argv]
    for field in (match[1] for match in fields if match):
        if not CONFIG.present and not config_argument():
            return f"--config.{field}: comes with --config=configs/NAME.py, which is missing"
        unknown = configuration.unknown(field)
        if unknown:
            return unknown
        if isinstance(error, AttributeError | KeyError):
            return f"{field}: there is no such field in {path}"
    if "Unknown command line flag" in message or "Missing value for flag" in message:
        return f"{message.rstrip(' ?')}; see --help"
    return f"--config={config_argument()}: {re.sub(r'^[A-Za-z]+Error: ', '', message)}"


class Parser(argparse.ArgumentParser):
    """--help prints `usage`. Raises InputError.

    With `overrides`, --config.FIELD=VALUE of workdirs are put into `overrides` of what it gives.
    """

    def __init__(self, usage: str, overrides: bool = False):
        super().__init__(add_help=False, allow_abbrev=False)
        self._usage, self._overrides = usage, overrides

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        if {"-h", "--help"} & set(arguments):
            print(self._usage.strip())
            sys.exit(0)
        overrides = [arg for arg in arguments if self._overrides and arg.startswith("--config.")]
        given = self.parse_intermixed_args([arg for arg in arguments if arg not in overrides])
        given.overrides = [arg.removeprefix("--config.") for arg in overrides]
        return given

    def error(self, message: str):
        raise InputError(f"{message}; see --help")


def check_writable(flag: str, path: str) -> None:
    """Before the work of which the file is the result. Raises InputError."""
    reason = "it is a folder" if os.path.isdir(path) else ""
    try:
        tempfile.TemporaryFile(dir=os.path.dirname(path) or ".").close()
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InputError(f"{flag}={path}: cannot be written ({reason}); give another")


def start_log() -> None:
    """Our own lines on stdout; of the libraries, errors only."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setLevel(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)


def run(main: Callable[[list[str]], int | None]) -> None:
    """`main` of this process's arguments; it gives the exit code, and an InputError is one line and 2."""
    start_log()
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        fail(str(error), 2)
    except OSError as error:  # a full disk, say
        fail(first_line(error), 1)
