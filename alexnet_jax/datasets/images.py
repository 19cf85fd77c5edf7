"""A picture's file as an array, and the paper's preparation of it (section 2)."""

import contextlib
import io
import math
import os
import re
import tempfile
import warnings
from collections.abc import Sequence

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from alexnet_jax.datasets import fingerprints
from alexnet_jax.runtime import files
from alexnet_jax.runtime.errors import UnreadableFiles, first_line, printable, reason

# A file of a few kilobytes can claim any size. At the limit, decoding takes 1.1 to 1.4 GB of memory.
MAX_PIXELS = 100_000_000
MAX_BYTES = 2**30  # per file; MAX_PIXELS of 16-bit RGBA, uncompressed, are 0.8 GB
# Pillow also checks pictures inside pictures (ICO), with a warning up to twice its limit.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about damaged EXIF, and the like

JPEG_QUALITY = 95  # of `encode`; colour is not subsampled
# Pillow passes some formats to other programs (EPS to Ghostscript), which files of unknown origin must not
# reach.
_FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO", "QOI",
)  # fmt: skip
# Pillow's modes with samples of 8 bits, or one, which it converts to grey or RGB; files of other modes are
# rejected by name. YCbCr is rejected because Pillow ignores its range and its subsampling.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")
_REJECTED = {"I": "32-bit integers", "F": "floating-point numbers", "LAB": "Lab colour"}
_CONVERT = "convert it to 8 bits of grey or RGB"
# The orientation tag: with one value other than 1 in EXIF of either byte order, with any value in XMP.
_TURNED = re.compile(
    rb"\x01\x12\0.\0\0\0\x01(?!\0\x01)|\x12\x01.\0\x01\0\0\0(?!\x01\0)|tiff:Orientation", re.DOTALL
)


def empty_batch(count: int, size: int, channels: int) -> np.ndarray:
    """Return np.empty of uint8 [count, size, size, channels], which JAX's CPU devices use without a copy.

    They copy arrays that are not aligned to 64 bytes, and np.empty aligns to 16. For raw photographs of
    256x256 that copy takes longer than reading them.
    """
    shape = (count, size, size, channels)
    memory = np.empty(math.prod(shape) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + math.prod(shape)].reshape(shape)


def read_file(path: str | os.PathLike) -> bytes:
    """Return a file's content. Raises OSError, and ValueError as `files.read_file` with MAX_BYTES does."""
    return files.read_file(path, MAX_BYTES)


def decode_into(target: np.ndarray, content: bytes, *, oriented: bool = False) -> None:
    """Decode a picture's file and `fit` it into uint8 [size, size, channels]. Raises as `decode` does."""
    image = decode(content, target, oriented=oriented)
    if image is not target:
        target[:] = fit(image, len(target), target.shape[2])


def read_all(paths: Sequence[str | os.PathLike], size: int, channels: int) -> np.ndarray:
    """Read pictures, set upright by their EXIF: uint8 [n, size, size, channels]. Raises UnreadableFiles."""
    batch = empty_batch(len(paths), size, channels)
    for target, path in zip(batch, paths, strict=True):
        try:
            decode_into(target, read_file(path), oriented=True)
        except (OSError, ValueError) as error:
            raise UnreadableFiles({printable(path): reason(error)}) from None
    return batch


def digest(path: str | os.PathLike) -> bytes:
    """Return a picture's digest for a fingerprint. Raises OSError and ValueError for an unreadable one."""
    content = read_file(path)
    check(content, oriented=True)
    return fingerprints.of_bytes(content)


def check(content: bytes, *, oriented: bool = False) -> None:
    """Raise ValueError if `decode_into` would, whatever the size of its target."""
    _check_sides(decode(content, oriented=oriented))


def _check_sides(image: np.ndarray) -> None:
    height, width, _ = image.shape
    if max(height, width) > 1000 * min(height, width):  # `fit` would take gigabytes to keep a thousandth
        raise ValueError(f"{width}x{height} pixels are too long for a square")


