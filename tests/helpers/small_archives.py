"""The official archives of ILSVRC in small, from any pictures, whole or spoilt.

make       archives of the pictures given
tiny       every odd picture in three classes
ordinary   more pictures, of the real sizes and ten classes, with the oddities of the real archives
"""

import gzip
import io
import tarfile

import numpy as np
from PIL import ExifTags, Image, ImageOps
from scipy.io import savemat

# WordNet ids in an order that is neither that of the numbers nor sorted.
WORDS = {"n00000030": "tench, Tinca tinca", "n00000010": "church", "n00000020": "crane"}
NUMBERS = {"n00000030": 1, "n00000010": 3, "n00000020": 2}
A, B, C = sorted(WORDS)
# Ten classes of the real ones, for archives of more images.
TEN_WORDS = {
    "n01440764": "tench, Tinca tinca", "n02102040": "English springer, English springer spaniel",
    "n02979186": "cassette player", "n03000684": "chain saw, chainsaw",
    "n03028079": "church, church building", "n03394916": "French horn, horn",
    "n03417042": "garbage truck, dustcart",
    "n03425413": "gas pump, gasoline pump, petrol pump, island dispenser", "n03445777": "golf ball",
    "n03888257": "parachute, chute",
}  # fmt: skip
TEN_NUMBERS = dict(zip(TEN_WORDS, (5, 9, 1, 10, 3, 7, 2, 8, 6, 4), strict=True))


