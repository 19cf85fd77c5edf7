"""alexnet_jax/datasets/matlab.py: structures of .mat files, against SciPy; damaged files."""

import contextlib
import io
import random

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from alexnet_jax.datasets import matlab

FIELDS = ("WNID", "words", "number", "count")
LIMIT = 1 << 20


def saved(**options) -> bytes:
    rows = [
        ("n00000001", "tench, Ähre 漢", 3, 1300),
        ("n00000002", "a" * 300, 70_000, 2**40),
        ("x", "y", -1, 0.5),
    ]
    synsets = np.zeros((len(rows), 1), [(name, object) for name in ("extra", *FIELDS)])
    for row, values in enumerate(rows):
        for name, value in zip(("extra", *FIELDS), ([], *values), strict=True):
            synsets[name][row, 0] = value
    file = io.BytesIO()
    savemat(file, {"first": np.ones((3, 4)), "synsets": synsets, "text": "abc"}, **options)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_structures_are_read_as_scipy_reads_them(compressed):
    content = saved(do_compression=compressed)
    theirs = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    ours = matlab.struct_array(content, "synsets", FIELDS, LIMIT)
    assert ours == [{name: row[name] for name in FIELDS} for row in theirs]


@pytest.mark.parametrize(
    "content, fields, limit, words",
    [
        (b"", FIELDS, LIMIT, "is no file of MATLAB"),
        (b"x" * 300, FIELDS, LIMIT, "is no file of MATLAB"),
        (saved()[:128], FIELDS, LIMIT, "has no structures synsets"),
        (saved()[:600], FIELDS, LIMIT, "is cut short"),
        (saved(), ("other",), LIMIT, "has no field other"),
        (saved(do_compression=True), FIELDS, 100, "unpacks to more than 100 bytes"),
    ],
)
def test_what_cannot_be_read_is_told(content, fields, limit, words):
    with pytest.raises(ValueError, match=words):
        matlab.struct_array(content, "synsets", fields, limit)


def test_a_damaged_file_raises_one_kind_of_error():
    """SciPy's reader ends the process for some, and takes any memory for others."""
    draw, content = random.Random(0), saved()
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 4))):
            at = draw.randrange(128, len(damaged))
            size = draw.choice((1, 4))
            damaged[at : at + size] = draw.choice((b"\xff" * size, b"\0" * size, draw.randbytes(size)))
        with contextlib.suppress(ValueError):
            matlab.struct_array(bytes(damaged), "synsets", FIELDS, LIMIT)
