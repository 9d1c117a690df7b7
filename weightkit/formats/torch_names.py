"""The names in a PyTorch pickle, and what stands for each: element types, storages, and how a tensor is rebuilt.

Nothing of PyTorch is called; a tensor becomes a `View`: which storage, and where in it. The functions and
the order of their arguments are those of `torch/_utils.py` and `torch/_tensor.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weightkit.dtypes import DTYPES, DType
from weightkit.formats.unpickle.values import Global, Inert, Instance, Known, PickleError, call


@dataclass(frozen=True, slots=True, eq=False)
class StorageType:
    """A class of storages; the elements of an untyped one are bytes."""

    dtype: DType


@dataclass(slots=True, eq=False)  # not frozen: to make a frozen one takes three times as long
class Storage:
    """A run of bytes that tensors are views on, as the pickle names it."""

    key: str
    dtype: DType
    size: int  # elements
    shift: int = 0  # bytes from the beginning of what lies in the file under `key`

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.dtype.nbytes(self.size)


@dataclass(slots=True, eq=False)  # not frozen: to make a frozen one takes three times as long
class View:
    """A tensor as the pickle describes it; nothing of it has been checked."""

    storage: Storage
    dtype: DType
    start: Any  # elements
    shape: Any
    strides: Any  # elements


def _tensor(storage: object, start: object, shape: object, strides: object) -> View:
    return _tensor_v2(storage, start, shape, strides, None, None)


def _tensor_v2(
    storage: object,
    start: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    metadata: object = None,
) -> View:
    if metadata:
        raise PickleError("the pickle holds a lazily conjugated or negated tensor; save its resolve_conj() instead")
    if not isinstance(storage, Storage):
        raise PickleError("the pickle rebuilds a tensor from what is not a storage")
    return View(storage, storage.dtype, start, shape, strides)


def _tensor_v3(
    storage: object,
    start: object,
    shape: object,
    strides: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> View:
    view = _tensor_v2(storage, start, shape, strides, requires_grad, hooks, metadata)
    if not isinstance(dtype, DType):
        raise PickleError(f"the pickle holds a tensor of a type that cannot be read ({named(dtype)})")
    return View(view.storage, dtype, start, shape, strides)


def _parameter(data: object, _requires_grad: object, _hooks: object, _state: object = None) -> object:
    return data


def _from_type(function: object, _cls: object, arguments: object, _state: object) -> object:
    if function not in _REBUILDS:
        raise PickleError(f"the pickle calls {named(function)}; not opened")
    return call(function, arguments)


def named(value: object) -> str:
    """What to call a function or class in an error."""
    return value.name if isinstance(value, Known) else str(value) if isinstance(value, Global) else "not a name"


def _size(items: object = ()) -> tuple[Any, ...]:
    if not isinstance(items, (list, tuple)):
        raise TypeError
    return tuple(items)


def _list(items: object = ()) -> list[Any]:
    return list(_size(items))


def _dict(items: object = None) -> dict[Any, Any]:
    if items is None:
        return {}
    if isinstance(items, dict):
        return dict(items)
    pairs = _size(items)  # as protocol 0 and Python 2 write an OrderedDict
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise TypeError
    return dict(pairs)


def _deque(items: object = (), _most: object = None) -> list[Any]:
    return _list(items)


def _default_dict(_factory: object = None, *items: object) -> dict[Any, Any]:
    return _dict(*items)


def _encoded(text: object, encoding: object = "latin1") -> str:
    """Bytes as protocol 2 writes them, left as the text that they are written as: nothing here needs them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise TypeError
    return text


def _bytes(*arguments: object) -> object:  # never of a number, which would be a length
    if len(arguments) == 1 and isinstance(arguments[0], bytes):
        return arguments[0]
    return _encoded(*arguments) if arguments else b""


def _reconstructed(cls: object, base: object, _state: object) -> object:
    """An object of a plain class as protocols 0 and 1 write it."""
    if isinstance(cls, Known):
        return call(cls, ())
    if isinstance(cls, Global) and cls.plain_class and base is _OBJECT:
        return Instance(str(cls))
    raise PickleError(f"the pickle makes an object of {named(cls)}; not opened")