def photograph(seed: int, size=(64, 48), mode: str = "RGB") -> Image.Image:
    """Smooth, so that what JPEG loses is little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, len(Image.new(mode, (1, 1)).getbands())))
    bands = [Image.fromarray(band) for band in np.moveaxis(coarse.astype(np.uint8), -1, 0)]
    return Image.merge(mode, bands).resize(size, Image.Resampling.BICUBIC)


def grainy(seed: int, size=(224, 224), mode: str = "RGB") -> Image.Image:
    """A `photograph` with the detail of a real one, in which a wrong pixel or filter shows."""
    pixels = np.asarray(photograph(seed, size, mode)).astype(np.int16)
    grain = np.random.default_rng(seed).normal(0, 20, pixels.shape).round().astype(np.int16)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8), mode)


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
    """The members of the development kit; `counts` of training images and `truth` by WordNet id.

    Its struct array has the fields and the inner node of the real one, and lies beside another variable.
    """
    words, numbers = WORDS | TEN_WORDS, NUMBERS | TEN_NUMBERS
    wnids = sorted(counts, key=numbers.get)
    rows = [(numbers[w], w, words[w], "a gloss", 0, [], 0, counts[w]) for w in wnids]
    rows.append((1001, "n00000001", "entity", "the root", len(wnids), list(range(1, len(wnids) + 1)), 2, 0))
    names = [f"ILSVRC{year}_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    names.append("num_train_images")
    synsets = np.zeros((len(rows), 1), [(name, object) for name in names])
    for row, values in enumerate(rows):
        for name, value in zip(names, values, strict=True):
            synsets[name][row, 0] = value
    mat = io.BytesIO()
    savemat(mat, {"synsets": synsets, "cost_matrix": np.ones((len(wnids),) * 2, np.uint8)})
    lines = "".join(f"{numbers[wnid]}\n" for wnid in truth).encode()
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
        truth = "".join(f"{(NUMBERS | TEN_NUMBERS)[wnid]}\n" for wnid, _ in test)
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
    members.append((f"{inside}/readme.txt", b"a small stand-in for the development kit\n"))
    (folder / name).write_bytes(gzip.compress(tar(members)))


def tiny(folder, year, **changes):
    """Archives with every odd picture in training; returns {split: {file name: (content, WordNet id)}}."""
    odd = list(odd_pictures().values())
    thirds = {C: odd[::3], A: odd[1::3], B: odd[2::3]}
    train = {w: [(f"{w}_{i}.JPEG", c) for i, c in enumerate(found)] for w, found in thirds.items()}
    blank = file_of(Image.new("RGB", (60, 60), "white"))
    val = [(w, file_of(photograph(100 + i))) for i, w in enumerate([B, A, C, A, B])]
    test = [(w, file_of(photograph(200 + i))) for i, w in enumerate([C, A, C])]
    train_blank = (B, (f"{B}_99.JPEG", blank))
    parts = {"train": train, "val": val, "test": test}
    expected = {
        "train": {name: (content, w) for w, found in train.items() for name, content in found},
        "validation": {f"ILSVRC{year}_val_{i:08}.JPEG": (c, w) for i, (w, c) in enumerate(val, 1)},
    }
    if year == "2010":
        expected["test"] = {f"ILSVRC2010_test_{i:08}.JPEG": (c, w) for i, (w, c) in enumerate(test, 1)}
        replaced = {"val": expected["validation"]["ILSVRC2010_val_00000002.JPEG"][0]}
        replaced["test"] = expected["test"]["ILSVRC2010_test_00000001.JPEG"][0]
        replaced["train"] = file_of(photograph(300))
        parts["val"] = [(w, blank if i == 1 else c) for i, (w, c) in enumerate(val)]
        parts["test"] = [(w, blank if i == 0 else c) for i, (w, c) in enumerate(test)]
        train[B].append(train_blank[1])
        expected["train"][f"{B}_99.JPEG"] = (replaced["train"], B)
        parts["patches"] = [
            ("val/ILSVRC2010_val_00000002.JPEG", replaced["val"]),
            ("test/ILSVRC2010_test_00000001.JPEG", replaced["test"]),
            (f"train/{B}_99.JPEG", replaced["train"]),
            ("val/ILSVRC2010_val_00009999.JPEG", blank),  # of an image that is not in the archive
        ]
    make(folder, year, **parts | changes)
    return expected


def ordinary(folder, year) -> dict[str, dict[str, tuple[bytes, str]]]:
    """Write the archives; return {split: {file name: (content, WordNet id)}}.

    The first training images of the first classes are a CMYK JPEG, a PNG, a greyscale JPEG and, in 2010, a
    gzipped JPEG. The first validation and the first test image of 2010 are blank and have replacements.
    """
    sizes = [(224, 224), (500, 375), (375, 500), (120, 90), (1000, 300)]
    seeds, wnids = iter(range(10_000)), sorted(TEN_WORDS)

    def picture(n, **options):
        return file_of(grainy(next(seeds), sizes[n % 5], **options))

    train = {w: [(f"{w}_{n}.JPEG", picture(n)) for n in range(10)] for w in wnids}
    odd = [picture(0, mode="CMYK"), file_of(grainy(next(seeds)), "PNG"), picture(0, mode="L")]
    odd += [gzip.compress(picture(0))] if year == "2010" else []
    for wnid, content in zip(wnids, odd, strict=False):
        train[wnid][0] = train[wnid][0][0], content
    draw = np.random.default_rng(int(year))
    val = [(wnids[label], picture(n)) for n, label in enumerate(draw.integers(0, 10, 80))]
    test = [(wnids[label], picture(n)) for n, label in enumerate(draw.integers(0, 10, 60))]
    expected = {
        "train": {name: (content, w) for w, found in train.items() for name, content in found},
        "validation": {f"ILSVRC{year}_val_{n:08}.JPEG": (c, w) for n, (w, c) in enumerate(val, 1)},
    }
    patches = []
    if year == "2010":
        expected["test"] = {f"ILSVRC2010_test_{n:08}.JPEG": (c, w) for n, (w, c) in enumerate(test, 1)}
        blank = file_of(Image.new("RGB", (224, 224), "white"))
        for short, images in (("val", val), ("test", test)):
            wnid, content = images[0]
            patches.append((f"{short}/ILSVRC2010_{short}_00000001.JPEG", content))
            images[0] = wnid, blank
    make(folder, year, train, val, test, patches)
    return expected
