"""The lines of a sweep's table.

A file for --sweep=FILE[:ARGUMENT] has `get_variants(config)`, or `get_variants(config, argument)`; `config`
is the configuration of --config. It returns a list of Variant and Ensemble, the baseline first.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network to train."""

    name: str
    overrides: dict  # field of the configuration -> value
    paper: str  # the paper's result
    config: str = ""  # configs/NAME.py[:ARG], if it differs from --config
    init_from: str = ""  # name of an earlier variant; training starts from its run with the same seed

    def __post_init__(self):
        _check_overrides(self.name, self.overrides)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The mean of networks that other lines of the table train."""

    name: str
    members: dict  # name of a variant -> number of its seeds
    paper: str
    overrides: dict = dataclasses.field(default_factory=dict)  # of the evaluation

    def __post_init__(self):
        _check_overrides(self.name, self.overrides)
        numbers = self.members.values() if isinstance(self.members, dict) else [0]
        whole = [type(number) is int and number > 0 for number in numbers]
        _check(bool(whole) and all(whole), f"{self.name}: members are not {{VARIANT: NUMBER OF SEEDS}}")


def _check_overrides(name: str, overrides: dict) -> None:
    fields = overrides if isinstance(overrides, dict) else [None]
    _check(all(isinstance(field, str) for field in fields), f"{name}: overrides are not {{FIELD: VALUE}}")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
