"""python tests/mutations.py [WORD ...]

Breaks one statement at a time in a copy of the project, runs the tests that are to notice it, and tells
whether one fails: statements of the paper, of the released code, and of what is computed from runs. Exits
with 1 if any is not noticed. WORD selects the statements that contain it. Takes about ten minutes. Not a part
of `make test`.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent


class Mutation(NamedTuple):
    """A statement, and the line whose change breaks it."""

    statement: str
    file: str
    right: str  # occurs once in the file
    wrong: str
    tests: str  # files or tests below tests/, separated by spaces


NETWORK, LAYERS, STEP = "alexnet_jax/network.py", "alexnet_jax/layers.py", "alexnet_jax/step.py"
AUGMENT, OPTIMIZER, PAPER = "alexnet_jax/augment.py", "alexnet_jax/optimizer.py", "configs/paper.py"
EVERY_LAYER = "test_onnx.py::test_every_layer_equals_onnx_runtime"
MUTATIONS = [
    Mutation(
        "2: the central square",
        "alexnet_jax/datasets/images.py",
        "(width - size) // 2, (height - size) // 2",
        "0, 0",
        "test_ilsvrc.py::test_fit_takes_the_central_square_of_the_shorter_side",
    ),
    Mutation(
        "2: a crop is less the mean of its own pixels",
        AUGMENT,
        'window(statistics["mean_image"], top, left))',
        'window(statistics["mean_image"], 0, 0))',
        "test_augment.py",
    ),
    Mutation(
        "2: top-5 error",
        STEP,
        "rank >= 5",
        "rank > 5",
        "test_step.py::test_top_five_counts_the_classes_ahead",
    ),
    Mutation("3.1: ReLU", NETWORK, '"relu": jax.nn.relu', '"relu": jax.nn.leaky_relu', EVERY_LAYER),
    Mutation(
        "3.2: columns have their own kernels",
        STEP,
        "fold_in(root, column)",
        "fold_in(root, 0)",
        "test_network.py",
    ),
    Mutation(
        "3.2: column 0 comes first",
        NETWORK,
        "jnp.concatenate(maps, axis=-1)",
        "jnp.concatenate(maps[::-1], axis=-1)",
        EVERY_LAYER,
    ),
    Mutation(
        "3.2: conv4 does not see the other column",
        PAPER,
        "layers.conv4 = conv(3, 1, (1, 1), 384, gather=False",
        "layers.conv4 = conv(3, 1, (1, 1), 384, gather=True",
        "test_network.py",
    ),
    Mutation(
        "3.3: alpha is not divided",
        LAYERS,
        "k + alpha * total",
        "k + alpha / 5 * total",
        "test_layers.py::test_local_response_norm_equals_the_formula",
    ),
    Mutation(
        "3.3: normalisation is over maps",
        LAYERS,
        "(1, 1, 1, size), k,",
        "(1, 1, size, 1), k,",
        "test_layers.py::test_local_response_norm_equals_the_formula",
    ),
    Mutation(
        "3.3: normalisation follows ReLU",
        PAPER,
        '("activation", "lrn", "pool")',
        '("lrn", "activation", "pool")',
        EVERY_LAYER,
    ),
    Mutation("3.3: k is 2", PAPER, "k=2.0", "k=1.0", "test_fidelity.py"),
    Mutation("3.4: pooling overlaps", PAPER, "size=3, stride=2", "size=2, stride=2", "test_fidelity.py"),
    Mutation(
        "3.4: a tie's gradient goes to the first",
        LAYERS,
        "other > first",
        "other >= first",
        "test_layers.py::test_gradient_of_max_pool_goes_to_the_first_maximum",
    ),
    Mutation(
        "3.5: the zeros of conv1",
        PAPER,
        "(0, 3), 96",
        "(1, 2), 96",
        "test_network.py::test_zeros_of_conv1_are_at_the_bottom_and_right",
    ),
    Mutation(
        "3.5: logits are the sum of the columns",
        NETWORK,
        "total: Any = sum(parts)",
        "total: Any = parts[0]",
        EVERY_LAYER,
    ),
    Mutation(
        "3.5: the loss is of the label",
        STEP,
        "optax.softmax_cross_entropy_with_integer_labels(logits, labels)",
        "optax.softmax_cross_entropy_with_integer_labels(logits, logits.argmax(1))",
        "test_network.py",
    ),
    Mutation(
        "4.1: 33 offsets",
        AUGMENT,
        "(2,), 0, last + 1)",
        "(2,), 0, last)",
        "test_augment.py::test_the_papers_33_offsets_are_reached_on_each_axis",
    ),
    Mutation("4.1: flips are left to right", AUGMENT, "x[:, ::-1], x)", "x[::-1], x)", "test_augment.py"),
    Mutation(
        "4.1: ten views have all corners",
        AUGMENT,
        "(last, 0), (last, last)]",
        "(last, 0), (last, 0)]",
        "test_augment.py::test_ten_views_are_the_papers",
    ),
    Mutation(
        "4.1: outputs are averaged after the softmax",
        STEP,
        "jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs))",
        "sum(log_probs) / len(log_probs)",
        "test_step.py::test_ten_view_evaluation_is_of_the_mean_softmax_over_the_examples_that_are_real",
    ),
    Mutation(
        "4.1: noise along eigenvectors",
        AUGMENT,
        '@ statistics["eigenvectors"].T',
        '@ statistics["eigenvectors"]',
        "test_augment.py::test_colour_noise_has_the_papers_covariance",
    ),
    Mutation(
        "4.2: outputs are halved at test",
        LAYERS,
        'return x * (1 - rate) if scale == "test" else x',
        "return x",
        "test_layers.py::test_dropout_at_test_multiplies_by_what_was_kept",
    ),
    Mutation(
        "4.2: dropout differs between columns",
        NETWORK,
        "jax.random.fold_in(jax.random.fold_in(key, stream), column))",
        "jax.random.fold_in(key, stream))",
        "test_network.py::test_dropout_masks_differ_between_layers_columns_and_examples",
    ),
    Mutation(
        "5: the rate is inside the velocity",
        OPTIMIZER,
        '*chain, ("momentum", optax.trace(decay=fields.momentum))',
        'chain[0], ("momentum", optax.trace(decay=fields.momentum)), *chain[1:]',
        "test_optimizer.py::test_update_is_the_papers_over_drops_of_the_learning_rate",
    ),
    Mutation(
        "5: weights decay",
        OPTIMIZER,
        "optax.add_decayed_weights(fields.weight_decay, decayed)",
        "optax.add_decayed_weights(0.0, decayed)",
        "test_optimizer.py::test_update_is_the_papers_over_drops_of_the_learning_rate",
    ),
    Mutation(
        "5: biases do not decay",
        OPTIMIZER,
        "None if fields.decay_biases else _kernels",
        "None",
        "test_optimizer.py",
    ),
    Mutation(
        "5: deviation 0.01",
        PAPER,
        "gather=gather, init_std=0.01",
        "gather=gather, init_std=0.02",
        "test_network.py",
    ),
    Mutation(
        "5: biases of 1",
        PAPER,
        "384, gather=False, bias=1.0",
        "384, gather=False, bias=0.0",
        "test_network.py::test_initial_biases_are_the_papers",
    ),
    Mutation(
        "5: the rate drops by ten",
        OPTIMIZER,
        "config.optimizer.plateau.factor**drops",
        "config.optimizer.plateau.factor ** (2 * drops)",
        "test_optimizer.py::test_learning_rate_is_divided_by_ten_at_each_drop",
    ),
    Mutation(
        "5: the best error is kept",
        OPTIMIZER,
        "best, stale = error, 0",
        "best, stale = best, 0",
        "test_optimizer.py::test_schedule_follows_the_validation_errors",
    ),
    Mutation(
        "5: every batch has other examples",
        "alexnet_jax/datasets/batches.py",
        "positions // examples * reshuffle",
        "positions // examples * 0",
        "test_batches.py",
    ),
    Mutation(
        "2: statistics are of all pixels",
        "alexnet_jax/datasets/statistics.py",
        "squares / pixels - np.outer(channel_mean, channel_mean)",
        "squares / pixels",
        "test_statistics.py",
    ),
    Mutation(
        "3.2: the mean of gradients over devices",
        STEP,
        'lax.pmean(results, "data")',
        'lax.psum(results, "data")',
        "test_step.py",
    ),
    Mutation(
        "4.1: ten views have reflections",
        AUGMENT,
        "for flip in (False, True) for",
        "for flip in (False, False) for",
        "test_augment.py::test_ten_views_are_the_papers",
    ),
    Mutation(
        "4.1: random numbers change with the step",
        STEP,
        "jax.random.key(config.seed), 1), step)",
        "jax.random.key(config.seed), 1), 0)",
        "test_step.py::test_loss_is_a_function_of_seed_and_step",
    ),
    Mutation(
        "5: patience",
        OPTIMIZER,
        "stale >= fields.plateau.patience and drops",
        "stale > fields.plateau.patience and drops",
        "test_optimizer.py::test_schedule_follows_the_validation_errors",
    ),
    Mutation(
        "5: training ends at the lowest rate",
        OPTIMIZER,
        "int(state.stale) >= config.optimizer.plateau.patience",
        "int(state.stale) > config.optimizer.plateau.patience",
        "test_optimizer.py",
    ),
    Mutation(
        "6: every example counts once",
        "alexnet_jax/datasets/batches.py",
        "real = positions < len(source)",
        "real = positions <= len(source)",
        "test_batches.py",
    ),
    Mutation(
        "6: the last batch counts",
        "alexnet_jax/evaluate.py",
        "        held = [item]\n    yield from held\n",
        "        held = [item]\n",
        "test_main.py::test_a_run_leaves_what_the_contract_lists",
    ),
    Mutation(
        "code: the rate drops after whole epochs",
        OPTIMIZER,
        "epochs >= epoch for epoch",
        "epochs > epoch for epoch",
        "test_optimizer.py",
    ),
    Mutation(
        "code: biases keep their rate",
        OPTIMIZER,
        "rate if fields.bias_rate_drops else",
        "rate if not fields.bias_rate_drops else",
        "test_optimizer.py::test_rates_of_the_released_code_by_epoch",
    ),
    Mutation(
        "code: a frozen conv1 keeps its weights",
        OPTIMIZER,
        "keep = functools.partial(jnp.where, frozen)",
        "keep = functools.partial(jnp.where, ~frozen)",
        "test_optimizer.py::test_rates_of_the_released_code_by_epoch",
    ),
    Mutation(
        "code: a group shares its crop",
        STEP,
        "examples // group * group",
        "examples",
        "test_step.py::test_images_of_a_group_have_one_crop_and_flip",
    ),
    Mutation(
        "code: spatial normalisation is over positions",
        LAYERS,
        "(1, size, size, 1), k, alpha",
        "(1, size, 1, 1), k, alpha",
        "test_layers.py::test_spatial_norm_equals_the_formula_with_its_gradient",
    ),
    Mutation(
        "code: a window that is cut off averages what it covers",
        LAYERS,
        "sums(a) / sums(jnp.ones((1, *x.shape[1:3], 1)))",
        "sums(a) / size**2",
        "test_layers.py",
    ),
    Mutation(
        "batch normalisation: averages are of unbiased variances",
        NETWORK,
        "(number / (number - 1))",
        "1.0",
        "test_network.py test_torch.py",
    ),
    Mutation(
        "batch normalisation: the batch's statistics in training",
        NETWORK,
        "        if training:\n            found",
        "        if False:\n            found",
        "test_network.py test_step.py",
    ),
    Mutation(
        "batch normalisation: statistics over all devices",
        LAYERS,
        "lax.pmean(mean, axis_name) if axis_name else mean",
        "mean",
        "test_step.py",
    ),
    Mutation(
        "LARS: ratios are of kernels",
        OPTIMIZER,
        "optax.masked(ratio, _kernels)",
        "ratio",
        "test_optimizer.py::test_lars_is_the_formula_over_steps_of_warm_up_and_decay",
    ),
    Mutation(
        "large batches: the warm-up",
        OPTIMIZER,
        "(step + 1) * (per_step",
        "step * (per_step",
        "test_optimizer.py::test_lars_is_the_formula_over_steps_of_warm_up_and_decay",
    ),
    Mutation(
        "large batches: the mean over parts",
        STEP,
        "lambda x: x / number, total",
        "lambda x: x, total",
        "test_step.py",
    ),
    Mutation(
        "parameters are initialised by layer",
        NETWORK,
        "std * jax.random.normal(key",
        "std * jax.random.normal(jax.random.key(0)",
        "test_network.py",
    ),
    Mutation(
        "5: weights of another seed",
        STEP,
        "root = jax.random.fold_in(jax.random.key(config.seed), 0)",
        "root = jax.random.fold_in(jax.random.key(0), 0)",
        "test_network.py::test_another_seed_draws_other_weights",
    ),
    Mutation(
        "6: top-5 error of an evaluation",
        "alexnet_jax/evaluate.py",
        '"top5_error": total["top5_errors"]',
        '"top5_error": total["top1_errors"]',
        "test_trained.py::test_predictions_have_the_errors_of_the_evaluation",
    ),
    Mutation(
        "6: training means are of one epoch",
        "alexnet_jax/train.py",
        '"loss_count", "low_sums"\n',
        '"loss_count"\n',
        "test_train.py::test_an_epoch_starts_with_sums_of_zero",
    ),
    Mutation(
        "table 2: classes in another order",
        "experiments/ensemble.py",
        "view if own is None else view[:, own]",
        "view",
        "test_sweep.py::test_an_ensemble_matches_classes_by_name",
    ),
    Mutation(
        "predictions: the mean over ten views",
        "alexnet_jax/trained.py",
        "jnp.exp(mean_output(",
        "jnp.exp(sum(",
        "test_trained.py::test_ten_views_are_averaged_after_the_softmax",
    ),
    Mutation(
        "weights: the order of axes in PyTorch",
        "alexnet_jax/pretrained/conversion.py",
        "else (0, 4, 3, 1, 2)",
        "else (0, 4, 3, 2, 1)",
        "test_weights.py::test_every_number_is_where_pytorch_has_it",
    ),
    Mutation(
        "weights: Caffe has blue first",
        "alexnet_jax/pretrained/normalization.py",
        "blob[::-1].transpose(1, 2, 0)",
        "blob.transpose(1, 2, 0)",
        "test_weights.py::test_caffes_files_with_their_mean_image",
    ),
    Mutation(
        "sweeps: the sign of a difference",
        "experiments/sweeps/table.py",
        "own - statistics.mean(theirs)",
        "statistics.mean(theirs) - own",
        "test_sweep.py::test_the_table_has_means_deviations_and_differences",
    ),
    Mutation(
        "claims: intervals are for all lines at once",
        "experiments/claims.py",
        "half_width(*residual(whole), len(seeds), comparisons)",
        "half_width(*residual(whole), len(seeds), 1)",
        "test_claims.py::test_a_verdict_waits_for_all_seeds",
    ),
    Mutation(
        "claims: below the paper's change",
        "experiments/claims.py",
        "change + half < paper",
        "change - half < paper",
        "test_claims.py::test_a_verdict_waits_for_all_seeds",
    ),
]


def run(project: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    """Return how pytest ended."""
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


def notices(mutation: Mutation, project: pathlib.Path) -> bool:
    """Return whether a test fails once the statement is broken in this copy of the project."""
    file = project / mutation.file
    text = file.read_text()
    assert text.count(mutation.right) == 1, f"{mutation.file}: {mutation.right}"
    file.write_text(text.replace(mutation.right, mutation.wrong))
    done = run(project, "--exitfirst", *(f"tests/{test}" for test in mutation.tests.split()))
    file.write_text(text)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # others: no test ran
    return done.returncode == 1


def main() -> int:
    chosen = [one for one in MUTATIONS if not sys.argv[1:] or any(w in one.statement for w in sys.argv[1:])]
    if not chosen:
        print(f"error: no statement contains {' or '.join(sys.argv[1:])}", file=sys.stderr)
        return 2
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        project = pathlib.Path(folder, "project")
        shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "runs", "results"))
        tests = {f"tests/{test}" for mutation in chosen for test in mutation.tests.split()}
        whole = run(project, *sorted(tests))
        assert whole.returncode == 0, whole.stdout + whole.stderr  # a test fails without a mutation
        for number, mutation in enumerate(chosen, 1):
            noticed = notices(mutation, project)
            missed += not noticed
            print(
                f"{number}/{len(chosen)} {'noticed' if noticed else 'MISSED'}  {mutation.statement}",
                flush=True,
            )
    print(f"{len(chosen) - missed} of {len(chosen)} are noticed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
