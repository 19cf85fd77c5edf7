"""The smallest sweep that has everything."""

import pathlib
import sys

TWO = """
from experiments.sweeps.variants import Ensemble, Variant

def get_variants(config):
    tanh = Variant("tanh", {"model.activation": "tanh"}, "slower")
    return [Variant("ReLU", {}, ""), tanh, Ensemble("both", {"ReLU": 1, "tanh": 1}, "")]
"""


def sweep_command(folder: pathlib.Path, data_dir: str) -> list[str]:
    """Two networks and their ensemble, in `folder`/w, as small as they may be."""
    (folder / "two.py").write_text(TWO)
    return [
        sys.executable, "-m", "experiments.sweep", "--config=configs/quickstart.py",
        f"--sweep={folder}/two.py", f"--workdir={folder}/w", "--seeds=1", "--jobs=2",
        f"--config.data.dir={data_dir}", "--config.data.train_split=train[:640]",
        "--config.data.val_split=train[-100:]", "--config.data.test_split=test[:100]",
        "--config.num_epochs=2", "--config.batch_size=32", "--config.checkpoint.every_steps=5",
        "--config.model.width=0.25", "--config.eval.views=1", "--config.eval.batch_size=100",
        *(f"--config.model.layers.{layer}.enabled=False" for layer in ("conv3", "conv4", "fc6")),
    ]  # fmt: skip
