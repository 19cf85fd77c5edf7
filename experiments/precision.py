"""Computing in float32 and in bfloat16 (model.dtype): parameters, sums of logits and losses stay float32.

python -m experiments.sweep --config=configs/quickstart.py --sweep=experiments/precision.py --workdir=DIR
"""

from experiments.variants import Variant


def get_variants(config) -> list[Variant]:
    return [
        Variant("float32", {"model.dtype": "float32"}, ""),
        Variant("bfloat16", {"model.dtype": "bfloat16"}, ""),
    ]