def decode(content: bytes, target: np.ndarray | None = None, *, oriented: bool = False) -> np.ndarray:
    """Return the pixels of a picture's file, uint8 [height, width, 1 or 3]: grey, or RGB.

    Of 16 bits the higher 8 are kept; greyscale of other depths is scaled to 8. Raises ValueError if the file
    is not a picture, is truncated, claims more than MAX_PIXELS (and then is not decoded), or has samples of
    unknown scale, such as floating-point numbers.

    Colour profiles, transparency and, unless `oriented`, orientation tags are ignored, as in the paper's
    successors. `oriented` turns a picture upright by its tag; Pillow does so with every TIFF. A JPEG with the
    shape of `target` is decoded into it, which saves a copy, and `target` is returned.
    """
    if simplejpeg.is_jpeg(content) and not (oriented and _may_be_turned(content)):
        # The same bits as from Pillow, but faster. Pillow also reads CMYK and YCCK, and tolerates more.
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(content)
            if space in ("Gray", "RGB", "YCbCr") and height * width <= MAX_PIXELS:
                colour, channels = ("GRAY", 1) if space == "Gray" else ("RGB", 3)
                if target is None or target.shape != (height, width, channels):
                    return simplejpeg.decode_jpeg(content, colour)
                simplejpeg.decode_jpeg(content, colour, buffer=target)
                return target
        except ValueError:
            pass
    try:
        return _decode_with_pillow(content, oriented)
    except UnidentifiedImageError:
        tiff = content.startswith((b"II*\0", b"MM\0*"))
        kind = f"an unsupported kind of TIFF; {_CONVERT}" if tiff else "not a picture of a known format"
        raise ValueError(files.stand_in(content[:4096]) or kind) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(_too_large(int(re.findall("[0-9]+", str(error))[0]))) from None
    except Exception as error:  # Pillow raises nearly any exception for a damaged file
        raise ValueError(first_line(error)) from None


def _may_be_turned(jpeg: bytes) -> bool:
    """Return whether the segments before the pixels have an orientation tag, or are malformed."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] not in (b"", b"\0", b"\xff"):
        if jpeg[at + 1] == 0xDA:  # the pixels
            return False
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] == 0xE1 and _TURNED.search(jpeg, at, end):  # EXIF or XMP
            return True
        at = end
    return True


def _decode_with_pillow(content: bytes, oriented: bool) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:  # other code may have changed the warning filters
            raise ValueError(_too_large(picture.width * picture.height))
        if _is_plain_ycbcr(picture):
            raise ValueError(f"YCbCr colour (TIFF); {_CONVERT}")
        picture.load()
        if oriented:
            with contextlib.suppress(Exception):  # Pillow raises many exceptions for damaged EXIF
                ImageOps.exif_transpose(picture, in_place=True)
        picture = _grey_or_rgb(picture)
        return np.asarray(picture).reshape(picture.height, picture.width, -1)


def _grey_or_rgb(picture: Image.Image) -> Image.Image:
    """Return the picture in Pillow's mode L or RGB. Raises ValueError for samples whose scale is unknown."""
    bits, signed, inverted = _samples(picture)
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM")
    if signed or not (deep or picture.mode in _MODES):
        kind = (
            f"{bits}-bit signed integers" if signed else _REJECTED.get(picture.mode, f"{picture.mode} colour")
        )
        raise ValueError(f"{kind} ({picture.format}); {_CONVERT}")
    if deep:
        grey = (np.asarray(picture) >> (bits - 8)).astype(np.uint8)
        return Image.fromarray(255 - grey if inverted else grey)
    picture.info.pop("transparency", None)  # Pillow would warn about it for some palettes
    if picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info:
        # Pillow treats every CMYK JPEG as inverted, like Adobe's; one without Adobe's marker is not.
        picture = Image.fromarray(255 - np.asarray(picture), "CMYK")
    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _too_large(pixels: int) -> str:
    return f"{pixels:,} pixels; the limit is {MAX_PIXELS:,}"


def _samples(picture: Image.Image) -> tuple[int, bool, bool]:
    """Return (bits, whether they are signed, whether 0 is white) for samples of 9 to 16 bits, or any TIFF.

    Except in a TIFF, Pillow itself scales 9 to 15 bits to 16, and inverts samples of which 0 is white.
    """
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return 16, False, False
    tags = picture.tag_v2
    bits, kinds = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)), tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    return bits[0], 2 in kinds, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0


def _is_plain_ycbcr(picture: Image.Image) -> bool:
    """Return whether this is a TIFF of uncompressed YCbCr, which Pillow before 13 reports as truncated."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return False
    uncompressed = picture.tag_v2.get(TiffImagePlugin.COMPRESSION, 1) == 1
    return uncompressed and picture.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 6


def fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Prepare an image as in the paper (section 2): shorter side to `size`, central size x size.

    image uint8 [height, width, 1 or 3]; greyscale is repeated, or colour averaged with weights, to get
    `channels`. Raises ValueError for an image more than a thousand times as long as wide.
    """
    if image.shape == (size, size, channels):
        return image
    _check_sides(image)
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture = picture.convert("RGB" if channels == 3 else "L")
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, channels)


def encode(image: np.ndarray) -> bytes:
    """Return the JPEG file of uint8 [height, width, 3]."""
    # Pillow encodes into a file of the system without the interpreter's lock, but into BytesIO with it.
    with tempfile.TemporaryFile() as file:
        Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
        file.seek(0)
        return file.read()
