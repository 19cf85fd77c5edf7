r"""List float32 and bfloat16 (model.dtype).

    python -m experiments.sweep --config=configs/quickstart.py --sweep=experiments/sweeps/precision.py \
        --workdir=DIR

Parameters, sums of logits and losses stay float32.
"""

from experiments.sweeps.variants import Variant


def get_variants(config) -> list[Variant]:
    """Return both, float32 first."""
    del config
    return [
        Variant("float32", {"model.dtype": "float32"}, ""),
        Variant("bfloat16", {"model.dtype": "bfloat16"}, ""),
    ]
