"""The runs of a sweep: every line of its table with every seed, as commands with workdirs.

load_variants    return the lines that a sweep's file lists
Plan             the runs of all lines, each with the runs that must finish before it
Run              one command, and its result
"""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

from alexnet_jax import config as configuration
from alexnet_jax.datasets import fingerprints
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text
from alexnet_jax.workdirs import identity
from alexnet_jax.workdirs.workdir import config_of, read_config, read_result
from experiments.sweeps.variants import Ensemble, Variant

FOLDER = "experiments/sweeps"


@dataclasses.dataclass(frozen=True)
class Run:
    """One command and the workdir in which it writes eval.json."""

    line: str
    seed: int
    workdir: str
    command: list[str]
    needs: list["Run"]  # runs that must finish first
    num_epochs: int = 0
    config: str = ""  # as JSON: the configuration's file may be edited before the sweep resumes
    data: str = ""  # data_of its configuration

    @property
    def name(self) -> str:
        """Return the name of the run in the log."""
        return f"{self.line}, seed {self.seed}"

    @property
    def made_by(self) -> list:
        """Return all that decides the result, which does not include the interpreter."""
        data = fingerprints.combined(self.data)
        return [self.command[1:], self.config, data, *(need.made_by for need in self.needs)]

    def epochs_done(self) -> int:
        """Return the number of epochs after which the run has validated."""
        from alexnet_jax.workdirs.metrics import read_rows

        try:
            return min(len(read_rows(self.workdir)), self.num_epochs)
        except InputError:
            return 0

    def result(self) -> dict:
        """Return the result that `keep_result` stored for the same run, or {}."""
        try:
            with open(self._kept) as file:
                kept = json.load(file)
            return kept["result"] if kept["made_by"] == self.made_by else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def keep_result(self) -> bool:
        """Mark the run as finished; return False if it left no result.

        This copies eval.json, because evaluating the workdir by hand overwrites that file.
        """
        result = read_result(self.workdir)
        if result:
            write_text(self._kept, json.dumps({"made_by": self.made_by, "result": result}) + "\n")
        return bool(result)

    def set_aside_what_is_stale(self) -> list[str]:
        """Rename files of another configuration, other data or other pre-training in the workdir.

        Return one line for each. A run that only lacks its last epochs stays.
        """
        stored = read_config(self.workdir)
        if stored is not None and self.config:
            config = config_of(json.loads(self.config))
            if (
                configuration.differences(config, stored)
                or self._is_of_other_data()
                or self._starts_from_another()
            ):
                return [_rename(self.workdir)]
        result, now = read_result(self.workdir), json.loads(self.data or "{}").get("test")
        other = now is not None and {name: result.get(name) for name in now} != now
        if not self.config:  # an ensemble
            members = [(need.result().get("run"), need.result().get("step")) for need in self.needs]
            other |= list(zip(result.get("runs", ()), result.get("steps", ()), strict=False)) != members
        if result and other:
            return [_rename(os.path.join(self.workdir, "eval.json"))]
        return []

    def _is_of_other_data(self) -> bool:
        """Return whether the run learned from other data than the present data."""
        stored, now = identity.read(self.workdir), json.loads(self.data or "{}")
        return any(stored and stored[name] and now and stored[name] != now[name] for name in identity.SPLITS)

    def _starts_from_another(self) -> bool:
        """Return whether the run started from other parameters than it would start from now."""
        origin = (identity.read(self.workdir) or {}).get("origin", {})
        wanted = [need.result() for need in self.needs]
        return any(
            result.get("run") and (origin.get("run"), origin.get("step")) != (result["run"], result["step"])
            for result in wanted
        )

    @property
    def _kept(self) -> str:
        return os.path.join(self.workdir, "sweep.json")


def _rename(path: str) -> str:
    """Rename a file or folder to the first free name of path.old-1, path.old-2, …; return both."""
    numbers = itertools.count(1)
    aside = next(name for name in (f"{path}.old-{n}" for n in numbers) if not os.path.lexists(name))
    os.rename(path, aside)
    return f"{path} is kept as {aside}"


def data_of(config) -> str:
    """Return the identity of the splits that a run reads, as JSON, or "" if they cannot be opened here.

    The run itself then reports the reason.
    """
    from alexnet_jax.datasets.source import open_source

    try:
        train, val, test = (open_source(config, f"{name}_split") for name in (*identity.SPLITS, "test"))
        splits = {"train": identity.of_split(train), "val": identity.of_split(val)}
        return json.dumps({**splits, "test": identity.of_result(test)}, sort_keys=True)
    except InputError:
        return ""


def load_variants(sweep: str, config) -> list[Variant | Ensemble]:
    """Return the lines that --sweep=FILE[:ARG] lists for a configuration. Raises InputError.

    A FILE that is missing in experiments/ is searched in experiments/sweeps/.
    """
    path, colon, argument = sweep.partition(":")
    file = pathlib.Path(path)
    if not file.is_file() and file.parent.name == "experiments":
        file = file.parent / "sweeps" / file.name
    value = f"{file}{colon}{argument}" if file.is_file() else sweep
    variants = command_line.call_file("--sweep", value, "get_variants", config, folder=FOLDER)
    kinds = Variant | Ensemble
    if not isinstance(variants, list) or not all(isinstance(variant, kinds) for variant in variants):
        raise InputError(f"--sweep={sweep}: its get_variants does not return a list of Variant and Ensemble")
    folders = [_folder(variant.name) for variant in variants]
    if not variants or not all(folders) or len(set(folders)) < len(folders):
        raise InputError(f"--sweep={sweep}: lists nothing, or two with one name; give each its own name")
    _check_order(sweep, variants)
    return variants


