"""Read weight files of other programs without running any code in them.

    opened        yield the tensors of a file of torch.save, safetensors or Caffe, by name
    caffe_blob    return the array of a .binaryproto of Caffe, such as a mean image
    write         write a .safetensors file

The first bytes of a file decide its type, not its name. All arrays are float32, in the file's layout.
"""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors

from alexnet_jax.runtime.errors import InputError, first_line
from alexnet_jax.runtime.files import BoundedReader, atomic_write, read_file, stand_in


class Tensor(NamedTuple):
    """A tensor of a file, not read yet."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a file by name, and other information in it."""

    tensors: dict[str, Tensor]
    from_caffe: bool = False  # then the first layer's inputs are blue, green, red
    order: tuple[str, ...] = ()  # of "lrn" and "pool" in the network, if the file has its layers
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)  # of a .safetensors file


class _Unusable(Exception):
    """A file that is not damaged cannot be used; the message has the problem and the remedy."""


@contextlib.contextmanager
def opened(path: str, caffe: bool) -> Iterator[Weights]:
    """Read the weights in a file; `caffe` allows a .caffemodel, which its first bytes do not reveal.

    Raises InputError, from the `with` block too, for a file that is damaged, has an unknown format, or holds
    more than tensors.
    """
    with _errors_of(path), BoundedReader(open(path, "rb", buffering=0), _MAX_DIRECTORY) as file:
        start = file.read(_START)
        file.seek(0)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield _torch(file)
        elif start[8:9] == b"{" and b"\0" in start[:8]:  # the length of the header, and the header
            yield _safetensors(path)
        else:
            _reject_others(start)
            if start.startswith(b"\x80\x02"):
                raise _Unusable("is not from torch.save since 1.6; save it again with a newer PyTorch")
            if not caffe:
                raise _Unusable(
                    "is not from torch.save or safetensors; give a .pth or .safetensors file, or --from=caffe"
                    " with a .caffemodel"
                )
            blob = re.match(rb"\x08[\x80-\xff]{0,9}[\x00-\x7f]\x10", start)  # BlobProto's num and channels
            if blob:
                raise _Unusable("is a mean image of Caffe (.binaryproto), not weights; give it as --mean")
            yield _caffe(read_file(path, _LARGEST_CAFFE))


_START = 4096  # bytes that decide the type of a file
_LARGEST_CAFFE = 2**31 - 1  # bytes; protobuf has no larger messages
_LARGEST_MEAN = 64 << 20  # bytes; the mean image of 256x256 is 0.8 MB
# Files often mistaken for weights: their first bytes, their type and the remedy.
_OTHERS = (
    (rb"\x89HDF\r\n\x1a\n", "is an HDF5 file; give a .caffemodel, .pth or .safetensors file"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|7z\xbc\xaf|Rar!", "is compressed; unpack it, and give the file inside"),
    (rb"(?s).{257}ustar", "is a tar archive; unpack it, and give the file inside"),
    # iter, and learned_net or history: SolverState of caffe.proto.
    (rb"(?s)\x08[\x80-\xff]{0,9}[\x00-\x7f](\x1a|\x12.{1,300}?\.caffemodel)",
     "is the state of a solver of Caffe (.solverstate); give the .caffemodel written with it"),
    (rb"(\xef\xbb\xbf)?(\s|#.*\n)*(name|net|train_net|base_lr|input|layers?|state)\s*[:{]",
     "is a network or solver of Caffe as text (.prototxt), without weights; give the .caffemodel"),
)  # fmt: skip


def _reject_others(start: bytes) -> None:
    """Raise _Unusable if a file with this start is of a known type without weights or a mean image."""
    if what := stand_in(start):
        raise _Unusable(f"is {what}")
    for pattern, what in _OTHERS:
        if re.match(pattern, start):
            raise _Unusable(what)


@contextlib.contextmanager
def _errors_of(path: str):
    """Raise InputError for any problem with a file in the block."""
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "there is no such file"
        raise InputError(f"{path}: {what}; give another")
    try:
        yield
    except InputError:
        raise
    except _Unusable as error:
        raise InputError(f"{path}: {error}") from None
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except Exception as error:  # zipfile, pickle and safetensors raise nearly any exception
        reason = ascii(first_line(error)[:100])[1:-1]
        raise InputError(f"{path}: is damaged or truncated ({reason}); get it again") from None


def write(path: str, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write float32 arrays to a .safetensors file, completely or not at all. Raises OSError.

    Equal arguments give equal files, unlike in the library's writer, whose order of metadata varies.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.size * 4
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, "<f4").tobytes())


def _safetensors(path: str) -> Weights:
    file = safetensors.safe_open(path, framework="numpy")
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (it is not a dictionary)
        part = file.get_slice(name)
        dtype = "float32" if part.get_dtype() == "F32" else part.get_dtype()
        tensors[name] = Tensor(dtype, tuple(part.get_shape()), functools.partial(file.get_tensor, name))
    return Weights(_without_wrapper(tensors), metadata=file.metadata() or {})


