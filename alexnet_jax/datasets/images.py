"""A picture's file as an array, and the paper's preparation of it (section 2)."""

import io
import math
import tempfile

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from alexnet_jax.runtime.errors import first_line

JPEG_QUALITY = 95  # of what `encode` writes; colour is not subsampled
# Pillow hands some formats to other programs (EPS to Ghostscript): a file of unknown origin may not.
_FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO", "QOI",
)  # fmt: skip


def empty_batch(count: int, size: int, channels: int) -> np.ndarray:
    """np.empty of uint8 [count, size, size, channels], which JAX's CPU devices take over as it is.

    They copy what is not aligned to 64 bytes, and np.empty aligns to 16. Measured on raw photographs of
    256x256: that copy takes longer than reading them.
    """
    shape = (count, size, size, channels)
    memory = np.empty(math.prod(shape) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + math.prod(shape)].reshape(shape)


def decode_into(target: np.ndarray, content: bytes) -> None:
    """Decode a picture's file and `fit` it into uint8 [size, size, channels]. Raises as `decode` does."""
    image = decode(content, target)
    if image is not target:
        target[:] = fit(image, len(target), target.shape[2])


def decode(content: bytes, target: np.ndarray | None = None) -> np.ndarray:
    """uint8 [height, width, 1 or 3]: grey, or RGB. Raises ValueError if it is no picture, or is cut short.

    Colour profiles, orientation tags and transparency are ignored, as they are by the paper's successors. A
    JPEG of the shape of `target` is decoded into it, which saves a copy, and `target` is what is returned.
    """
    if simplejpeg.is_jpeg(content):
        # Bit for bit what Pillow gives, and faster. Pillow has CMYK, a limit of size, and more patience.
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(content)
            if space != "CMYK" and height * width <= Image.MAX_IMAGE_PIXELS:
                colour, channels = ("GRAY", 1) if space == "Gray" else ("RGB", 3)
                if target is None or target.shape != (height, width, channels):
                    return simplejpeg.decode_jpeg(content, colour)
                simplejpeg.decode_jpeg(content, colour, buffer=target)
                return target
        except ValueError:
            pass
    try:
        return _decode_with_pillow(content)
    except UnidentifiedImageError:
        raise ValueError("not a picture of a known format") from None
    except Exception as error:  # Pillow raises nearly every kind for a damaged file
        raise ValueError(first_line(error)) from None


def _decode_with_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
        if picture.mode.startswith("I"):  # 16 bits; of some formats Pillow makes 32 of them
            return (np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8)[..., None]
        if picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info:
            # Pillow takes every CMYK JPEG for inverted, as Adobe's are; without its marker it is not.
            inverted = 255 - np.asarray(picture)
            return np.asarray(Image.fromarray(inverted, "CMYK").convert("RGB"))
        if picture.mode in ("1", "L", "LA"):
            return np.asarray(picture.convert("L"))[..., None]
        return np.asarray(picture.convert("RGB"))


def fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Prepare an image as the paper does (section 2): shorter side to `size`, central size x size.

    image uint8 [height, width, 1 or 3]; greyscale is repeated or colour weighed to get `channels`. Raises
    ValueError for one that is a thousand times as long as wide.
    """
    if image.shape == (size, size, channels):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture = picture.convert("RGB" if channels == 3 else "L")
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    if max(width, height) > 1000 * size:  # gigabytes, of which a thousandth would be kept
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels are too long for a square")
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, channels)


def encode(image: np.ndarray) -> bytes:
    """JPEG of uint8 [height, width, 3]."""
    # Into a file that the system knows, Pillow encodes without the interpreter's lock; into BytesIO with it.
    with tempfile.TemporaryFile() as file:
        Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
        file.seek(0)
        return file.read()
