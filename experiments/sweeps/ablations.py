r"""List every ablation of the paper as a change of the given configuration.

    python -m experiments.sweep --config=configs/paper.py:2010 --sweep=experiments/sweeps/ablations.py \
        --workdir=DIR
    … --sweep='experiments/sweeps/ablations.py:baseline,no dropout'    # some of them

The column `paper` has changes of the top-1 / top-5 error in percentage points.
"""

from experiments.sweeps.variants import Variant


def get_variants(config, names: str = "") -> list[Variant]:
    """Return all variants, or those of `names`, separated by commas."""
    hidden = [name for name in config.model.layers if name != "fc8"]
    convolutions = [name for name in hidden if name.startswith("conv")]
    # Section 3.2, footnote 2: one column with half the kernels, except where the columns' maps are joined.
    one_gpu = {f"model.layers.{c}.features": config.model.layers[c].features // 2 for c in convolutions[:-1]}
    # Section 5 sets biases to 1 for the sake of ReLUs; with them tanh may not learn at all.
    no_ones = {f"model.layers.{name}.bias": 0.0 for name in hidden if config.model.layers[name].bias}
    variants = [
        Variant("baseline", {}, "37.5 / 17.0 % (ILSVRC-2010 test, table 1)"),
        Variant(
            "tanh",
            {"model.activation": "tanh", **no_ones},
            "6 times the epochs to 25 % (CIFAR-10, section 3.1)",
        ),
        Variant("one GPU", {"model.columns": 1, **one_gpu}, "+1.7 / +1.2 (section 3.2)"),
        Variant("no normalisation", {"model.lrn.enabled": False}, "+1.4 / +1.2 (section 3.3)"),
        Variant("no overlap in pooling", {"model.pool.size": 2}, "+0.4 / +0.3 (section 3.4)"),
        Variant("no dropout", {"model.dropout_rate": 0.0}, '"substantial overfitting" (section 4.2)'),
        Variant("no colour noise", {"augment.pca_std": 0.0}, "over +1 top-1 (section 4.1)"),
        Variant("no crops", {"augment.crop": False}, '"substantial overfitting" without both (section 4.1)'),
        Variant("no flips", {"augment.flip": False}, '"substantial overfitting" without both (section 4.1)'),
        *(
            Variant(
                f"no {name}",
                {f"model.layers.{name}.enabled": False},
                "about +2 top-1 (section 7)" if name in convolutions else "not reported",
            )
            for name in hidden[1:]
        ),
        Variant("columns never meet", {"model.gather": False}, "not reported; wider net #150: +1.2 / +1.1"),
    ]
    wanted = names.split(",") if names else [variant.name for variant in variants]
    unknown = sorted(set(wanted) - {variant.name for variant in variants})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: give names of {', '.join(v.name for v in variants)}")
    return [variant for variant in variants if variant.name in wanted]