def _without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their names without `module`, which torch.nn.DataParallel adds."""
    names = {name: ".".join(part for part in name.split(".") if part != "module") for name in tensors}
    if len(set(names.values())) < len(names):  # with `module.` and without
        return tensors
    return {names[name]: tensor for name, tensor in tensors.items()}


# torch.save: a pickle describes the tensors, and other files in the zip archive have their numbers.

_ADVICE = "give a file of torch.save(model.state_dict())"
_WRAPPED = ("state_dict", "model_state_dict", "model")  # a checkpoint's keys for its state dict
_MAX_PICKLE = 1 << 20  # bytes
_MAX_DIRECTORY = 1 << 20  # bytes of the list of files in an archive
_MAX_STORAGE = 1 << 30  # bytes; the largest here are 358 MB
_MAX_INSTRUCTIONS = 20_000  # AlexNet's state dict has 2,000
_DTYPES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "BoolStorage": "bool",
}  # fmt: skip
# All that torch.save writes for a state dict, and for numbers, texts and lists beside it in a checkpoint.
_INSTRUCTIONS = {
    "PROTO", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINUNICODE",
    "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM", "SETITEMS", "BINPUT",
    "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "BINPERSID", "REDUCE", "BUILD", "BINFLOAT", "LONG1",
    "EMPTY_LIST", "APPEND", "APPENDS",
}  # fmt: skip


class _Storage(NamedTuple):
    """Numbers that a pickle refers to."""

    key: str
    dtype: str
    length: int


class _StateDict(dict):
    """The stand-in for a pickle's OrderedDict."""

    def __setstate__(self, state):
        """Ignore the versions of modules, which torch.save writes as an attribute."""


class _View:
    """A tensor from the arguments of _rebuild_tensor_v2: numbers of a storage, in steps of `strides`."""

    def __init__(self, storage, offset, shape, strides, *_):
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)
        numbers = (storage.length, offset, *self.shape, *self.strides)
        if type(storage) is not _Storage or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a pickle describes an invalid tensor")

    def __setstate__(self, state):
        raise ValueError("a pickle changes a tensor")

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Return this tensor, given all numbers of its storage."""
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if not math.prod(self.shape) <= self.storage.length == len(numbers) > last:
            raise ValueError("a tensor is larger than its storage, or a storage has another length")
        strides = [step * numbers.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """An unpickler that imports nothing: torch.save's names stand for the classes above, others fail."""

    def find_class(self, module, name):
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return _StateDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _View
        raise _Unusable(
            f"holds more than a state dict ({ascii(f'{module}.{name}')[:60]}), of which nothing was run;"
            f" {_ADVICE}"
        )

    def persistent_load(self, pid):
        kind, dtype, key, _, length = pid
        if kind != "storage" or dtype not in _DTYPES.values() or type(key) is not str:
            raise ValueError("a pickle refers to something that is not a storage")
        return _Storage(key, dtype, length)


def _check_instructions(content: bytes) -> None:
    """Raise _Unusable for a pickle that could exhaust memory, the stack or time within `_Unpickler`.

    Only names and strings may be used more than once, so that nothing grows faster than the file does.
    """
    previous, shared = "", set()
    for count, (instruction, arg, _) in enumerate(pickletools.genops(content)):
        name = instruction.name
        allowed = name in _INSTRUCTIONS and count < _MAX_INSTRUCTIONS
        if name in ("BINPUT", "LONG_BINPUT"):
            allowed = isinstance(arg, int) and arg <= count  # the unpickler allocates a table of that size
            shared.discard(arg)
            if previous in ("GLOBAL", "BINUNICODE"):
                shared.add(arg)
        elif name in ("BINGET", "LONG_BINGET"):
            allowed = arg in shared
        if not allowed:
            raise _Unusable(
                f"holds more than a state dict (pickle instruction {name}), of which nothing was run;"
                f" {_ADVICE}"
            )
        previous = name


