"""The official archives of ILSVRC in small, from any pictures, whole or spoilt."""

import gzip
import io
import tarfile

import numpy as np
from PIL import ExifTags, Image, ImageOps
from scipy.io import savemat

# WordNet ids in an order that is neither that of the numbers nor sorted.
WORDS = {"n00000030": "tench, Tinca tinca", "n00000010": "church", "n00000020": "crane"}
NUMBERS = {"n00000030": 1, "n00000010": 3, "n00000020": 2}


def photograph(seed: int, size=(64, 48), mode: str = "RGB") -> Image.Image:
    """Smooth, so that what JPEG loses is little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, len(Image.new(mode, (1, 1)).getbands())))
    picture = Image.fromarray(coarse.astype(np.uint8).squeeze(), mode)
    return picture.resize(size, Image.Resampling.BICUBIC)


def file_of(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def without_adobe_marker(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def odd_pictures() -> dict[str, bytes]:
    """What the archives hold, and may hold, under a name that ends in .JPEG."""
    pictures = {
        f"{width}x{height}": file_of(photograph(seed, (width, height)))
        for seed, (width, height) in enumerate(
            [(500, 375), (375, 500), (120, 90), (1000, 300), (256, 256), (257, 256), (3, 400), (1, 1)]
        )
    }
    cmyk = file_of(photograph(20, mode="CMYK"))
    rotated = Image.Exif()
    rotated[ExifTags.Base.Orientation] = 6
    return pictures | {
        "cmyk": cmyk,
        "cmyk, not inverted": without_adobe_marker(cmyk),
        "grey": file_of(photograph(21, mode="L")),
        "PNG": file_of(photograph(22), "PNG"),
        "PNG, grey with alpha": file_of(photograph(23, mode="LA"), "PNG"),
        "PNG, alpha": file_of(photograph(24, mode="RGBA"), "PNG"),
        "PNG, palette": file_of(photograph(25).quantize(16), "PNG"),
        "gzipped": gzip.compress(file_of(photograph(26))),
        "progressive": file_of(photograph(27), progressive=True),
        "4:2:2": file_of(photograph(28, (333, 301)), subsampling="4:2:2"),
        "4:4:4": file_of(photograph(29, (333, 301)), subsampling="4:4:4"),
        "quality 30": file_of(photograph(30, (333, 301)), quality=30),
        "oriented": file_of(photograph(31), exif=rotated),
    }


def as_rgb(content: bytes, oriented: bool = False) -> Image.Image:
    """By Pillow alone; `oriented` sets it upright by its EXIF."""
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    picture = Image.open(io.BytesIO(content))
    if picture.mode == "CMYK" and b"Adobe" not in content:
        picture = Image.merge("CMYK", [band.point(lambda v: 255 - v) for band in picture.split()])
    picture = ImageOps.exif_transpose(picture) if oriented else picture
    return picture.convert("RGB")


def prepared(content: bytes, oriented: bool = False) -> np.ndarray:
    """uint8 [256, 256, 3], section 2 by Pillow alone."""
    picture = as_rgb(content, oriented)
    width, height = picture.size
    if width < height:
        picture = picture.resize((256, max(256, round(height * 256 / width))), Image.Resampling.BICUBIC)
    else:
        picture = picture.resize((max(256, round(width * 256 / height)), 256), Image.Resampling.BICUBIC)
    left, top = (picture.width - 256) // 2, (picture.height - 256) // 2
    return np.asarray(picture.crop((left, top, left + 256, top + 256)))


def stored(content: bytes) -> np.ndarray:
    """`prepared`, and what the stored JPEG makes of it."""
    jpeg = file_of(Image.fromarray(prepared(content)), quality=95, subsampling=0)
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def tar(members) -> bytes:
    """members: (name, content) or TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def devkit(year: str, counts: dict[str, int], truth: list[str]) -> dict[str, bytes]:
    """The members of the development kit; `counts` of training images and `truth` by WordNet id."""
    rows = [(NUMBERS[w], w, WORDS[w], 0, counts[w]) for w in sorted(WORDS, key=NUMBERS.get)]
    rows.append((1001, "n00000001", "entity", 3, 0))
    names = [f"ILSVRC{year}_ID", "WNID", "words", "num_children", "num_train_images"]
    synsets = np.zeros((len(rows), 1), [(name, object) for name in names])
    for row, values in enumerate(rows):
        for name, value in zip(names, values, strict=True):
            synsets[name][row, 0] = value
    mat = io.BytesIO()
    savemat(mat, {"synsets": synsets})
    lines = "".join(f"{NUMBERS[wnid]}\n" for wnid in truth).encode()
    return {"meta.mat": mat.getvalue(), f"ILSVRC{year}_validation_ground_truth.txt": lines}


def make(folder, year: str, train: dict[str, list[tuple]], val, test=(), patches=()) -> None:
    """train: {WordNet id: [(name, content)]}; val, test: [(WordNet id, content)]; patches as in a tar."""
    folder.mkdir(parents=True, exist_ok=True)
    part = "img" if year == "2012" else "images"
    inner = [(f"{wnid}.tar", tar(images)) for wnid, images in train.items()]
    (folder / f"ILSVRC{year}_{part}_train.tar").write_bytes(tar(inner))
    kit = devkit(year, {wnid: len(images) for wnid, images in train.items()}, [wnid for wnid, _ in val])
    pack(folder, year, kit)
    for split, images in (("val", val), ("test", test)):
        if year == "2012" and split == "test":
            continue
        inside = f"{split}/" if year == "2010" else ""
        members = [
            (f"{inside}ILSVRC{year}_{split}_{n:08}.JPEG", content) for n, (_, content) in enumerate(images, 1)
        ]
        # The order of the members is not that of the names.
        (folder / f"ILSVRC{year}_{part}_{split}.tar").write_bytes(tar(members[::-1]))
    if year == "2010":
        truth = "".join(f"{NUMBERS[wnid]}\n" for wnid, _ in test)
        (folder / "ILSVRC2010_test_ground_truth.txt").write_text(truth)
        (folder / "patch_images.tar").write_bytes(
            tar([(f"patch_images/{name}", content) for name, content in patches])
        )


def pack(folder, year: str, kit: dict[str, bytes]) -> None:
    """Writes the development kit."""
    inside, name = {
        "2010": ("devkit-1.0", "ILSVRC2010_devkit-1.0.tar.gz"),
        "2012": ("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar.gz"),
    }[year]
    members = [(f"{inside}/data/{member}", content) for member, content in kit.items()]
    (folder / name).write_bytes(gzip.compress(tar(members)))
