"""Files of weights as other programs write them, read without running anything that they hold.

    opened        the tensors of a file of torch.save, safetensors or Caffe, by name
    caffe_blob    the array of a .binaryproto of Caffe, such as a mean image
    write         a .safetensors file

What a file is, its first bytes decide, not its name. Until a tensor's `read` is called no more than names,
types and shapes is taken from the file. All arrays are float32, with the layout that they have there.
"""

import contextlib
import dataclasses
import functools
import io
import math
import mmap
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax.errors import InputError

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_MAX_PICKLE = 1 << 20  # bytes, and a tenth as many instructions: AlexNet's state dict has 2,000 of them
_MAX_FIELDS = 100_000  # of one message of protobuf


class Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Weights:
    tensors: dict[str, Tensor]
    from_caffe: bool = False  # then the first layer's inputs are blue, green, red
    order: tuple[str, ...] = ()  # of "lrn" and "pool" in the network, where the file has its layers
    exported_from: str = ""  # the name of the configuration whose run `weights export` wrote


class _Unusable(Exception):
    """What is wrong with a file that is not damaged; what to do."""


@contextlib.contextmanager
def opened(path: str, caffe: bool) -> Iterator[Weights]:
    """The weights in a file; `caffe` allows it to be a .caffemodel, which no first bytes tell.

    Raises InputError, from the `with` block too, for a file that is damaged, of an unknown format, or holds
    more than tensors.
    """
    with _errors_of(path), open(path, "rb") as file:
        start = file.read(len(_LEGACY_MAGIC))
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            yield _torch_zip(file)
        elif start == _LEGACY_MAGIC:
            yield _torch_legacy(file)
        elif start[8:9] == b"{":
            yield _safetensors(path)
        elif caffe:
            yield _caffe(_map(file))
        else:
            raise _Unusable("is not of torch.save or safetensors; give a .pth or .safetensors file")


@contextlib.contextmanager
def _errors_of(path: str):
    """All that can go wrong with a file, as InputError."""
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "there is no such file"
        raise InputError(f"{path}: {what}; give a file of weights")
    try:
        yield
    except InputError:
        raise
    except _Unusable as error:
        raise InputError(f"{path}: {error}") from None
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); see to its permissions") from None
    except Exception as error:  # zipfile, pickletools and safetensors raise nearly every kind
        reason = ascii((str(error) or type(error).__name__).splitlines()[0][:100])[1:-1]
        raise InputError(f"{path}: is damaged or cut short ({reason}); get it again") from None


def write(path: str, arrays: dict[str, np.ndarray], exported_from: str) -> None:
    """A .safetensors file, whole or not at all. Raises OSError."""
    metadata = {"format": "pt", "alexnet_jax.config": exported_from}
    content = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata)
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(part)


def _map(file) -> memoryview:
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _safetensors(path: str) -> Weights:
    file = safetensors.safe_open(path, framework="numpy")
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (it is no dictionary)
        part = file.get_slice(name)
        dtype = "float32" if part.get_dtype() == "F32" else part.get_dtype()
        tensors[name] = Tensor(dtype, tuple(part.get_shape()), functools.partial(file.get_tensor, name))
    return Weights(tensors, exported_from=(file.metadata() or {}).get("alexnet_jax.config", ""))