def _torch(file: BoundedReader) -> Weights:
    """Read a file of torch.save since 1.6: data.pkl, and data/KEY, uncompressed, for each storage."""
    archive = zipfile.ZipFile(file)
    file.limit = _MAX_STORAGE
    folders = [name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise _Unusable(f"is a ZIP archive, but not from torch.save; {_ADVICE}")

    def content(name: str, limit: int = _MAX_STORAGE) -> bytes:
        member = archive.getinfo(folders[0] + name)
        stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
        if not stored or member.file_size > limit:
            raise _Unusable(
                f"has {ascii(name)[:60]} compressed or too large; torch.save does not write it so"
            )
        return archive.read(member)

    byte_order = "<"
    if folders[0] + "byteorder" in archive.namelist():
        byte_order = {b"little": "<", b"big": ">"}[content("byteorder", 6)]

    def read(view: _View) -> np.ndarray:
        numbers = np.frombuffer(content(f"data/{view.storage.key}"), byte_order + "f4")
        return view.of(numbers).astype(np.float32, copy=False)

    pickled = content("data.pkl", _MAX_PICKLE)
    _check_instructions(pickled)
    state_dict = _Unpickler(io.BytesIO(pickled)).load()
    if not isinstance(state_dict, dict):
        raise _Unusable(f"does not hold a state dict; {_ADVICE}")
    wrapped = [state_dict[key] for key in _WRAPPED if isinstance(state_dict.get(key), dict)]
    state_dict = wrapped[0] if wrapped else state_dict
    for name, view in state_dict.items():
        if type(name) is not str or type(view) is not _View:
            raise _Unusable(f"holds more than a state dict ({ascii(name)[:60]} is not a tensor); {_ADVICE}")
    tensors = {
        name: Tensor(v.storage.dtype, v.shape, functools.partial(read, v)) for name, v in state_dict.items()
    }
    return Weights(_without_wrapper(tensors))


# Caffe: messages of protobuf.

# The part of src/caffe/proto/caffe.proto that is read here. `data` and `double_data` are packed floats and
# doubles there, which have the same bytes.
_CAFFE_PROTO = {
    "NetParameter": ("repeated V1LayerParameter layers = 2", "repeated LayerParameter layer = 100"),
    "LayerParameter": (
        "optional string name = 1", "optional string type = 2", "repeated BlobProto blobs = 7",
    ),
    "V1LayerParameter": (  # before 2015
        "optional string name = 4", "optional int64 type = 5", "repeated BlobProto blobs = 6",
    ),
    "BlobProto": (
        "optional int64 num = 1", "optional int64 channels = 2", "optional int64 height = 3",
        "optional int64 width = 4", "repeated bytes data = 5", "optional BlobShape shape = 7",
        "repeated bytes double_data = 8",
    ),
    "BlobShape": ("repeated int64 dim = 1",),
}  # fmt: skip
_CAFFE_OPS = {"LRN": "lrn", 15: "lrn", "Pooling": "pool", 17: "pool"}


def _caffe_message(name: str, content: bytes):
    """Return `content` as a message of _CAFFE_PROTO."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    for message, fields in _CAFFE_PROTO.items():
        description = file.message_type.add(name=message)
        for label, kind, field, _, number in map(str.split, fields):
            description.field.add(
                name=field,
                number=int(number),
                label=f"LABEL_{label.upper()}",
                type="TYPE_MESSAGE" if kind in _CAFFE_PROTO else f"TYPE_{kind.upper()}",
                type_name=f".caffe.{kind}" if kind in _CAFFE_PROTO else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    message_class = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
    return message_class.FromString(content)


def _caffe(content: bytes) -> Weights:
    net = _caffe_message("NetParameter", content)
    tensors, order = {}, []
    layers = net.layer or net.layers
    if len(layers) > 1000 or any(len(layer.blobs) > 1000 for layer in layers):
        raise _Unusable("has more layers than any network; give the .caffemodel of an AlexNet")
    for layer in layers:
        if layer.type in _CAFFE_OPS:
            order.append(_CAFFE_OPS[layer.type])
        for place, blob in enumerate(layer.blobs):
            array = _blob_array(blob)
            if array.ndim == 4 and array.shape[:2] == (1, 1):  # before 2015 all blobs had four axes
                array = array.reshape(array.shape[2:] if place == 0 else array.shape[3:])
            parameter = f"{layer.name}.{('weight', 'bias')[place] if place < 2 else place}"
            if parameter in tensors:
                raise _Unusable(
                    f"has two layers named {ascii(layer.name)[:60]}; give the file of one network"
                )
            tensors[parameter] = Tensor("float32", array.shape, functools.partial(np.asarray, array))
    if not tensors:
        raise _Unusable("has no weights of Caffe; give a .caffemodel or .safetensors file")
    return Weights(tensors, from_caffe=True, order=tuple(order))


def caffe_blob(path: str) -> np.ndarray:
    """Return the array of a BlobProto file. Raises InputError."""
    with _errors_of(path):
        with open(path, "rb") as file:
            _reject_others(file.read(_START))
        return _blob_array(_caffe_message("BlobProto", read_file(path, _LARGEST_MEAN)))


def _blob_array(blob) -> np.ndarray:
    if blob.double_data:
        raise _Unusable("has weights of type float64; convert them to float32")
    old_shape = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim[:8]) if blob.HasField("shape") else old_shape
    data = b"".join(blob.data)
    if len(blob.shape.dim) > 8 or 4 * math.prod(shape) != len(data):
        raise ValueError("the size of a blob does not fit its shape")
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(shape)
