"""What stops the program with one line instead of a traceback."""


class InputError(Exception):
    """Something the user gave cannot work. The message is one line: what, where, what to do. Exit code 2."""


class Diverged(Exception):
    """The loss, or a parameter, is no longer a finite number. Exit code 1."""


def first_line(error: Exception) -> str:
    """What another's exception says, for one line of ours; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
