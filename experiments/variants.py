"""What a sweep's file lists: lines of its table, the baseline first.

A sweep's file has `get_variants(config)`, or `get_variants(config, argument)` for --sweep=FILE:ARGUMENT,
where `config` is the configuration swept. It returns a list of these.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network that is trained."""

    name: str
    overrides: dict  # field of the configuration -> value
    paper: str  # what the paper reports
    config: str = ""  # configs/NAME.py[:ARG] where it is another than the one swept
    init_from: str = ""  # the name of an earlier variant, from whose run of the same seed it starts

    def __post_init__(self):
        _check(isinstance(self.overrides, dict), f"{self.name}: overrides are not {{FIELD: VALUE}}")


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Networks that are trained as other lines of the table, averaged."""

    name: str
    members: dict  # name of a variant -> number of its seeds
    paper: str
    overrides: dict = dataclasses.field(default_factory=dict)  # of the evaluation

    def __post_init__(self):
        _check(isinstance(self.overrides, dict), f"{self.name}: overrides are not {{FIELD: VALUE}}")
        numbers = self.members.values() if isinstance(self.members, dict) else [0]
        whole = [type(number) is int and number > 0 for number in numbers]
        _check(whole and all(whole), f"{self.name}: members are not {{VARIANT: NUMBER OF SEEDS}}")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
