"""alexnet_jax/images.py: every kind of picture as the array that Pillow gives."""

import io
import os
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from helpers import small_archives as small
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from alexnet_jax.datasets import images
from alexnet_jax.runtime import files

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


def png(width: int, bits: int, kind: int, rows: list[bytes]) -> bytes:
    """Write a PNG of any depth, whose `kind` is 0 for grey, 2 for RGB, 4 and 6 for these with alpha."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def with_tag(tiff: bytes, tag: int, value: int) -> bytes:
    """Replace a number in the directory of a little-endian TIFF."""
    entry = re.search(re.escape(struct.pack("<H", tag)) + rb"[\x03\x04]\0\x01\0\0\0", tiff).end()
    return tiff[:entry] + struct.pack("<H", value) + tiff[entry + 2 :]


DEEP = np.random.default_rng(0).integers(0, 2**16, (9, 11)).astype(np.uint16)


@pytest.mark.parametrize(
    "content",
    [
        small.file_of(Image.fromarray(DEEP), "PNG"),
        small.file_of(Image.fromarray(DEEP), "TIFF"),
        small.file_of(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
        small.file_of(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
        with_tag(small.file_of(Image.fromarray(~DEEP), "TIFF"), 262, 0),
        b"P5 11 9 65535\n" + DEEP.astype(">u2").tobytes(),
        b"P2 11 9 65535\n" + " ".join(map(str, DEEP.ravel())).encode(),
        small.file_of(Image.fromarray(DEEP), "JPEG2000", irreversible=False),
    ],
    ids=[
        "PNG",
        "TIFF",
        "TIFF, LZW",
        "TIFF, big-endian",
        "TIFF, 0 is white",
        "PGM",
        "PGM in text",
        "JPEG 2000",
    ],
)
def test_sixteen_bits_lose_the_lower_eight(content):
    np.testing.assert_array_equal(images.decode(content)[..., 0], DEEP >> 8)


@pytest.mark.parametrize("kind, channels", [(2, 3), (4, 2), (6, 4)], ids=["RGB", "grey, alpha", "RGB, alpha"])
def test_sixteen_bits_of_colour_or_with_alpha_too(kind, channels):
    values = np.random.default_rng(1).integers(0, 2**16, (5, 7, channels)).astype(">u2")
    decoded = images.decode(png(7, 16, kind, [row.tobytes() for row in values]))
    expected = values[..., :3] >> 8 if channels > 2 else (values[..., :1] >> 8).repeat(3, axis=2)
    np.testing.assert_array_equal(decoded, expected)


def test_other_depths_are_scaled_to_eight_bits():
    codes = np.random.default_rng(2).integers(0, 2**12, (6, 8)).astype(np.uint16)
    first, second = codes[:, ::2], codes[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)
    tiff = small.file_of(Image.fromarray(packed.reshape(6, 12)), "TIFF")
    twelve = with_tag(with_tag(tiff, 256, 8), 258, 12)
    np.testing.assert_array_equal(images.decode(twelve)[..., 0], codes >> 4)
    # A graymap names its white, here 1000.
    graymap = b"P5 8 6 1000\n" + (codes % 1001).astype(">u2").tobytes()
    expected = np.round((codes % 1001) / 1000 * 65535).astype(int) >> 8
    np.testing.assert_array_equal(images.decode(graymap)[..., 0], expected)
    for bits in (1, 2, 4):
        content = png(8 // bits, bits, 0, [bytes([0b00011011])])
        levels = [0b00011011 >> (8 - bits - start) & (2**bits - 1) for start in range(0, 8, bits)]
        np.testing.assert_array_equal(
            images.decode(content)[0, :, 0], np.array(levels) * 255 // (2**bits - 1)
        )


@pytest.mark.parametrize(
    "content, kind",
    [
        (small.file_of(Image.new("I", (4, 4), 100_000), "TIFF"), r"32-bit signed integers \(TIFF\)"),
        (with_tag(small.file_of(Image.new("I", (4, 4)), "TIFF"), 339, 1), r"32-bit integers \(TIFF\)"),
        (
            with_tag(small.file_of(Image.new("I;16", (4, 4)), "TIFF", tiffinfo={339: 2}), 339, 2),
            "16-bit signed",
        ),
        (small.file_of(Image.new("L", (4, 4)), "TIFF", tiffinfo={339: 2}), "8-bit signed"),
        (small.file_of(Image.new("F", (4, 4), 0.5), "TIFF"), r"floating-point numbers \(TIFF\)"),
        (small.file_of(Image.new("F", (4, 4), 0.5), "PPM"), r"floating-point numbers \(PPM\)"),
        (small.file_of(Image.new("LAB", (4, 4)), "TIFF"), r"Lab colour \(TIFF\)"),
        (small.file_of(Image.new("YCbCr", (4, 4)), "TIFF"), r"YCbCr colour \(TIFF\)"),
        (
            with_tag(small.file_of(Image.new("F", (4, 4)), "TIFF"), 258, 64),
            "an unsupported kind of TIFF",
        ),
    ],
)
def test_samples_without_a_known_scale_are_refused_by_name(content, kind):
    with pytest.raises(ValueError, match=f"^{kind}.*; convert it to 8 bits"):
        images.decode(content)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK"])
def test_a_tiff_of_every_mode_is_what_pillow_makes_of_it(mode):
    picture = small.photograph(3).convert("RGBA" if mode == "RGBX" else "L" if mode == "1" else "RGB")
    content = small.file_of(picture.convert(mode), "TIFF")
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(np.broadcast_to(images.decode(content), expected.shape), expected)


def test_a_tiff_with_jpeg_inside_has_its_colours():
    picture = small.photograph(3)
    decoded = images.decode(small.file_of(picture, "TIFF", compression="jpeg", quality=95))
    assert np.abs(decoded.astype(int) - np.asarray(picture)).mean() < 2


def test_a_palette_with_transparency_is_read_without_a_warning(recwarn):
    palette = small.photograph(3).quantize(16)
    content = small.file_of(palette, "PNG", transparency=bytes(range(16)))
    np.testing.assert_array_equal(images.decode(content), np.asarray(palette.convert("RGB")))
    assert not recwarn.list


def test_ycck_is_what_pillow_makes_of_it():
    """As Photoshop writes CMYK: in the Adobe marker transform 2, YCCK, which Pillow does not write."""
    jpeg = bytearray(small.file_of(small.photograph(20, mode="CMYK")))
    jpeg[jpeg.index(b"\xff\xee") + 15] = 2
    picture = Image.open(io.BytesIO(jpeg))
    assert picture.info["adobe_transform"] == 2
    np.testing.assert_array_equal(images.decode(bytes(jpeg)), np.asarray(picture.convert("RGB")))


def test_a_jpeg_of_rgb_is_what_pillow_makes_of_it():
    jpeg = small.file_of(small.photograph(20), keep_rgb=True)
    np.testing.assert_array_equal(images.decode(jpeg), np.asarray(Image.open(io.BytesIO(jpeg))))


# Where a stored picture's first row and first column lie when it is seen upright, by EXIF's tag Orientation.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def upright(stored: np.ndarray, first_row: str, first_column: str) -> np.ndarray:
    if first_row in ("left", "right"):
        stored, first_row, first_column = stored.swapaxes(0, 1), first_column, first_row
    stored = stored[::-1] if first_row == "bottom" else stored
    return stored[:, ::-1] if first_column == "right" else stored


def oriented(kind: str, orientation: int, mode: str = "RGB", **options) -> tuple[np.ndarray, bytes]:
    """(the stored pixels [height, width, ...], the file)."""
    picture = small.photograph(7, (40, 24), mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = small.file_of(picture, kind, exif=exif, **options)
    stored = picture if kind == "TIFF" else Image.open(io.BytesIO(content)).convert(mode)
    return np.asarray(stored), content


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_an_oriented_picture_is_set_upright(kind, orientation):
    stored, content = oriented(kind, orientation)
    expected = upright(stored, *SIDES[orientation])
    decoded = images.decode(content, oriented=True)
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_array_equal(decoded, ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    batch = images.empty_batch(1, 24, 3)
    images.decode_into(batch[0], content, oriented=True)
    np.testing.assert_array_equal(batch[0], images.fit(expected, 24, 3))
    if kind != "TIFF":  # which Pillow always sets upright
        np.testing.assert_array_equal(images.decode(content), stored)


@pytest.mark.parametrize("orientation", SIDES)
def test_grey_and_deep_pictures_are_set_upright(orientation):
    stored, content = oriented("JPEG", orientation, "L")
    expected = upright(stored, *SIDES[orientation])
    np.testing.assert_array_equal(images.decode(content, oriented=True)[..., 0], expected)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for kind in ("PNG", "TIFF"):
        content = small.file_of(Image.fromarray(DEEP), kind, exif=exif)
        expected = upright(DEEP >> 8, *SIDES[orientation])
        np.testing.assert_array_equal(images.decode(content, oriented=True)[..., 0], expected)


def jpeg_with(*segments: bytes) -> bytes:
    """Write a JPEG with these APP1 segments after the one of JFIF."""
    content = small.file_of(small.photograph(7, (40, 24)))
    written = b"".join(b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment for segment in segments)
    return content[:20] + written + content[20:]


def exif_segment(order: str, kind: int = 3, value: int = 6, entries: int = 0) -> bytes:
    """Write EXIF in either byte order, in which `entries` others come before the orientation."""
    width = {3: "H2x", 4: "I"}[kind]
    others = b"".join(struct.pack(order + "HHIH2x", 0x100 + tag, 3, 1, 0) for tag in range(entries))
    entry = struct.pack(f"{order}HHI{width}", 0x112, kind, 1, value)
    start = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, entries + 1)
    return b"Exif\0\0" + start + others + entry + bytes(4)


XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "segments, turned",
    [
        ([exif_segment("<")], True),
        ([exif_segment(">")], True),
        ([exif_segment(">", entries=12)], True),
        ([exif_segment("<", kind=4)], True),
        ([exif_segment(">", kind=4)], True),
        ([XMP], True),
        ([b"other" * 9000, exif_segment("<")], True),
        ([exif_segment("<", value=1)], False),
        ([exif_segment(">", value=1)], False),
        ([exif_segment("<", value=0)], False),
        ([exif_segment(">", value=9)], False),
        ([b"Exif\0\0damaged\x01\x12\0\x03\0\0\0\x01\0\x06"], False),
        ([exif_segment("<")[:20]], False),
        ([], False),
    ],
)
def test_a_jpeg_is_turned_if_its_exif_or_xmp_says_so(segments, turned):
    content = jpeg_with(*segments)
    stored = np.asarray(Image.open(io.BytesIO(content)))
    decoded = images.decode(content, oriented=True)
    np.testing.assert_array_equal(decoded, upright(stored, "right", "top") if turned else stored)
    np.testing.assert_array_equal(images.decode(content), stored)


def test_a_jpeg_without_a_turn_is_not_given_to_pillow(monkeypatch):
    contents = [jpeg_with(), jpeg_with(b"other"), jpeg_with(exif_segment("<", value=1))]
    contents += [jpeg_with(exif_segment(">", value=1)), small.file_of(small.photograph(1), progressive=True)]
    monkeypatch.setattr(images, "_decode_with_pillow", lambda *_: pytest.fail("the slower decoder"))
    for content in contents:
        images.decode(content, oriented=True)


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


def giants() -> dict[str, bytes]:
    """Files of few bytes that claim 60000x60000 pixels, or twice 11000x11000, within Pillow's tolerance."""
    png = small.file_of(small.photograph(0), "PNG")
    jpeg = small.file_of(small.photograph(0))
    frame = jpeg.index(b"\xff\xc0")
    found = {}
    for side in (11_000, 60_000):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        claimed = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
        found[f"PNG {side}"] = claimed
        found[f"JPEG {side}"] = jpeg[: frame + 5] + struct.pack(">HH", side, side) + jpeg[frame + 9 :]
        entry = struct.pack("<BBBBHHII", 64, 64, 0, 0, 1, 24, len(claimed), 22)
        found[f"PNG in an ICO {side}"] = struct.pack("<HHH", 0, 1, 1) + entry + claimed
        found[f"PPM {side}"] = b"P6 %d %d 255\n" % (side, side)
    return found


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name, content", giants().items(), ids=giants())
def test_a_picture_that_claims_a_giant_size_is_refused_before_memory_is_taken(name, content):
    if name == "PNG in an ICO 11000":
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    side = int(name.split()[-1])
    with pytest.raises(ValueError, match=f"^{side**2:,} pixels; the limit is 100,000,000$"):
        images.decode(content)


