r"""List float32 and bfloat16 (model.dtype); parameters, sums of logits and losses stay float32.

python -m experiments.sweep --config=configs/quickstart.py --sweep=experiments/sweeps/precision.py \\
        --workdir=DIR
"""

from experiments.sweeps.variants import Variant


def get_variants(config) -> list[Variant]:
    del config
    """Return both, float32 first."""
    return [
        Variant("float32", {"model.dtype": "float32"}, ""),
        Variant("bfloat16", {"model.dtype": "bfloat16"}, ""),
    ]