def _check_order(sweep: str, variants: list) -> None:
    """Raise InputError unless each line comes after the lines that it uses."""
    networks = set()
    for variant in variants:
        ensemble = isinstance(variant, Ensemble)
        named = variant.members if ensemble else [variant.init_from] * bool(variant.init_from)
        for name in named:
            if name not in networks:
                raise InputError(
                    f"--sweep={sweep}: {variant.name} names {name!r}, which is not a network listed before it"
                )
        if not ensemble:
            networks.add(variant.name)


def _folder(name: str) -> str:
    """Return the folder of a line, or "" if its name gives none."""
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".")


class Plan:
    """The runs of a sweep, the first seed of all lines first.

    For each line by name, `overrides` has its flags, and `task` is equal for lines with comparable errors.
    """

    def __init__(
        self,
        variants,
        config,
        config_file: str,
        given: dict,
        workdir: str,
        seeds: int,
        data_of: Callable[[Any], str] = lambda _: "",
        first_seed: int = 0,
    ):
        """Plan `seeds` results of each line. Raises InputError for a variant that does not work."""
        if first_seed and any(isinstance(variant, Ensemble) for variant in variants):
            raise InputError(f"--first_seed={first_seed}: ensembles count seeds from 0; leave it out")
        self._data_of, self._data, self._first_seed = data_of, {}, first_seed
        self.variants, self.overrides, self.task, self._configs = variants, {}, {}, {}
        self._config, self._config_file, self._given, self._workdir = config, config_file, given, workdir
        by_line = {}
        for variant in variants:
            plan = self._ensembles if isinstance(variant, Ensemble) else self._trainings
            by_line[variant.name] = plan(variant, self._seeds_of(variant.name, seeds), by_line)
        self.runs = sorted((run for runs in by_line.values() for run in runs), key=lambda run: run.seed)

    def of_line(self, name: str) -> list[Run]:
        """Return the runs of a line, by seed."""
        return [run for run in self.runs if run.line == name]

    def _seeds_of(self, name: str, seeds: int) -> int:
        """Return the number of seeds of a line, for itself and for later lines that use it."""
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
        config = self._configs[variant.name] = self._config_of(variant)
        self.overrides[variant.name] = shlex.join(as_flags(variant.overrides))
        self.task[variant.name] = _task(config)
        starts, runs = by_line.get(variant.init_from, []), []
        for number, seed in enumerate(range(self._first_seed, self._first_seed + seeds)):
            config.seed = seed
            needs, folder = starts[number : number + 1], self._place(variant, seed)
            command = [
                *(sys.executable, "-m", "alexnet_jax.main"),
                f"--config={variant.config or self._config_file}",
                *as_flags({**self._given, **variant.overrides, "seed": seed}),
                *(f"--config.init_from={need.workdir}" for need in needs),
                f"--workdir={folder}",
            ]
            text = json.dumps(config.to_dict(), sort_keys=True)
            data = self._data_of_config(config)
            runs.append(Run(variant.name, seed, folder, command, needs, config.num_epochs, text, data))
        return runs

    def _config_of(self, variant: Variant):
        """Return the configuration of a line's runs."""
        try:
            own = configuration.load(variant.config) if variant.config else self._config
        except InputError as error:
            raise InputError(f"variant {variant.name!r}: {error}") from None
        return _changed(own, {**self._given, **variant.overrides}, variant.name)

    def _ensembles(self, variant: Ensemble, seeds: int, by_line: dict) -> list[Run]:
        configs = [_changed(self._configs[name], variant.overrides, variant.name) for name in variant.members]
        tasks = {_task(config) for config in configs}
        if len(tasks) > 1:
            raise InputError(f"variant {variant.name!r}: its members differ in data, split or classes")
        (self.task[variant.name],) = tasks
        members = " and ".join(f"{n} of {name}" for name, n in variant.members.items())
        self.overrides[variant.name] = " ".join([members, *as_flags(variant.overrides)])
        # A member's config.json may name a data folder of another machine, or other evaluation fields.
        where = {
            field: value
            for field, value in self._given.items()
            if field in ("data.dir", "data.manual_dir") or field.startswith("eval.")
        }
        flags, runs, data = as_flags({**where, **variant.overrides}), [], self._data_of_config(configs[0])
        for seed in range(seeds):
            needs = [
                run for name, n in variant.members.items() for run in by_line[name][seed * n : seed * n + n]
            ]
            folder = self._place(variant, seed)
            command = [
                *(sys.executable, "-m", "experiments.ensemble", *(need.workdir for need in needs), *flags),
                f"--out={folder}/eval.json",
            ]
            runs.append(Run(variant.name, seed, folder, command, needs, data=data))
        return runs

    def _data_of_config(self, config) -> str:
        """Return `data_of` a configuration, computed once for all with the same data fields."""
        key = json.dumps(config.data.to_dict(), sort_keys=True)
        if key not in self._data:
            self._data[key] = self._data_of(config)
        return self._data[key]


def _task(config) -> tuple:
    return config.data.name, config.data.test_split, config.model.num_classes


def _changed(config, overrides: dict, name: str):
    """Return a copy of `config` with the overrides of the variant `name`. Raises InputError."""
    from alexnet_jax.runtime.mesh import mesh_shape
    from alexnet_jax.table import layer_table

    config = config.copy_and_resolve_references()
    try:
        configuration.override(config, overrides, "its configuration")
        configuration.check(config)
        layer_table(config)
        mesh_shape(config, None, ("batch_size", "eval.batch_size"))
    except InputError as error:
        raise InputError(f"variant {name!r}: {error}") from None
    return config


def as_flags(fields: dict) -> list[str]:
    """Return {FIELD: VALUE} as flags of a command."""
    return [f"--config.{field}={value}" for field, value in fields.items()]
