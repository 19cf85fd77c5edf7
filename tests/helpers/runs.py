"""What a run leaves in its workdir."""

import json
import pathlib


def rows(workdir):
    """metrics.jsonl without what depends on the machine's speed."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    speed = "images_per_second", "input_wait"
    return [{k: v for k, v in json.loads(line).items() if k not in speed} for line in lines]