@pytest.mark.program
def test_pillow_does_not_warn_of_a_giant(tmp_path):
    names = []
    for name, content in giants().items():
        (tmp_path / name).write_bytes(content)
        names.append(str(tmp_path / name))
    program = (
        "import sys\n"
        "from alexnet_jax.datasets import images\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        images.decode(images.read_file(path))\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True)
    assert ended.stderr == "" and ended.stdout.count("the limit is 100,000,000\n") == len(names)


def test_the_largest_picture_is_read():
    content = b"P4 10000 10000\n" + bytes(10_000 * 1250)
    assert images.decode(content).shape == (10_000, 10_000, 1)


def test_a_long_text_or_profile_in_a_png_is_refused():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    for options in ({"pnginfo": text}, {"icc_profile": bytes(2_000_000)}):
        content = small.file_of(small.photograph(0), "PNG", **options)
        assert len(content) < 20_000
        with pytest.raises(ValueError, match="too large"):
            images.decode(content)


def test_a_file_of_more_bytes_than_any_picture_has_is_not_read(tmp_path):
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="more than 1,073,741,824 bytes"):
        images.read_file(tmp_path / "zeros")


def test_a_pipe_is_read_and_a_device_without_an_end_refused(tmp_path, monkeypatch):
    content = small.file_of(small.photograph(0))
    reading, writing = os.pipe()
    with open(writing, "wb") as file:
        file.write(content)
    with open(reading, "rb"):
        assert images.read_file(f"/dev/fd/{reading}") == content
    monkeypatch.setattr(images, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match="more than 10,000 bytes"):
        images.read_file("/dev/zero")


def test_a_pipe_may_be_slow_but_not_silent(tmp_path, monkeypatch):
    content, pipe = small.file_of(small.photograph(0)), tmp_path / "pipe"
    os.mkfifo(pipe)

    def write(parts):
        time.sleep(0.1)
        with open(pipe, "wb", buffering=0) as file:
            for part in parts:
                file.write(part)
                time.sleep(0.1)

    for parts in ([content[:100], content[100:]], [b"x" * 3_000_000], []):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(write, parts)
            assert images.read_file(pipe) == b"".join(parts)
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.3)
    with pytest.raises(ValueError, match=r"a pipe or a device that is silent for 0.3 s"):
        images.read_file(pipe)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(write, [b"x", b"", b"", b"", b"", b"", b""])
        with pytest.raises(ValueError, match="silent"):
            images.read_file(pipe)


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


def test_what_stands_in_place_of_a_picture_is_named():
    with pytest.raises(ValueError, match="a pointer of Git LFS"):
        images.decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="a web page, not the file itself"):
        images.decode(b"\n<!DOCTYPE html><html>")
