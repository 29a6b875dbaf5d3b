"""A reader of raw pickles that makes numpy arrays and plain values, and executes nothing.

detectron2 and SlowFast publish weights as raw pickles of dictionaries of numpy arrays. A pickle is a program: Python's
own reader imports and calls what the file names. This one is a small machine of its own. It imports nothing, calls
nothing that the file names, and knows a dozen objects by their names; every other name ends the reading.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from zoo.errors import WeightsError

# limits: the largest published detector has 1,500 arrays, 40,000 operations and 640 MB
LARGEST_FILE = 8 * 2**30  # bytes
MOST_OPERATIONS = 1_000_000
MOST_OBJECTS = 1_000_000  # on the stack, or remembered
MOST_DIMENSIONS = 8
_SHARED = 2**20  # bytes of arrays beyond the file's size: short contents that several arrays share

_TYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_ORDERS = {"<", ">", "=", "|"}

# objects that a file may name, and what they are here
_NAMES = {
    **{(f"numpy.{core}.multiarray", name): name for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "_frombuffer" for core in ("core", "_core")},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("collections", "OrderedDict"): "OrderedDict",
    ("_codecs", "encode"): "encode",
    ("__builtin__", "bytes"): "bytes",  # how Python 3 writes an empty bytes for Python 2
    ("builtins", "bytes"): "bytes",
}


class _Name:
    """A name from ``_NAMES``, not the object that it names."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Type:
    """A numpy type that the file describes; its byte order may follow."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """An array that the file describes; its content follows."""

    value: np.ndarray[Any, Any] | None = None


class _OrderedDict(dict[Any, Any]):
    """An OrderedDict of the file."""


class _Mark:
    """The beginning of a group of objects on the stack."""


def read_pickle(path: str | Path) -> Any:
    """Return the content of a raw pickle: dictionaries, lists, tuples, plain values and numpy arrays.

    No code in the file is executed, and nothing that it names is imported. Arrays are native, contiguous copies.

    Args:
        path: path of the file.

    Raises:
        WeightsError: a file that is missing, damaged or too large, or one that contains anything else, which the
            message names.

    >>> import pickle, tempfile, numpy
    >>> from zoo.convert.pickles import read_pickle
    >>> with tempfile.NamedTemporaryFile(suffix=".pkl") as file:
    ...     _ = file.write(pickle.dumps({"conv1_w": numpy.ones(2, "f4")}, protocol=2))
    ...     file.flush()
    ...     read_pickle(file.name)
    {'conv1_w': array([1., 1.], dtype=float32)}
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise WeightsError(f"{path}: has {size} bytes; a pickle of weights may have {LARGEST_FILE}")
    with _Bounded(io.FileIO(path)) as file:
        file.size = size
        machine = _Machine(path, size)
        try:
            return machine.run(file)
        except WeightsError:
            raise
        except MemoryError:
            raise WeightsError(f"{path}: does not fit into memory") from None
        except Exception as error:  # operations in an impossible order fail in any way
            reason = shown(" ".join(str(error).split()) or type(error).__name__)
            raise WeightsError(f"{path}: not a complete pickle ({reason}); get it again") from None


def shown(text: str) -> str:
    """Return text from a file for a message: printable, and at most 80 characters."""
    plain = "".join(c if c.isprintable() else "?" for c in text[:81])
    return plain if len(plain) <= 80 else plain[:77] + "..."


class _Bounded(io.BufferedReader):
    """A file that never reads beyond its end, so that a false length takes no memory."""

    size = 0

    def read(self, count: int | None = -1, /) -> bytes:
        if count is None or count < 0 or count > self.size - self.tell():
            raise ValueError("it ends too early")
        return super().read(count)


