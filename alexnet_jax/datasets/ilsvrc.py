"""ILSVRC-2010 and 2012 as TFDS data sets, `ilsvrc/2010` and `ilsvrc/2012`, from the official archives.

The archives are in data.manual_dir as downloaded (`ilsvrc_archives.FILES`). The stored images have the
paper's preparation (section 2): shorter side to 256, central 256x256, RGB, as JPEG of quality 95 without
colour subsampling. The PSNR of the stored pixels is 45.3 dB on average and 40.4 dB at worst, at 31 kB per
image, measured on every third of the 13,394 photographs of imagenette (224x224, prepared in the same way).

The splits are `train`, `validation`, and in 2010 `test`. Labels come from the development kit. In both years
label i is the i-th leaf class in the order of the WordNet ids. In 2012 this is the order of Caffe,
torchvision and TFDS; it is not that of ILSVRC2012_ID or ILSVRC2010_ID. A name is the WordNet id and the
words: "n01440764 tench, Tinca tinca".
"""

import logging
import os
import shutil
from typing import Any

import tensorflow_datasets as tfds

from alexnet_jax.datasets import ilsvrc_archives, images
from alexnet_jax.runtime import progress
from alexnet_jax.runtime.errors import InputError, input_errors, printable

log = logging.getLogger("alexnet_jax")

SIZE = 256
# Bytes per image once the data set is written, and while it is written: TFDS writes it twice, to shuffle.
_BYTES, _BYTES_WHILE_PREPARED = 40_000, 100_000


class Ilsvrc(tfds.core.GeneratorBasedBuilder):
    """Features `image` uint8 [256, 256, 3], `label`, and `file_name`, the image's name in the archive."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="2012", description="1,281,167 training and 50,000 validation images"),
        tfds.core.BuilderConfig(
            name="2010", description="1,261,406 training, 50,000 validation and 150,000 test images"
        ),
    ]
    _archives: Any = None  # an ilsvrc_archives.Archives, once checked
    raw_bytes = 0  # per image in the raw copy that will follow
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the official archives, as downloaded, into data.manual_dir."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage="https://www.image-net.org",
            supervised_keys=("image", "label"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(),  # the development kit gives its names
                    "file_name": tfds.features.Text(),
                }
            ),
        )

    def check_archives(self, manual_dir: str) -> None:
        """Check the archives in a folder, by default that of TFDS. Raises InputError."""
        folder = manual_dir or os.path.join(self.data_dir_root, "downloads", "manual")
        if not os.path.isdir(folder) or not os.listdir(folder):
            raise InputError(
                f"data.manual_dir: {printable(folder)} is not a folder with files, and data.dir"
                f" {printable(self.data_dir_root)} has no prepared data; give the folder with the official"
                f" archives of ILSVRC-{self.builder_config.name}, or a data.dir with prepared data. Without"
                " them, start with configs/quickstart.py, or train on a folder of pictures (docs/data.md)"
            )
        log.info(f"checking the archives in {folder}")
        self._archives = ilsvrc_archives.Archives(folder, self.builder_config.name)

    def _download_and_prepare(self, dl_manager, download_config):
        """Check the archives first; TFDS then knows the numbers of images, and reports the time left."""
        if self._archives is None:
            self.check_archives(os.fspath(download_config.manual_dir or ""))
        counts = self._archives.counts
        bytes_each = max(_BYTES_WHILE_PREPARED, _BYTES + self.raw_bytes)
        _check_space(self.data_dir_root, sum(counts.values()), bytes_each)
        self.info.features["label"].names = list(self._archives.devkit.label_names)
        self.info.set_splits(
            tfds.core.splits.SplitDict(
                [tfds.core.SplitInfo(name=s, shard_lengths=[n], num_bytes=0) for s, n in counts.items()]
            )
        )
        super()._download_and_prepare(dl_manager, download_config)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self._archives.counts}

    def _generate_examples(self, split: str):
        pictures = self._archives.images(split)
        for name, label, jpeg in progress.in_order(_prepared, pictures, progress.cores()):
            yield f"{label}/{name}", {"image": jpeg, "label": label, "file_name": name}


def _prepared(picture: ilsvrc_archives.Picture) -> tuple[str, int, bytes]:
    """Return (name, label, JPEG of the paper's preparation)."""
    what = f"{picture.archive}: its member {picture.member!r} cannot be decoded as an image"
    with input_errors(what, "download the archive again"):
        image = images.fit(images.decode(picture.unpacked()), SIZE, 3)
    return picture.name, picture.label, images.encode(image)


def _check_space(folder, examples: int, bytes_each: int) -> None:
    needed, free = examples * bytes_each, shutil.disk_usage(os.path.abspath(folder)).free
    if free < needed:
        raise InputError(
            f"data.dir: {folder} is on a disk with {free / 1e9:,.1f} GB left; preparing {examples:,} images"
            f" takes {needed / 1e9:,.1f} GB; make room, or give another folder (data.store=jpeg takes"
            f" {examples * _BYTES_WHILE_PREPARED / 1e9:,.1f} GB)"
        )
