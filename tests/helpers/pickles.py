"""Raw pickles, written operation by operation: those of Python 2, and hostile ones."""

import struct

import numpy as np


def text(value):
    """A string of Python 2."""
    value = value if isinstance(value, bytes) else value.encode("latin1")
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def number(value):
    return b"J" + struct.pack("<i", value)


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def dtype(code="f4", order="<"):
    new = name("numpy", "dtype") + text(code) + number(0) + number(1) + b"\x87R"
    return new + b"(" + number(3) + text(order) + b"NNN" + number(-1) * 2 + number(0) + b"tb"


def array(value, *, shape=None, content=None, kind=None, core="core"):
    """An array as numpy 1 under Python 2 wrote it; ``shape``, ``content`` and ``kind`` replace its own."""
    shape = value.shape if shape is None else shape
    kind = dtype(value.dtype.str[1:]) if kind is None else kind
    content = text(value.tobytes()) if content is None else content
    new = name(f"numpy.{core}.multiarray", "_reconstruct") + name("numpy", "ndarray")
    new += number(0) + b"\x85" + text("b") + b"\x87R"
    return new + b"(" + number(1) + b"(" + b"".join(map(number, shape)) + b"t" + kind + b"\x89" + content + b"tb"


def dictionary(items):
    """A dictionary whose values are operations."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def pickled(operations):
    return b"\x80\x02" + operations + b"."


def python2(arrays, wrapper=None):
    """A file of Caffe2: arrays by name, alone or under ``wrapper``."""
    content = dictionary({key: array(np.asarray(value)) for key, value in arrays.items()})
    return pickled(content if wrapper is None else dictionary({wrapper: content}))