class _Machine:
    """The machine that runs the operations of a pickle on inert objects.

    Args:
        path: path of the file, for messages.
        size: bytes of the file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = size + _SHARED  # bytes that arrays may still take
        self.encoded = 2 * size + _SHARED  # characters that may still be encoded

    def run(self, file: _Bounded) -> Any:
        """Return the object that the file's operations make."""
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST_OPERATIONS or len(self.stack) > MOST_OBJECTS or len(self.memo) > MOST_OBJECTS:
                self.refuse("more objects than weights have")
            name = operation.name
            if name == "STOP":
                break
            if name in _PUSHED:
                if isinstance(argument, int) and argument.bit_length() > 64:
                    self.refuse("a number of more than 64 bits")
                self.stack.append(argument)
            elif (step := _STEPS.get(name)) is not None:
                step(self, argument)
            else:
                self.refuse(f"the operation {name}", " (tensors of PyTorch)" if "PERSID" in name else "")
        if len(self.stack) != 1:
            raise ValueError("objects are left over")
        return finished(self.stack[0])

    def refuse(self, what: str, hint: str = "") -> NoReturn:
        """Raise the error about content that is refused."""
        raise WeightsError(
            f"{self.path}: contains {shown(what)}{hint}, and nothing of it was executed; a pickle may only contain "
            "dictionaries of numpy arrays and plain values: save the weights as safetensors"
        )

    # -- the stack and the memo ----------------------------------------------------------------------

    def pop_group(self) -> list[Any]:
        """Remove and return the objects after the last mark, and remove the mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[i], _Mark):
                group = self.stack[i + 1 :]
                del self.stack[i:]
                return group
        raise ValueError("a group has no beginning")

    def pop_many(self, count: int) -> list[Any]:
        """Remove and return the last objects."""
        if len(self.stack) < count or any(isinstance(item, _Mark) for item in self.stack[-count:]):
            raise ValueError("an object is missing")
        group = self.stack[-count:]
        del self.stack[-count:]
        return group

    def remember(self, index: int | None) -> None:
        """Store the last object under an index; None for the next free one."""
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise ValueError("an object is missing")
        self.memo[len(self.memo) if index is None else int(index)] = self.stack[-1]

    def fill(self, items: list[Any]) -> None:
        """Put keys and values into the dictionary at the end of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("a dictionary is missing")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # others can be costly to compare
                self.refuse(f"a dictionary's key of type {type(key).__name__.strip('_')}")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        """Append to the list at the end of the stack."""
        if not isinstance(self.stack[-1], list):
            raise ValueError("a list is missing")
        self.stack[-1].extend(items)

    # -- names, calls and states ---------------------------------------------------------------------

    def push_name(self, module: Any, name: Any) -> None:
        """Push a name, if it is one of those that are known."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name is not text")
        if (module, name) not in _NAMES:
            hint = " (tensors of PyTorch)" if module.partition(".")[0] == "torch" else ""
            self.refuse(f"{module}.{name}", hint)
        self.stack.append(_Name(_NAMES[module, name]))

    def call(self, _: Any) -> None:
        """Replace a name and its arguments by the inert object that stands for the result."""
        function, arguments = self.pop_many(2)
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            self.refuse(f"a call of {described(function)}")
        make = _CALLS.get(function.name)
        if make is None:
            self.refuse(f"a call of {function.name}")
        self.stack.append(make(self, arguments))

    def set_state(self, _: Any) -> None:
        """Give the last array or type its content."""
        target, state = self.pop_many(2)
        if isinstance(target, _Type):
            self.order_type(target, state)
        elif isinstance(target, _Array):
            self.fill_array(target, state)
        elif not (
            isinstance(target, _OrderedDict) and isinstance(state, dict)
        ):  # an OrderedDict's attributes are ignored
            self.refuse(f"a state for {described(target)}")
        self.stack.append(target)

    def order_type(self, target: _Type, state: Any) -> None:
        """Set the byte order of a type from numpy's state (version, order, subtype, names, fields, ...)."""
        if not isinstance(state, tuple) or not 5 <= len(state) <= 9:
            self.refuse("a type of numpy of an unknown form")
        if not isinstance(state[1], str) or state[1] not in _ORDERS:
            self.refuse("a type of numpy without a byte order")
        if any(part is not None for part in state[2:5]):
            self.refuse("a structured type of numpy")
        target.order = state[1]

    def fill_array(self, target: _Array, state: Any) -> None:
        """Set the content of an array from numpy's state (version, shape, type, column order, content)."""
        if target.value is not None:
            self.refuse("an array with two contents")
        if not isinstance(state, tuple) or len(state) != 5:
            self.refuse("an array of an unknown form")
        _, shape, kind, columns, content = state
        target.value = self.array(content, kind, shape, "F" if isinstance(columns, int) and columns else "C")

    def array(self, content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
        """Return an array, after a check that the file has its content.

        Args:
            content: bytes of the elements.
            kind: type of the elements.
            shape: lengths of the sides.
            order: C or F.
        """
        # each part has the right kind
        if not isinstance(kind, _Type):
            self.refuse("an array without a type")
        if isinstance(content, list):
            self.refuse("an array of objects")
        if not isinstance(content, bytes | bytearray | str) or not isinstance(order, str) or order not in ("C", "F"):
            self.refuse("an array of an unknown form")
        if (
            not isinstance(shape, tuple)
            or len(shape) > MOST_DIMENSIONS
            or not all(type(side) is int and 0 <= side <= LARGEST_FILE for side in shape)
        ):
            self.refuse("an array of an impossible shape")
        # the lengths agree, and no content is used many times
        dtype = kind.dtype()
        if math.prod(shape) * dtype.itemsize != len(content):
            self.refuse(f"an array of shape {shape} with {len(content)} bytes")
        self.left -= len(content)
        if self.left < 0:
            self.refuse("more bytes of arrays than the file has")
        if isinstance(content, str):  # Python 2 has one type for text and bytes; its bytes are read as latin1
            content = content.encode("latin1")
        values = np.frombuffer(content, dtype)
        values = values.reshape(shape, order="F") if order == "F" else values.reshape(shape)
        return np.array(values, dtype=dtype.newbyteorder("="), order="C")

    # -- what the known names make -------------------------------------------------------------------

    def make_array(self, arguments: tuple[Any, ...]) -> _Array:
        if not arguments or not isinstance(arguments[0], _Name) or arguments[0].name != "ndarray":
            self.refuse("an array that is not a plain ndarray")
        return _Array()

    def make_type(self, arguments: tuple[Any, ...]) -> _Type:
        code = arguments[0] if arguments else None
        if not isinstance(code, str) or code not in _TYPES:
            self.refuse(f"the type {described(code)} of numpy, which is not a plain number")
        return _Type(code)

    def make_scalar(self, arguments: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        if len(arguments) != 2:
            self.refuse("a number of an unknown form")
        return self.array(arguments[1], arguments[0], (), "C")

    def make_from_buffer(self, arguments: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        if len(arguments) != 4:
            self.refuse("an array of an unknown form")
        content, kind, shape, order = arguments
        return self.array(content, kind, shape, order)

    def make_bytes(self, arguments: tuple[Any, ...]) -> bytes:
        if arguments:
            self.refuse("a call of bytes")
        return b""

    def make_encoded(self, arguments: tuple[Any, ...]) -> bytes:
        if len(arguments) != 2 or not all(isinstance(argument, str) for argument in arguments):
            self.refuse("an encoding of an unknown form")
        text, encoding = arguments
        if encoding not in ("latin1", "latin-1"):
            self.refuse("an encoding other than latin1")
        self.encoded -= len(text)
        if self.encoded < 0:
            self.refuse("one text that is encoded many times")
        return text.encode("latin1")

    def make_ordered(self, arguments: tuple[Any, ...]) -> _OrderedDict:
        made = _OrderedDict()
        pairs = arguments[0] if len(arguments) == 1 else [] if not arguments else None
        if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            self.refuse("an OrderedDict of an unknown form")
        self.stack.append(made)
        self.fill([item for pair in pairs for item in pair])
        self.stack.pop()
        return made


_CALLS: dict[str, Callable[[_Machine, tuple[Any, ...]], Any]] = {
    "_reconstruct": _Machine.make_array,
    "scalar": _Machine.make_scalar,
    "_frombuffer": _Machine.make_from_buffer,
    "dtype": _Machine.make_type,
    "encode": _Machine.make_encoded,
    "bytes": _Machine.make_bytes,
    "OrderedDict": _Machine.make_ordered,
}


def described(item: Any) -> str:
    """Return a few words about an object of a pickle, for messages."""
    if isinstance(item, _Name):
        return item.name
    if isinstance(item, str):
        return repr(item[:40])
    return type(item).__name__.strip("_").lower()


def finished(item: Any) -> Any:
    """Return the content of a pickle with arrays in place of their descriptions, and None below the fourth level."""
    done: dict[tuple[int, int], Any] = {}  # an object that is reached on many ways is made once

    def finish(item: Any, levels: int) -> Any:
        if isinstance(item, _Array):
            if item.value is None:
                raise ValueError("an array has no content")
            return item.value
        if isinstance(item, _Name | _Type | _Mark):
            raise ValueError(f"{described(item)} is no value")
        if not isinstance(item, dict | list | tuple):
            return item
        if not levels:
            return None
        key = (id(item), levels)
        if key not in done:
            if isinstance(item, dict):
                done[key] = {name: finish(value, levels - 1) for name, value in item.items()}
            else:
                done[key] = type(item)([finish(value, levels - 1) for value in item])
        return done[key]

    return finish(item, 4)


# -- operations ------------------------------------------------------------------------------------------

_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def _push(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _push_tuple(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(tuple(machine.pop_many(count)))


def _push_dict(machine: _Machine, _: Any) -> None:
    items = machine.pop_group()
    machine.stack.append({})
    machine.fill(items)


def _drop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _drop_group(machine: _Machine, _: Any) -> None:
    machine.pop_group()


def _push_global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.push_name(module, name)


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _push(_Mark),
    "POP": _drop,
    "POP_MARK": _drop_group,
    # plain values and containers
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_LIST": _push(list),
    "EMPTY_DICT": _push(dict),
    "EMPTY_TUPLE": _push(tuple),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_group()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_group())),
    "TUPLE1": _push_tuple(1),
    "TUPLE2": _push_tuple(2),
    "TUPLE3": _push_tuple(3),
    "DICT": _push_dict,
    "APPEND": lambda machine, _: machine.extend(machine.pop_many(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_group()),
    "SETITEM": lambda machine, _: machine.fill(machine.pop_many(2)),
    "SETITEMS": lambda machine, _: machine.fill(machine.pop_group()),
    # the memo
    "PUT": lambda machine, index: machine.remember(index),
    "BINPUT": lambda machine, index: machine.remember(index),
    "LONG_BINPUT": lambda machine, index: machine.remember(index),
    "MEMOIZE": lambda machine, _: machine.remember(None),
    "GET": lambda machine, index: machine.stack.append(machine.memo[int(index)]),
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    # names, calls and states
    "GLOBAL": _push_global,
    "STACK_GLOBAL": lambda machine, _: machine.push_name(*machine.pop_many(2)),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
}
