"""alexnet_jax/pretrained/formats.py: bounds of what is read; all else is in test_weights.py."""

import os
import zipfile

import pytest

from alexnet_jax.pretrained import formats
from alexnet_jax.runtime.errors import InputError


def refused(read) -> str:
    with pytest.raises(InputError) as raised:
        read()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def opened(path):
    with formats.opened(str(path), caffe=True):
        pass


def test_files_that_are_too_long_are_not_read(tmp_path):
    for name, start, size in (
        ("a.caffemodel", b"\x0a\x03net", 2**31),
        ("a.binaryproto", b"\x08\x01", 1 << 27),
    ):
        (tmp_path / name).write_bytes(start)
        os.truncate(tmp_path / name, size)
    assert "more than 2,147,483,647 bytes" in refused(lambda: opened(tmp_path / "a.caffemodel"))
    assert "more than 67,108,864 bytes" in refused(
        lambda: formats.caffe_blob(str(tmp_path / "a.binaryproto"))
    )


def test_an_archive_with_a_list_of_any_length_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for number in range(20_000):
            archive.writestr(f"a/data/{number}", "")
    assert "more than 1,048,576 bytes" in refused(lambda: opened(tmp_path / "a.pth"))
