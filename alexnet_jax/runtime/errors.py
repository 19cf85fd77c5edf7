"""Errors that stop the program with one line instead of a traceback.

InputError, Unavailable, Diverged   are raised by this package; their message is the line
one_line                            return the line and the exit code of these and of system errors
system_error, os_errors             find the system error behind an exception of a library
input_errors                        turn exceptions from reading or writing a file into InputError
"""

import contextlib
import difflib
import errno
import os
import re
import signal
from collections.abc import Iterator, Sequence


class InputError(Exception):
    """A mistake in the user's input. The message is one line: problem, place and remedy. Exit code 2."""

    exit_code = 2


class Unavailable(InputError):
    """The system cannot read or write a file now; the same command may work later. Exit code 1."""

    exit_code = 1


class UnreadableFiles(InputError):
    """Files of a data set are not pictures. `reasons` has the reason for each path, as from `printable`."""

    def __init__(self, reasons: dict[str, str]):
        """Take at least one file."""
        first, why = next(iter(reasons.items()))
        several = f"{len(reasons):,} files cannot be read as pictures, such as {first} ({why}); replace or"
        one = f"{first}: cannot be read as a picture ({why}); replace or remove it"
        super().__init__(one if len(reasons) == 1 else f"{several} remove them")
        self.reasons = reasons


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGINT: exit code 128 plus its number. Not an Exception, so that no library catches it."""

    def __init__(self, number: int):
        """Take the signal's number."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Diverged(Exception):
    """The loss, or a parameter, is no longer a finite number. Exit code 1."""

    exit_code = 1


CLOSED_PIPE = 128 + 13  # the exit code of a program that SIGPIPE ends
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# Errors of file systems, above all of networks, that may pass. None of them is about a file's content.
TRANSIENT = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "EINTR", "EAGAIN", "EBUSY", "ETIMEDOUT", "EREMOTEIO", "ENODEV", "ENXIO", "ENOTCONN",
        "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH",
        "ENFILE", "EMFILE", "ENOMEM",
    )
    if hasattr(errno, name)
}  # fmt: skip
_OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED.*out of memory|failed to allocate|Out of memory", re.IGNORECASE | re.DOTALL
)


def one_line(error: BaseException) -> tuple[str, int] | None:
    """Return the line for stderr and the exit code of this package's and system errors, None for others."""
    if isinstance(error, InputError | Diverged):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        path = (
            f"{printable(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
        )
        return f"{path}{reason(error)}{remedy(error)}", 1
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
        return "out of memory; lower batch_size or eval.batch_size, or end other programs", 1
    return None


def may_pass(error: OSError) -> bool:
    """Return whether the same call may work later: the disk is full, or the error is TRANSIENT."""
    return error.errno in _NO_ROOM or error.errno in TRANSIENT


def remedy(error: OSError, then: str = "the same command works then") -> str:
    """Return a remedy for a system error, such as '; make room; …', or ''."""
    if error.errno in _NO_ROOM:
        return f"; make room; {then}"
    if error.errno in _FORBIDDEN:
        return f"; check this user's permissions; {then}"
    return f"; try again; {then}" if error.errno in TRANSIENT else ""


def system_error(error: BaseException) -> OSError | None:
    """Return the system error behind an exception, for example one of Orbax, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen
        for code in (*_NO_ROOM, *_FORBIDDEN, *TRANSIENT):
            if os.strerror(code) in str(seen):  # tensorstore passes on only the text
                return OSError(code, os.strerror(code))
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Raise OSError, which names `path`, if a library fails within the block because of the system."""
    try:
        yield
    except InputError:  # about another file
        raise
    except Exception as error:  # Orbax and tensorstore have no common exception
        cause = system_error(error)
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror, path) from None


@contextlib.contextmanager
def input_errors(
    what: str, advice: str, kinds: tuple[type[Exception], ...] = (OSError, ValueError)
) -> Iterator[None]:
    """Raise InputError, "WHAT (REASON); ADVICE", for errors of these kinds in the block."""
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{what} ({reason(error)}); {advice}") from None


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason(error: BaseException) -> str:
    """Return why a file could not be read, without its path: the system's message, or the first line."""
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def printable(path: str | os.PathLike) -> str:
    """Return a path on one line of UTF-8; bytes that are not UTF-8 and control characters become escapes."""
    text = os.fspath(path)
    with contextlib.suppress(UnicodeEncodeError):  # for surrogates that stand for no byte
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = text.encode("utf-8", "backslashreplace").decode()
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", _escape, text)


def _escape(found: re.Match) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def some(names: Sequence[str]) -> str:
    """Return up to three names, quoted, and the number of the others."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def nearest(field: str, known) -> str:
    """Return '; did you mean X?' with the known name nearest to `field`, or ''."""
    last = field.rsplit(".", maxsplit=1)[-1]
    same_name = [name for name in known if name.split(".")[-1] == last]
    close = same_name or difflib.get_close_matches(field, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