# torch.save. Either format describes the tensors by a pickle, and has their numbers apart from it.


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that a pickle would import."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    length: int


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor: numbers of a storage, in steps of `strides`."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """This tensor, given all numbers of its storage."""
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if not math.prod(self.shape) <= len(numbers) or last >= len(numbers):
            raise ValueError("a tensor is larger than its storage")
        strides = [step * numbers.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides).copy()


_DTYPES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "BoolStorage": "bool",
}  # fmt: skip
_ITEM_SIZES = dict(float32=4, float64=8, float16=2, bfloat16=2, int64=8, int32=4, bool=1)


def _torch_zip(file) -> Weights:
    """torch.save since 1.6: data.pkl, and data/KEY with the numbers of each storage, nothing compressed."""
    archive = zipfile.ZipFile(file)
    folders = [name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise _Unusable("is an archive, but not of torch.save; give a file of torch.save(model.state_dict())")

    def content(name: str, limit: float = math.inf) -> bytes:
        member = archive.getinfo(folders[0] + name)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > limit:
            raise _Unusable(f"has {name} compressed or too large; torch.save does not write it so")
        return archive.read(member)

    byte_order = "<"
    if folders[0] + "byteorder" in archive.namelist():
        byte_order = {b"little": "<", b"big": ">"}[content("byteorder", 6)]

    def read(view: _View) -> np.ndarray:
        numbers = np.frombuffer(content(f"data/{view.storage.key}"), byte_order + "f4")
        if len(numbers) != view.storage.length:
            raise ValueError("a storage has another length")
        return view.of(numbers).astype(np.float32, copy=False)

    return _weights(_state_dict(_unpickle(io.BytesIO(content("data.pkl", _MAX_PICKLE)))), read)


def _torch_legacy(file) -> Weights:
    """torch.save before 1.6: five pickles, then for each storage its length and numbers, little-endian."""
    for _ in range(3):  # magic number, version, what the sizes of numbers were
        _unpickle(file)
    views = _state_dict(_unpickle(file))
    storages = {view.storage.key: view.storage for view in views.values()}
    keys, at = _unpickle(file), file.tell()
    content, numbers = _map(file), {}
    for key in _of_type(list, keys):
        length, at = int.from_bytes(content[at : at + 8], "little"), at + 8
        end = at + length * _ITEM_SIZES[storages[key].dtype]
        if length != storages[key].length or end > len(content):
            raise ValueError("a storage has another length")
        numbers[key] = content[at:end]
        at = end

    def read(view: _View) -> np.ndarray:
        return view.of(np.frombuffer(numbers[view.storage.key], "<f4")).astype(np.float32, copy=False)

    return _weights(views, read)


def _weights(views: dict[str, _View], read: Callable[[_View], np.ndarray]) -> Weights:
    return Weights(
        {
            name: Tensor(view.storage.dtype, view.shape, functools.partial(read, view))
            for name, view in views.items()
        }
    )


def _state_dict(unpickled) -> dict[str, _View]:
    advice = "give a file of torch.save(model.state_dict())"
    if not isinstance(unpickled, dict):
        raise _Unusable(f"holds no state dict; {advice}")
    for name, value in unpickled.items():
        if not isinstance(value, _View):
            raise _Unusable(f"holds more than a state dict ({ascii(name)[:60]} is no tensor); {advice}")
    return unpickled


_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING",
    "SHORT_BINSTRING",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def _unpickle(file) -> Any:
    """What the pickle at the position of `file` describes; the position is then after it.

    A pickle is a program for a machine with a stack, of which this is the part that torch.save writes. No
    instruction imports or calls anything here: names are kept as _Global, and the few calls that describe
    tensors and dictionaries are known to `_called`. Raises _Unusable for any other, ValueError for nonsense.
    """
    stack, marks, memo = [], [], {}

    def pop(count: int) -> list:
        if count > len(stack):
            raise ValueError("a pickle takes more than it has")
        top = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return top

    def pop_to_mark() -> list:
        return pop(len(stack) - marks.pop())

    for number, (op, arg, _) in enumerate(pickletools.genops(file)):
        if number > _MAX_PICKLE // 10:
            raise _Unusable("holds far more than a state dict; give a file of torch.save(model.state_dict())")
        name = op.name
        if name in _LITERALS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(pop_to_mark() if name == "TUPLE" else pop(int(name[-1]))))
        elif name in ("APPEND", "APPENDS"):
            items = pop_to_mark() if name == "APPENDS" else pop(1)
            _of_type(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = pop_to_mark() if name == "SETITEMS" else pop(2)
            _set_items(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "GLOBAL":
            stack.append(_Global(arg.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            stack.append(_Global(".".join(_of_type(str, part) for part in pop(2))))
        elif name == "BINPERSID":
            stack.append(_storage(*_of_type(tuple, pop(1)[0])))
        elif name == "REDUCE":
            stack.append(_called(*pop(2)))
        elif name == "BUILD":  # attributes of an OrderedDict: state_dict's _metadata, the versions of modules
            pop(1)
            _of_type(dict, stack[-1])
        elif name == "STOP":
            return pop(1)[0]
        elif name not in ("PROTO", "FRAME"):
            raise _Unusable(
                f"holds more than a state dict (pickle instruction {name}), of which nothing was run; give a"
                " file of torch.save(model.state_dict())"
            )
    raise ValueError("a pickle without end")


def _of_type(kind: type, value):
    if type(value) is not kind:
        raise ValueError(f"a pickle has no {kind.__name__} where one belongs")
    return value


def _set_items(target, items) -> dict:
    # Keys are strings: the hash of nested tuples can take for ever.
    _of_type(dict, target).update((_of_type(str, key), value) for key, value in items)
    return target


def _natural(*numbers) -> None:
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers):
        raise ValueError("a pickle has no natural number where one belongs")


def _storage(tag, kind, key, location, length, *view) -> _Storage:
    """A reference to numbers kept apart from the pickle."""
    module, _, name = _of_type(_Global, kind).name.rpartition(".")
    if tag != "storage" or module != "torch" or name not in _DTYPES or view not in ((), (None,)):
        raise ValueError("a pickle refers to a storage of an unknown kind")
    _natural(length)
    return _Storage(_of_type(str, key), _DTYPES[name], length)


def _called(function, arguments):
    """The result of the calls that torch.save and OrderedDict write."""
    name = _of_type(_Global, function).name
    if name == "collections.OrderedDict":
        items = arguments[0] if arguments else []
        return _set_items({}, (_of_type(list, pair) for pair in _of_type(list, items)))
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        storage, offset, shape, strides, *_ = _of_type(tuple, arguments)
        _natural(offset, *_of_type(tuple, shape), *_of_type(tuple, strides))
        return _View(_of_type(_Storage, storage), offset, shape, strides)
    if name == "torch._utils._rebuild_parameter":
        return _of_type(_View, arguments[0])
    raise _Unusable(
        f"holds more than a state dict (a call of {ascii(name)[:60]}), of which nothing was run; give a"
        " file of torch.save(model.state_dict())"
    )


# Caffe: messages of protobuf, by the field numbers of src/caffe/proto/caffe.proto.


def _caffe(content: memoryview) -> Weights:
    """NetParameter: its layers are in field 100, or in field 2 (V1LayerParameter) before 2015."""
    tensors, order = {}, []
    for number, value in _fields(content):
        if number not in (2, 100):
            continue
        fields = list(_fields(value))
        name_field, kind_field, blobs_field = (1, 2, 7) if number == 100 else (4, 5, 6)
        name = b"".join(v for n, v in fields if n == name_field).decode()
        kinds = [v if isinstance(v, int) else bytes(v) for n, v in fields if n == kind_field]
        order += [_CAFFE_LAYERS[kind] for kind in kinds if kind in _CAFFE_LAYERS]
        for place, blob in enumerate(v for n, v in fields if n == blobs_field):
            shape, read = _blob(blob)
            if len(shape) == 4 and shape[:2] == (1, 1):  # before 2015 all blobs had four axes
                shape = shape[2:] if place == 0 else shape[3:]
            parameter = f"{name}.{('weight', 'bias')[place] if place < 2 else place}"
            if parameter in tensors:
                raise _Unusable(f"has two layers with the name {ascii(name)[:60]}; give the file of one net")
            tensors[parameter] = Tensor("float32", shape, functools.partial(_reshaped, read, shape))
    if not tensors:
        raise _Unusable("has no weights that could be Caffe's; give a .caffemodel or .safetensors file")
    return Weights(tensors, from_caffe=True, order=tuple(order))


_CAFFE_LAYERS = {b"LRN": "lrn", 15: "lrn", b"Pooling": "pool", 17: "pool"}


def _reshaped(read, shape):
    return read().reshape(shape)


def caffe_blob(path: str) -> np.ndarray:
    """The array of a BlobProto file. Raises InputError."""
    with _errors_of(path), open(path, "rb") as file:
        shape, read = _blob(_map(file))
        return read().reshape(shape)


def _blob(message: memoryview) -> tuple[tuple[int, ...], Callable[[], np.ndarray]]:
    """Shape and numbers of a BlobProto: data 5, shape 7, or num, channels, height, width 1 to 4."""
    old, shape, data = {}, None, []
    for number, value in _fields(message):
        if number in (1, 2, 3, 4):
            old[number] = value
        elif number == 5:
            data.append(value)
        elif number == 7:
            shape = _dimensions(value)
        elif number == 8:
            raise _Unusable("has weights of type float64; convert them to float32")
    if shape is None:
        shape = tuple(old.get(number, 0) for number in (1, 2, 3, 4))
    if 4 * math.prod(shape) != sum(len(part) for part in data):
        raise ValueError("a blob has another size than its shape")
    return shape, lambda: np.frombuffer(b"".join(data), "<f4").astype(np.float32)


def _dimensions(message: memoryview) -> tuple[int, ...]:
    """BlobShape: dim 1, packed or not."""
    dims = []
    for number, value in _fields(message):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 1:
            at = 0
            while at < min(len(value), 99):
                dim, at = _varint(value, at)
                dims.append(dim)
        if len(dims) > 8:
            raise ValueError("a blob has too many dimensions")
    return tuple(dims)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: an int of a varint, else its bytes. Raises ValueError or IndexError."""
    at = 0
    for _ in range(_MAX_FIELDS):
        if at == len(message):
            return
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        else:
            length = {1: 8, 5: 4}[kind]
        if at + length > len(message):
            raise ValueError("a length points beyond the end")
        yield number, message[at : at + length]
        at += length
    raise ValueError("too many fields")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(number, position after it)."""
    value = 0
    for shift in range(0, 70, 7):
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without end")
