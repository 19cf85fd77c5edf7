"""python -m experiments.ensemble DIR... [--out=FILE] [--config.FIELD=VALUE ...]

Average the predictions of the best checkpoints of several workdirs on the test split (table 2), with
eval.views views each (1 or 10), and print the top-1 and top-5 error. Fields that are not given come from the
first workdir's config.json. The networks may differ, and so may the order of their classes, which are matched
by name.
"""

import json
import logging

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text

log = logging.getLogger("alexnet_jax")

SAME = ("data.name", "data.test_split", "data.image_size", "data.channels", "model.num_classes")


def ensemble(workdirs: list[str], overrides: dict) -> dict:
    """Evaluate the networks' mean softmax output; return a result as in eval.json. Raises InputError."""
    # Imported here, so that a mistake in the flags is reported at once.
    from alexnet_jax import evaluate
    from alexnet_jax.datasets.labels import with_labels_of
    from alexnet_jax.datasets.source import open_splits
    from alexnet_jax.runtime.mesh import make_mesh
    from alexnet_jax.step import make_top_k_sums, make_view_outputs
    from alexnet_jax.workdirs import identity
    from alexnet_jax.workdirs.workdir import evaluated_data, read_statistics

    configs = [configuration.of_run(workdir, overrides) for workdir in workdirs]
    config = configs[0]
    for workdir, other in zip(workdirs, configs, strict=True):
        ours, theirs = dict(configuration.flatten(config)), dict(configuration.flatten(other))
        for field in SAME:
            if ours[field] != theirs[field]:
                raise InputError(
                    f"{workdir}: {field} is {theirs[field]!r}, but {ours[field]!r} in {workdirs[0]}; give"
                    " networks of one data set"
                )
        # Networks of one and of two columns share a mesh: every device runs all columns.
        other.mesh.column = 1
    stored = [read_statistics(workdir, own) for workdir, own in zip(workdirs, configs, strict=True)]
    names = [[str(name) for name in arrays.get("label_names", ())] for arrays in stored]
    places = [
        _places_of_classes(workdir, own, names[0]) for workdir, own in zip(workdirs, names, strict=True)
    ]
    mesh = make_mesh(config, ("eval.batch_size",))
    (source,) = open_splits(config, "test_split")
    labelled = with_labels_of(names[0], source)
    members, steps = [], []
    for workdir, other, arrays, own in zip(workdirs, configs, stored, places, strict=True):
        step, params = evaluate.stored_params(other, workdir, mesh)
        outputs = make_view_outputs(other, mesh, config.eval.views)
        members.append((outputs, params, evaluate.on_devices(arrays, mesh), own))
        steps.append(step)
    sums = make_top_k_sums(mesh)

    def eval_step(_, images, labels, real, __):
        views = [
            view if own is None else view[:, own]
            for outputs, params, arrays, own in members
            for view in outputs(params, images, arrays)
        ]
        return sums(views, labels, real)

    log.info(f"averaging {len(members)} networks on {len(source):,} images of {config.data.test_split}")
    rates = evaluate.error_rates(eval_step, None, labelled, config, mesh, None)
    runs = [identity.of_workdir(workdir) for workdir in workdirs]
    weights = {"workdirs": workdirs, "runs": runs, "steps": steps}
    return {**evaluated_data(config, source), **weights, **rates}


def _places_of_classes(workdir: str, names: list[str], first: list[str]) -> np.ndarray | None:
    """Return the index of each class of the first network in this one; None if the order is the same."""
    from alexnet_jax.datasets.labels import classes_by_name

    try:
        places = classes_by_name(names, first)
    except InputError as error:
        raise InputError(f"{workdir}: its classes are not those of the first network ({error})") from None
    if places is None and names != first:
        log.info(
            f"{workdir}: its classes, or the first network's, have no names; they are matched by position"
        )
    return None if places is None or places == list(range(len(places))) else np.array(places)


def main(arguments: list[str]) -> None:
    """Evaluate an ensemble. Raises InputError."""
    parser = command_line.Parser(__doc__, overrides=True)
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="the folder of a run")
    parser.add_argument("--out", metavar="FILE", help="a JSON file for the result, like eval.json")
    given = parser.parse(arguments)
    if given.out:
        command_line.check_writable("--out", given.out)
    result = ensemble(given.workdirs, given.overrides)

    from alexnet_jax.workdirs.workdir import in_words

    if given.out:
        write_text(given.out, json.dumps(result, indent=2) + "\n")
    log.info(in_words(result))


if __name__ == "__main__":
    command_line.run(main)
