"""Flags of small runs, and what a run leaves in its workdir."""

import json
import pathlib

# Each operation of the network once, for programs that start in less time.
FEW_LAYERS = tuple(f"--config.model.layers.{layer}.enabled=False" for layer in ("conv4", "conv5", "fc6"))
# Quickstart in small: two epochs; how many steps they have is up to the split to train on.
SMALL = (
    "--config=configs/quickstart.py",
    "--config.data.val_split=train[59800:]",
    "--config.data.test_split=test[:199]",
    "--config.eval.batch_size=100",
    "--config.batch_size=64",
    "--config.num_epochs=2",
    "--config.model.width=0.25",
    *FEW_LAYERS,
)


def rows(workdir):
    """metrics.jsonl without what depends on the machine's speed."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    speed = "images_per_second", "input_wait"
    return [{k: v for k, v in json.loads(line).items() if k not in speed} for line in lines]
