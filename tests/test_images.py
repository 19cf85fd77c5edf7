"""alexnet_jax/images.py: every kind of picture as the array that Pillow gives."""

import io
import struct
import zlib

import jax
import numpy as np
import pytest
from helpers import small_archives as small
from PIL import Image

from alexnet_jax.datasets import images

ODD = {name: content for name, content in small.odd_pictures().items() if name != "gzipped"}


@pytest.mark.parametrize("name", ODD)
def test_every_kind_is_what_pillow_makes_of_it(name):
    decoded = images.decode(ODD[name])
    expected = np.asarray(small.as_rgb(ODD[name]))
    assert decoded.dtype == np.uint8 and decoded.shape[:2] == expected.shape[:2]
    assert decoded.shape[2] == (1 if "grey" in name else 3)
    np.testing.assert_array_equal(np.broadcast_to(decoded, expected.shape), expected)


def test_cmyk_has_the_colours_that_were_meant():
    ink = Image.new("CMYK", (32, 32), (0, 255, 255, 0))  # red
    adobe = small.file_of(ink)
    plain = small.without_adobe_marker(small.file_of(Image.new("CMYK", (32, 32), (255, 0, 0, 255))))
    for content in (adobe, plain):
        np.testing.assert_allclose(images.decode(content)[16, 16], (255, 0, 0), atol=3)


def test_sixteen_bits_lose_the_lower_eight():
    values = np.random.default_rng(0).integers(0, 2**16, (9, 11)).astype(np.uint16)
    decoded = images.decode(small.file_of(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(decoded[..., 0], values >> 8)


def test_sixteen_bits_of_a_portable_graymap_too():
    values = np.random.default_rng(0).integers(0, 2**16, (9, 11)).astype(">u2")
    decoded = images.decode(b"P5 11 9 65535\n" + values.tobytes())
    np.testing.assert_array_equal(decoded[..., 0], values >> 8)


def test_a_line_of_pixels_is_refused_before_memory_is_taken():
    assert images.fit(np.zeros((1, 1000, 3), np.uint8), 8, 3).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="10000x1 pixels are too long"):
        images.fit(np.zeros((1, 10_000, 3), np.uint8), 256, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        small.file_of(small.photograph(0))[:-200],
        small.file_of(small.photograph(0), "PNG")[:-200],
        b"\xff\xd8\xff\xe0" + bytes(100),
    ],
    ids=["nothing", "a page", "JPEG cut short", "PNG cut short", "a JPEG's beginning"],
)
def test_what_is_no_picture_is_a_value_error_of_one_line(content):
    with pytest.raises(ValueError) as raised:
        images.decode(content)
    assert str(raised.value) and "\n" not in str(raised.value)


def test_a_picture_that_claims_a_giant_size_is_refused_before_memory_is_taken():
    giant = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = bytearray(small.file_of(small.photograph(0), "PNG"))
    png[12:33] = giant + struct.pack(">I", zlib.crc32(giant))
    jpeg = bytearray(small.file_of(small.photograph(0)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    for content in (bytes(png), bytes(jpeg)):
        with pytest.raises(ValueError, match="pixels"):
            images.decode(content)


def test_programs_outside_are_not_started_for_a_picture():
    eps = io.BytesIO()
    small.photograph(0).save(eps, "EPS")
    with pytest.raises(ValueError, match="not a picture"):
        images.decode(eps.getvalue())


def test_what_is_stored_is_jpeg_of_quality_95_with_all_its_colour():
    image = np.asarray(small.photograph(1, (256, 256)))
    with Image.open(io.BytesIO(images.encode(image))) as written:
        reference = Image.open(io.BytesIO(small.file_of(Image.fromarray(image), quality=95, subsampling=0)))
        assert written.quantization == reference.quantization
        assert [component[1:3] for component in written.layer] == [(1, 1)] * 3
        assert np.abs(np.asarray(written).astype(int) - image).mean() < 2


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1), ("L", 3), ("RGB", 1)])
@pytest.mark.parametrize("size", [(32, 32), (50, 40)])
def test_a_picture_is_decoded_into_a_batch(mode, channels, size):
    content = small.file_of(small.photograph(1, size, mode))
    batch = images.empty_batch(3, 32, channels)
    batch[:] = 7
    images.decode_into(batch[1], content)
    np.testing.assert_array_equal(batch[1], images.fit(images.decode(content), 32, channels))
    np.testing.assert_array_equal(batch[::2], 7)


def test_a_cpu_device_takes_a_batch_over_without_a_copy():
    for count in range(1, 6):
        batch = images.empty_batch(count, 28, 1)
        batch[:] = 3
        on_device = jax.device_put(batch, jax.devices()[0]).block_until_ready()
        assert on_device.unsafe_buffer_pointer() == batch.ctypes.data
