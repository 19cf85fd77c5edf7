"""Which runs a sweep is made of: every line of its table with every seed, as commands with workdirs.

variants_of    what a sweep's file lists
Plan           the runs of these, each with those that must be finished before it
Run            one command, and its result
"""

import dataclasses
import json
import os
import re
import runpy
import shlex
import sys

from alexnet_jax import config as configuration
from alexnet_jax import network
from alexnet_jax.runtime.errors import InputError, first_line
from alexnet_jax.runtime.files import write_text
from alexnet_jax.runtime.mesh import mesh_shape
from experiments.variants import Ensemble, Variant


@dataclasses.dataclass(frozen=True)
class Run:
    """One command and the workdir in which its eval.json will be."""

    line: str
    seed: int
    workdir: str
    command: list[str]
    needs: list["Run"]  # which must be finished before
    num_epochs: int = 0
    config: str = ""  # the whole of it as JSON: its file may be another next time

    @property
    def name(self) -> str:
        return f"{self.line}, seed {self.seed}"

    @property
    def made_by(self) -> list:
        """All that decides the result; without the interpreter, which may be another one next time."""
        return [self.command[1:], self.config, *(need.made_by for need in self.needs)]

    def epochs_done(self) -> int:
        try:
            with open(os.path.join(self.workdir, "metrics.jsonl")) as file:
                return min(sum(1 for _ in file), self.num_epochs)
        except OSError:
            return 0

    def result(self) -> dict:
        """What `keep_result` kept, if it is of this very run; else {}."""
        kept = _read_json(self._kept)
        return kept.get("result", {}) if kept.get("made_by") == self.made_by else {}

    def keep_result(self) -> bool:
        """Marks the run as finished; False where it has left no result.

        A copy of eval.json, because an evaluation of the workdir by hand writes that anew.
        """
        result = _read_json(os.path.join(self.workdir, "eval.json"))
        if not {"top1_error", "top5_error"} <= result.keys():
            return False
        kept = {"made_by": self.made_by, "result": result}
        write_text(self._kept, json.dumps(kept) + "\n")
        return True

    @property
    def _kept(self) -> str:
        return os.path.join(self.workdir, "sweep.json")


def _read_json(path: str) -> dict:
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def variants_of(sweep: str, config) -> list[Variant | Ensemble]:
    """What the file of --sweep lists for a configuration. Raises InputError."""
    path, _, argument = sweep.partition(":")
    if not os.path.isfile(path):
        raise InputError(f"--sweep={sweep}: there is no such file; give experiments/ablations.py or another")
    try:
        variants = list(runpy.run_path(path)["get_variants"](config, *[argument] * bool(argument)))
        folders = [_folder(variant.name) for variant in variants]
    except Exception as error:  # a file of the user's may raise any
        raise InputError(
            f"--sweep={sweep}: cannot be used ({type(error).__name__}: {first_line(error)})"
        ) from None
    if not variants or not all(folders) or len(set(folders)) < len(folders):
        raise InputError(f"--sweep={sweep}: lists nothing, or two of one name; give each its own")
    earlier = set()
    for variant in variants:
        ensemble = isinstance(variant, Ensemble)
        named = variant.members if ensemble else [variant.init_from] * bool(variant.init_from)
        for name in named:
            if name not in earlier:
                raise InputError(
                    f"--sweep={sweep}: {variant.name} names {name!r}, no network listed before it"
                )
        if not ensemble:
            earlier.add(variant.name)
    return variants


def _folder(name: str) -> str:
    """Empty for a name that is none of a folder."""
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".")


