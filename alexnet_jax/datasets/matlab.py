"""Structures in a file of MATLAB 5 to 7 (.mat), such as the development kits of ILSVRC have.

The format is "MAT-File Level 5 File Format" of MathWorks. SciPy reads more of it, but a damaged file can end
the process there. Here all lengths are checked against what follows.
"""

import itertools
import math
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

_MATRIX, _COMPRESSED = 14, 15  # types of elements
_STRUCT, _CHAR = 2, 4  # classes of a matrix; other classes that are read are numbers
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
Element = tuple[int, bytes]  # type and content


def struct_array(content: bytes, name: str, fields: Iterable[str], limit: int) -> list[dict]:
    """Return a variable that is an array of structures: for each the `fields`, a text or a number.

    A field of several numbers is the first of them. Raises ValueError for a file that is damaged, has no such
    variable or field, or unpacks to more than `limit` bytes.
    """
    orders = {b"IM": "<", b"MI": ">"}
    if content[126:128] not in orders:
        raise ValueError("is no file of MATLAB 5 to 7")
    order = orders[content[126:128]]
    for kind, part in _elements(content[128:], order):
        if kind == _COMPRESSED:
            try:
                part = zlib.decompressobj().decompress(part, limit + 1)
            except zlib.error as error:
                raise ValueError(f"is damaged: {error}") from None
            if len(part) > limit:
                raise ValueError(f"unpacks to more than {limit:,} bytes")
            kind, part = next(_elements(part, order), (0, b""))
        if kind == _MATRIX:
            elements = _elements(part, order)
            head = list(itertools.islice(elements, 3))  # flags, dimensions and name
            if len(head) == 3 and head[2][1] == name.encode() and _class(head[0], order) == _STRUCT:
                return _structs(elements, tuple(fields), order)
    raise ValueError(f"has no structures {name}")


def _structs(elements: Iterator[Element], fields: tuple[str, ...], order: str) -> list[dict]:
    """Return the rows of a structure from what follows its name."""
    width = int(_numbers(_next(elements), order)[0])
    names = _next(elements)[1]
    if not 0 < width <= 64 or len(names) % width:
        raise ValueError("is damaged: names of fields")
    there = [
        names[at : at + width].split(b"\0", 1)[0].decode("latin-1") for at in range(0, len(names), width)
    ]
    lacking = [field for field in fields if field not in there]
    if lacking:
        raise ValueError(f"has no field {lacking[0]}")
    values = [part for _, part in elements]
    if len(values) % len(there):
        raise ValueError("is cut short")
    places = {field: there.index(field) for field in fields}
    return [
        {field: _value(values[start + place], order) for field, place in places.items()}
        for start in range(0, len(values), len(there))
    ]


def _value(matrix: bytes, order: str) -> str | float:
    """Return the text of a matrix, or its first number."""
    elements = _elements(matrix, order)
    flags, _, _ = _next(elements), _next(elements), _next(elements)
    kind, data = _next(elements)
    if _class(flags, order) != _CHAR:
        return _numbers((kind, data), order)[0].item()
    if kind not in _TEXTS:
        raise ValueError(f"is damaged: a text of type {kind}")
    encoding = _TEXTS[kind]
    return data.decode(encoding + {"<": "-le", ">": "-be"}[order] if encoding == "utf-16" else encoding)


def _class(flags: Element, order: str) -> int:
    return int(_numbers(flags, order)[0]) & 0xFF


def _numbers(element: Element, order: str) -> np.ndarray:
    """Return the numbers of an element. Raises ValueError if it has none."""
    kind, data = element
    if kind not in _NUMBERS or not data:
        raise ValueError(f"is damaged: no number in an element of type {kind}")
    return np.frombuffer(data, order + _NUMBERS[kind])


def _next(elements: Iterator[Element]) -> Element:
    element = next(elements, None)
    if element is None:
        raise ValueError("is cut short")
    return element


def _elements(data: bytes, order: str) -> Iterator[Element]:
    """Yield the elements that follow each other in `data`."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:  # a small element has its type, size and content in 8 bytes
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise ValueError("is damaged: a small element of more than 4 bytes")
        if start + size > len(data):
            raise ValueError("is cut short")
        yield kind, data[start : start + size]
        at = start + size if kind == _COMPRESSED else math.ceil((start + size) / 8) * 8