def _inert(what: str) -> Callable[..., Inert]:
    value = Inert(what)

    def make(*_arguments: object) -> Inert:
        return value

    return make


_OBJECT = Inert("object")

_DTYPES = {
    "F64": "float64 double",
    "F32": "float32 float",
    "F16": "float16 half",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64 long",
    "I32": "int32 int",
    "I16": "int16 short",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64 cfloat",
    "C128": "complex128 cdouble",
}
_STORAGES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
    "ComplexFloat": "C64",
    "ComplexDouble": "C128",
}
_FUNCTIONS: dict[str, Callable[..., object]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor_v2,
    "torch._utils _rebuild_tensor_v3": _tensor_v3,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "torch._tensor _rebuild_from_type_v2": _from_type,
    "torch Size": _size,
    "torch device": _inert("torch.device"),
    "torch.torch_version TorchVersion": _inert("torch.__version__"),
    "torch.serialization _get_layout": _inert("torch.layout"),
    "collections OrderedDict": _dict,
    "collections defaultdict": _default_dict,
    "collections Counter": _dict,
    "collections deque": _deque,
    "builtins dict": _dict,
    "builtins list": _list,
    "builtins tuple": _size,
    "builtins set": _list,
    "builtins frozenset": _list,
    "builtins bytearray": _bytes,
    "builtins bytes": _bytes,
    "builtins complex": _inert("complex"),
    "builtins slice": _inert("slice"),
    "builtins range": _inert("range"),
    "builtins xrange": _inert("range"),
    "decimal Decimal": _inert("Decimal"),
    "fractions Fraction": _inert("Fraction"),
    "uuid UUID": _inert("UUID"),
    "_codecs encode": _encoded,
    "copyreg _reconstructor": _reconstructed,
    "argparse Namespace": lambda: Instance("argparse.Namespace"),
    "types SimpleNamespace": lambda: Instance("types.SimpleNamespace"),
    "numpy dtype": _inert("numpy.dtype"),
    "numpy ndarray": _inert("numpy.ndarray"),
    **{
        f"numpy.{core}.multiarray {name}": _inert(f"numpy.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    },
    **{f"numpy.{core}.numeric _frombuffer": _inert("numpy.ndarray") for core in ("core", "_core")},
    **{f"numpy.random._pickle __{name}_ctor": _inert(name) for name in ("randomstate", "generator", "bit_generator")},
    "numpy.random __RandomState_ctor": _inert("randomstate"),  # before numpy 1.17
    "numpy.random.bit_generator __pyx_unpickle_SeedSequence": _inert("SeedSequence"),
    **{
        f"{module} {name}": _inert("path")
        for module in ("pathlib", "pathlib._local")  # the second is where Python 3.13 has them
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
    **{f"datetime {name}": _inert(name) for name in ("datetime", "date", "time", "timedelta", "timezone")},
}
_PYTHON_2 = {"builtins": "__builtin__", "copyreg": "copy_reg"}
# Of builtins, named as the type of something; `long` and `unicode` are int and str up to protocol 2.
_HARMLESS = ("object", "int", "float", "str", "bool", "long", "unicode", "Ellipsis")


def _table() -> dict[tuple[str, str], object]:
    table: dict[tuple[str, str], object] = {}
    for text, function in _FUNCTIONS.items():
        module, name = text.split()
        table[module, name] = Known(f"{module}.{name}", function, copies=not name.startswith("_rebuild"))
    for name in _HARMLESS:
        table["builtins", name] = _OBJECT
    table["typing", "Any"] = _OBJECT
    for module, old in _PYTHON_2.items():
        table |= {(old, name): value for (home, name), value in table.items() if home == module}
    for ours, theirs in _DTYPES.items():
        table |= {("torch", name): DTYPES[ours] for name in theirs.split()}
    for name, ours in _STORAGES.items():
        for module in ("torch", "torch.cuda"):
            table[module, f"{name}Storage"] = StorageType(DTYPES[ours])
    untyped = StorageType(DTYPES["U8"])
    for module, name in (("torch", "Untyped"), ("torch.storage", "Untyped"), ("torch.storage", "_Untyped")):
        table[module, f"{name}Storage"] = untyped
    return table


NAMES = _table()
_REBUILDS = frozenset(
    NAMES[("torch._utils", name)]
    for name in (
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
    )
)