class Plan:
    """The runs of a sweep, the first seed of all lines first.

    Of each line by its name: `overrides`, as flags; `task`, by which errors can be compared.
    """

    def __init__(self, variants, config, config_file: str, given: dict, workdir: str, seeds: int):
        """Raises InputError for a variant that does not work."""
        self.variants, self.overrides, self.task, self._configs = variants, {}, {}, {}
        self._config, self._config_file, self._given, self._workdir = config, config_file, given, workdir
        by_line = {}
        for variant in variants:
            make = self._ensembles if isinstance(variant, Ensemble) else self._trainings
            by_line[variant.name] = make(variant, self._seeds_of(variant.name, seeds), by_line)
        self.runs = sorted((run for runs in by_line.values() for run in runs), key=lambda run: run.seed)

    def of_line(self, name: str) -> list[Run]:
        return [run for run in self.runs if run.line == name]

    def _seeds_of(self, name: str, seeds: int) -> int:
        """How many seeds a line has: those wanted, and those that later lines are made of."""
        wanted = [seeds]
        for variant in self.variants:
            if isinstance(variant, Ensemble):
                wanted.append(seeds * variant.members.get(name, 0))
            elif variant.init_from == name != variant.name:
                wanted.append(self._seeds_of(variant.name, seeds))
        return max(wanted)

    def _place(self, variant, seed: int) -> str:
        return os.path.join(self._workdir, _folder(variant.name), f"seed-{seed}")

    def _trainings(self, variant: Variant, seeds: int, by_line: dict) -> list[Run]:
        config = self._configs[variant.name] = self._checked(variant)
        self.overrides[variant.name] = shlex.join(as_flags(variant.overrides))
        self.task[variant.name] = _task(config)
        starts, runs = by_line.get(variant.init_from, []), []
        for seed in range(seeds):
            config.seed = seed
            needs, folder = starts[seed : seed + 1], self._place(variant, seed)
            command = [
                *(sys.executable, "-m", "alexnet_jax.main"),
                f"--config={variant.config or self._config_file}",
                *as_flags({**self._given, **variant.overrides, "seed": seed}),
                *(f"--config.init_from={need.workdir}" for need in needs),
                f"--workdir={folder}",
            ]
            text = json.dumps(config.to_dict(), sort_keys=True)
            runs.append(Run(variant.name, seed, folder, command, needs, config.num_epochs, text))
        return runs

    def _checked(self, variant: Variant):
        """The configuration of its runs."""
        config = self._config.copy_and_resolve_references()
        if variant.config:
            path, _, argument = variant.config.partition(":")
            try:
                config = runpy.run_path(path)["get_config"](*[argument] * bool(argument))
            except Exception as error:  # a configuration's file may raise any
                why = f"{type(error).__name__}: {first_line(error)}"
                raise InputError(f"variant {variant.name!r}: {path} cannot be used ({why})") from None
        _update(config, {**self._given, **variant.overrides}, variant.name)
        return config

    def _ensembles(self, variant: Ensemble, seeds: int, by_line: dict) -> list[Run]:
        tasks, runs = set(), []
        for member in variant.members:
            config = self._configs[member].copy_and_resolve_references()
            _update(config, variant.overrides, variant.name)
            tasks.add(_task(config))
        if len(tasks) > 1:
            raise InputError(f"variant {variant.name!r}: its members differ in data, split or classes")
        (self.task[variant.name],) = tasks
        members = " and ".join(f"{n} of {name}" for name, n in variant.members.items())
        self.overrides[variant.name] = " ".join([members, *as_flags(variant.overrides)])
        # A member's config.json may say where the data lay on another machine, and how to evaluate by hand.
        where = {
            field: value
            for field, value in self._given.items()
            if field in ("data.dir", "data.manual_dir") or field.startswith("eval.")
        }
        flags = as_flags({**where, **variant.overrides})
        for seed in range(seeds):
            needs = [
                run for name, n in variant.members.items() for run in by_line[name][seed * n : seed * n + n]
            ]
            folder = self._place(variant, seed)
            command = [
                *(sys.executable, "-m", "experiments.ensemble", *(need.workdir for need in needs), *flags),
                f"--out={folder}/eval.json",
            ]
            runs.append(Run(variant.name, seed, folder, command, needs))
        return runs


def _task(config) -> tuple:
    return config.data.name, config.data.test_split, config.model.num_classes


def _update(config, fields: dict, name: str) -> None:
    """Raises InputError for what does not work in the variant `name`."""
    try:
        config.update_from_flattened_dict(fields)
        configuration.check(config)
        network.layer_table(config)
        mesh_shape(config, None, ("batch_size", "eval.batch_size"))
    except Exception as error:  # ml_collections raises many kinds
        raise InputError(f"variant {name!r}: {' '.join(str(error).split())}") from None


def as_flags(fields: dict) -> list[str]:
    return [f"--config.{field}={value}" for field, value in fields.items()]
