"""Pickles that are programs: they would run a command, name modules, recurse, or ask for much memory."""

from __future__ import annotations

import pickle
import struct

from tests.helpers.pickles import dictionary, name, number, pickled, text

TOUCH = b"touch {box}/neighbour/x"


def _call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return pickled(name(module, attribute) + b"(" + b"".join(arguments) + b"tR")


def _deep(levels: int) -> bytes:
    return pickled(b"(" * levels + b"t" * levels)


PROGRAMS = (
    _call("os", "system", text(TOUCH)),
    _call("posix", "system", text(TOUCH)),
    _call("builtins", "exec", text(b"open('{box}/neighbour/x', 'w')")),
    _call("builtins", "eval", text(b"__import__('os').system('touch {box}/neighbour/x')")),
    _call("builtins", "getattr", text(b"a"), text(b"upper")),
    _call("subprocess", "Popen", text(TOUCH)),
    _call("torch", "load", text(b"x.pt")),
    _call("torch.hub", "load", text(b"x")),
    _call("torch.serialization", "load", text(b"x")),
    _call("torch._utils", "_rebuild_tensor_v2", number(1), number(2)),
    _call("torch._utils", "_rebuild_parameter", number(1)),
    _call("torch", "Tensor", number(2**31 - 1)),
    _call("torch", "Size", b"(" + number(-1) + b"t"),
    _call("collections", "OrderedDict", number(3)),
    _call("collections", "Counter", text(b"abc")),
    _call("numpy", "load", text(b"x.npy")),
    _call("numpy", "fromfile", text(b"/etc/passwd")),
    _call("tests.fuzz.none", "x"),
    pickled(b"i" + b"os\nsystem\n"),
    pickled(b"(" + text(TOUCH) + b"ios\nsystem\n"),
    pickled(name("os", "system") + b"."),
    pickled(b"]\x94h\x00a" * 3),
    pickled(b"}\x94\x8c\x01ah\x00s"),  # a dictionary that contains itself
    pickled(b"]q\x00h\x00a"),
    pickled(b"h\x09"),
    pickled(b"0000"),
    pickled(b"Q"),
    pickled(b"Ppersistent\n"),
    pickled(text(b"storage") + b"Q"),
    pickled(
        b"(" + text(b"storage") + name("torch", "FloatStorage") + text(b"../../x") + text(b"cpu") + number(9) + b"tQ"
    ),
    pickled(b"\x8e" + struct.pack("<Q", 2**40)),
    pickled(b"\x8d" + struct.pack("<Q", 2**62)),
    pickled(b"B" + struct.pack("<i", 2**31 - 1)),
    pickled(b"r" + struct.pack("<I", 2**31)),
    pickled(b"Nr" + struct.pack("<I", 2**31 - 1)),
    pickled(b"\x8b" + struct.pack("<i", -1)),
    pickled(b"\x8a\xff" + b"\xff" * 255),
    pickled(b"I" + b"9" * 6000 + b"\n"),
    pickled(b"Fnan\n"),
    _deep(3000),
    _deep(100_000),
    pickled(dictionary({"a": b"]" * 1})),
    pickled(dictionary({"w": b"cnumpy\nndarray\n"})),
    b"\x80\x09.",
    b"\x80\x02",
    b"",
    b".",
    b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    b"not a pickle",
    pickle.dumps({"model": {"w": [1.0, 2.0]}}),
    pickle.dumps([1, 2, 3]),
    pickle.dumps({("a", 1): {frozenset((1, 2)): {3}}}),
)
