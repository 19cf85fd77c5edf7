"""TFDS's syntax of splits for data outside TFDS: `train`, `train[:90%]`, `train[-50:]+val`.

It is parsed here because importing TFDS takes longer than opening a folder.
"""

import dataclasses
import re

_BOUND = r"(?:-?[\d_.]+%?)?"
_PART = re.compile(rf"([\w-]+)(?:\[({_BOUND}):({_BOUND})\])?")


@dataclasses.dataclass(frozen=True)
class Part:
    """One term of a sum: a split, or a slice of it."""

    name: str
    first: float | None = None  # None: from the beginning
    last: float | None = None  # None: to the end
    percent: bool = False  # both bounds are percentages, otherwise integers

    def places(self, examples: int) -> slice:
        """Return the slice of a split with this number of examples, with bounds from 0 to `examples`.

        Percentages are rounded to the closest example. Raises ValueError for a bound outside the split.
        """
        first, last = self._place(self.first, 0, examples), self._place(self.last, examples, examples)
        if max(abs(first), abs(last)) > examples:
            raise ValueError(f"{self.name} has {examples} examples")
        return slice(*(bound + examples if bound < 0 else bound for bound in (first, last)))

    def _place(self, bound: float | None, default: int, examples: int) -> int:
        if bound is None:
            return default
        return round(bound * examples / 100) if self.percent else int(bound)


def parse(split: str) -> list[Part]:
    """Return the terms of a split. Raises ValueError for a syntax error."""
    return [_parse_part(text) for text in re.split(r"\s*\+\s*", split)]


def _parse_part(text: str) -> Part:
    match = _PART.fullmatch(text)
    if match is None or match[2] == match[3] == "":
        raise ValueError(f"{text!r} is not a split")
    bounds, percent = match.groups(default="")[1:], "%" in text  # % on one bound applies to both
    first, last = ((float if percent else int)(bound.rstrip("%")) if bound else None for bound in bounds)
    if percent and max(abs(first or 0), abs(last or 0)) > 100:
        raise ValueError(f"{text!r} goes beyond 100%")
    return Part(match[1], first, last, percent)
