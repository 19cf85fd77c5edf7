"""alexnet_jax/runtime/files.py: whole contents, whatever the system says of their size, and bounds."""

import os

import pytest

from alexnet_jax.runtime import files

CONTENT = bytes(range(256)) * 5


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) + 7])
def test_a_file_is_read_whole(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    assert files.read_file(tmp_path / "a", size) == content


@pytest.mark.parametrize("told", [0, 3, 1279, 1280, 1281, 9999])
@pytest.mark.parametrize("most", [1, 700, 1 << 20])
def test_a_file_is_read_to_its_end_in_whatever_parts_it_comes(tmp_path, monkeypatch, told, most):
    """A file that the system makes up has a size of 0; one that grows has more than it was told to have."""
    (tmp_path / "a").write_bytes(CONTENT)
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, most)))
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    assert files._read_regular(descriptor, told) == CONTENT
    os.close(descriptor)


def test_what_is_no_file_or_too_large_is_refused_and_closed(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    with pytest.raises(ValueError, match="more than 1,279 bytes"):
        files.read_file(tmp_path / "a", len(CONTENT) - 1)
    for path, kind in ((tmp_path, IsADirectoryError), (tmp_path / "b", FileNotFoundError)):
        with pytest.raises(kind) as error:
            files.read_file(path, 10)
        assert error.value.filename in (path, str(path))
    assert not before or os.listdir("/proc/self/fd") == before
