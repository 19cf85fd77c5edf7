"""List the lines of table 2: single networks and ensembles on ILSVRC-2012's validation images.

    python -m experiments.sweep --config=configs/paper.py --sweep=experiments/sweeps/table2.py --seeds=1 …
    … --sweep=experiments/sweeps/table2.py:AUTUMN2011 --seeds=1 …

AUTUMN2011 is the folder of ImageNet's release of autumn 2011 (configs/pretrain22k.py). Without it the table
lacks the lines with a star, whose networks are pre-trained on that release. One seed of the table takes five
networks, or seven networks and two pre-trainings.
"""

from experiments.sweeps.variants import Ensemble, Variant


def get_variants(config, autumn2011: str = "") -> list[Variant | Ensemble]:
    """Return the published lines, including those with a star if `autumn2011` is given."""
    del config
    one, star = "1 CNN", "1 CNN*"
    published: list[Variant | Ensemble] = [
        Variant(one, {}, "40.7 / 18.2 %"),
        Ensemble("5 CNNs", {one: 5}, "38.1 / 16.4 %"),
    ]
    if not autumn2011:
        return published
    return [
        *published,
        Variant("pre-training", {"data.dir": autumn2011}, "not reported", "configs/pretrain22k.py"),
        Variant(star, {}, "39.0 / 16.6 %", "configs/finetune.py", init_from="pre-training"),
        Ensemble("7 CNNs*", {one: 5, star: 2}, "36.7 / 15.4 %"),
    ]
