import collections
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest

import zoo.convert.pickles as pickles
from tests.helpers.pickles import array, dictionary, dtype, name, number, pickled, python2, text
from zoo import WeightsError
from zoo.convert.pickles import read_pickle

ONES = np.ones(2, "f4")


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "net.pkl"
        path.write_bytes(content)
        return read_pickle(path)

    return read


@pytest.mark.parametrize("protocol", range(6))
def test_all_protocols(read, protocol):
    content = collections.OrderedDict(
        big_endian=np.arange(6, dtype=">f4").reshape(2, 3),
        columns=np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        scalar=np.float32(3),
        empty=np.zeros((0, 3), "f2"),
        flags=np.array([True, False]),
        deep={"inner": np.array([-(2**40)])},
        plain=["text", 2.5, (None, True, 7), b"", b"\xff\x00"],
    )
    found = read(pickle.dumps({"model": content, "__author__": "someone"}, protocol=protocol))
    assert found["__author__"] == "someone"
    model = found["model"]
    assert list(model) == list(content)
    assert model["plain"] == content["plain"]
    assert np.array_equal(model["deep"]["inner"], [-(2**40)])
    for key in ("big_endian", "columns", "scalar", "empty", "flags"):
        assert np.array_equal(model[key], content[key])
        assert model[key].dtype == np.asarray(content[key]).dtype.newbyteorder("=")
        assert model[key].flags.c_contiguous
        assert model[key].flags.writeable


def test_a_shared_array_is_one_array(read):
    shared = np.arange(1000.0)
    found = read(pickle.dumps({"a": shared, "b": shared}, protocol=2))
    assert found["a"] is found["b"]


@pytest.mark.parametrize("core", ["core", "_core"])
def test_python_2(read, core):
    values = np.random.default_rng(0).standard_normal((64, 3)).astype("f4")  # every byte, in a string of Python 2
    found = read(pickled(dictionary({"conv1_w": array(values, core=core), "lr": array(np.array(0.1))})))
    assert np.array_equal(found["conv1_w"], values)
    assert found["lr"] == 0.1


# -- hostile files -----------------------------------------------------------------------------------


def command(canary):
    return text(f"touch {canary}")


def calls(module, attribute):
    """A file that calls a function with the command that makes the canary file."""
    return lambda canary: pickled(name(module, attribute) + command(canary) + b"\x85R")


def by_getattr(canary):
    system = name("builtins", "getattr") + name("os", "path") + text("os") + b"\x86R"
    return pickled(name("builtins", "getattr") + system + text("system") + b"\x86R" + command(canary) + b"\x85R")


def by_stack_global(canary):
    return b"\x80\x04" + b"\x8c\x05posix" + b"\x8c\x06system" + b"\x93" + command(canary) + b"\x85R."


def by_instance(canary):
    return b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n."


def by_object(canary):
    return b"(" + name("os", "system") + command(canary) + b"o."


def by_new(canary):
    return pickled(name("subprocess", "Popen") + command(canary) + b"\x85\x81")


def in_a_dictionary(canary):
    return pickled(dictionary({"conv1_w": array(ONES), "conv1_b": name("os", "system") + command(canary) + b"\x85R"}))


def as_a_state(canary):
    """An array whose content is the result of a call."""
    return pickled(array(ONES, content=name("os", "system") + command(canary) + b"\x85R"))


EXECUTING = {
    "os.system": calls("os", "system"),
    "posix.system": by_stack_global,
    "nt.system": calls("nt", "system"),
    "builtins.eval": calls("builtins", "eval"),
    "builtins.exec": calls("builtins", "exec"),
    "__builtin__.eval": calls("__builtin__", "eval"),
    "builtins.getattr": by_getattr,
    "subprocess.Popen": by_new,
    "INST": by_instance,
    "copyreg._reconstructor": calls("copyreg", "_reconstructor"),
    "copyreg.__newobj__": calls("copyreg", "__newobj__"),
    "numpy.load": calls("numpy", "load"),
    "numpy.testing._private.utils.runstring": calls("numpy.testing._private.utils", "runstring"),
    "numpy.core.multiarray.fromfile": calls("numpy.core.multiarray", "fromfile"),
    "pickle.loads": calls("pickle", "loads"),
    "torch.load": calls("torch", "load"),
    "_codecs.decode": calls("_codecs", "decode"),
    "OrderedDict.fromkeys": calls("collections", "OrderedDict.fromkeys"),
}


@pytest.mark.parametrize(("shown", "payload"), EXECUTING.items(), ids=EXECUTING)
def test_nothing_is_executed(read, tmp_path, shown, payload):
    canary = tmp_path / "canary"
    with pytest.raises(WeightsError) as caught:
        read(payload(canary))
    message = str(caught.value)
    assert str(tmp_path / "net.pkl") in message
    assert shown in message
    assert "\n" not in message
    assert not canary.exists()


@pytest.mark.parametrize("payload", [by_object, in_a_dictionary, as_a_state])
def test_nothing_is_executed_inside_of_something(read, tmp_path, payload):
    canary = tmp_path / "canary"
    with pytest.raises(WeightsError, match=r"net.pkl: contains os.system, and nothing of it was executed"):
        read(payload(canary))
    assert not canary.exists()


def test_the_canary_works(tmp_path):
    """Python's own reader does execute such a file."""
    canary = tmp_path / "canary"
    pickle.loads(EXECUTING["os.system"](canary))
    assert canary.exists()


ARRAYS = {
    "an array of objects": array(ONES, content=b"](K\x01K\x02e"),
    "the type 'O' of numpy": array(ONES, kind=dtype("O")),
    "the type 'O8' of numpy": array(ONES, kind=dtype("O8")),
    "the type 'V8' of numpy": array(ONES, kind=dtype("V8")),
    "the type 'U9' of numpy": array(ONES, kind=dtype("U9")),
    "the type 'c8' of numpy": array(ONES, kind=dtype("c8")),
    "the type 'f4,f4' of numpy": array(ONES, kind=dtype("f4,f4")),
    "the type int of numpy": array(ONES, kind=name("numpy", "dtype") + number(4) + b"\x85R"),
    "a type of numpy without a byte order": array(ONES, kind=dtype(order="<" * 9)),
    "a type of numpy of an unknown form": array(ONES, kind=name("numpy", "dtype") + text("f4") + b"\x85R(Nt" + b"b"),
    "a structured type of numpy": array(
        ONES,
        kind=name("numpy", "dtype")
        + text("f4")
        + b"\x85R("
        + number(3)
        + text("<")
        + b"N"
        + text("a")
        + b"\x85}"
        + number(-1) * 2
        + b"tb",
    ),
    "an array of shape (1000, 1000) with 8 bytes": array(ONES, shape=(1000, 1000)),
    "an array of shape (2000000000, 2000000000) with 8 bytes": array(ONES, shape=(2 * 10**9, 2 * 10**9)),
    "an array of shape (2,) with 0 bytes": array(ONES, content=text("")),
    "an array of an impossible shape": array(ONES, shape=(-1, -2)),
    "an array of an impossible shape ": array(ONES, shape=(1,) * 9 + (2,)),
    "an array of an impossible shape  ": array(ONES).replace(b"(" + number(2) + b"t", b"(\x88t"),
    "an array without a type": array(ONES, kind=text("f4")),
    "an array that is not a plain ndarray": name("numpy.core.multiarray", "_reconstruct")
    + name("numpy", "dtype")
    + number(0)
    + b"\x85"
    + text("b")
    + b"\x87R",
    "numpy.matrix": name("numpy.core.multiarray", "_reconstruct") + name("numpy", "matrix"),
    "numpy.memmap": name("numpy.core.multiarray", "_reconstruct") + name("numpy", "memmap"),
    "numpy.ma.core.MaskedArray": name("numpy.ma.core", "MaskedArray"),
    "an array with two contents": array(ONES) + array(ONES)[array(ONES).index(b"(" + number(1)) :],
    "an array of an unknown form": array(ONES)[: array(ONES).index(b"(" + number(1))] + b"(Ntb",
    "a call of ndarray": name("numpy", "ndarray") + number(9) + b"\x85\x85R",
    "a call of bytes": name("builtins", "bytes") + number(10**9) + b"\x85R",
    "an encoding other than latin1": name("_codecs", "encode") + text("x") + text("idna") + b"\x86R",
    "an OrderedDict of an unknown form": name("collections", "OrderedDict") + b"}\x85R",
    "a call of dict": b"})R",
    "a call of ndarray ": name("numpy", "ndarray") + b")R",
    "a state for dict": b"}}b",
    "a state for list": b"]}b",
    "a state for ndarray": name("numpy", "ndarray") + b"}b",
    "a state for ordereddict": name("collections", "OrderedDict") + b")R(K\x01tb",
    "the operation PERSID (tensors of PyTorch)": b"Pstorage\n",
    "the operation BINPERSID (tensors of PyTorch)": text("storage") + b"Q",
    "torch._utils._rebuild_tensor_v2 (tensors of PyTorch)": name("torch._utils", "_rebuild_tensor_v2"),
    "the operation EXT1": b"\x82\x01",
    "the operation NEWOBJ": name("numpy", "ndarray") + b")\x81",
    "the operation FROZENSET": b"(\x91",
    "the operation NEXT_BUFFER": b"\x97",
    "a dictionary's key of type tuple": b"})" + b"K\x01s",
    "a number of more than 64 bits": b"\x8a\x0a" + b"\x7f" * 10,
}


@pytest.mark.parametrize(("what", "operations"), ARRAYS.items(), ids=ARRAYS)
def test_only_plain_arrays(read, what, operations):
    with pytest.raises(WeightsError) as caught:
        read(pickled(operations))
    assert f"contains {what.rstrip()}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_state_changes_our_own_code(read):
    """A BUILD on a name must not set attributes of what the name means."""
    before = dict(vars(pickles._Name)), dict(pickles._NAMES)
    with pytest.raises(WeightsError, match="a state for OrderedDict"):
        read(pickled(name("collections", "OrderedDict") + dictionary({"x": number(1)}) + b"b"))
    assert before == (dict(vars(pickles._Name)), dict(pickles._NAMES))


def truncated():
    whole = python2({"conv1_w": np.ones((8, 3), "f4"), "conv1_b": np.ones(8, "f4")})
    return {f"{end} bytes": whole[:end] for end in range(0, len(whole), 7)}


GARBAGE = {
    **truncated(),
    "text": b"<!DOCTYPE html><html>404</html>",
    "zeros": bytes(100),
    "a false length": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "a false long length": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "a negative length": b"\x80\x02T\xff\xff\xff\xffabc.",
    "left over": pickled(b"NN"),
    "nothing": pickled(b""),
    "only a mark": pickled(b"("),
    "no mark": pickled(b"}" + text("a") + b"Nu"),
    "no value": pickled(b"}(" + text("a") + b"u"),
    "no memo": pickled(b"h\x05"),
    "an unfinished array": pickled(array(ONES)[: array(ONES).index(b"(" + number(1))]),
    "only a name": pickled(name("numpy", "ndarray")),
    "too many digits": b"I" + b"9" * 10_000 + b"\n.",
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_damaged_files(read, content):
    with pytest.raises(WeightsError, match=r"net.pkl: not a complete pickle \(.*\); get it again") as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_missing_and_large_files(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="no such file"):
        read_pickle(tmp_path / "net.pkl")
    (tmp_path / "net.pkl").write_bytes(python2({"a": ONES}))
    monkeypatch.setattr(pickles, "LARGEST_FILE", 10)
    with pytest.raises(WeightsError, match="has .* bytes; a pickle of weights may have 10"):
        read_pickle(tmp_path / "net.pkl")


# -- bombs -------------------------------------------------------------------------------------------


def lists_of_lists():
    """A list of ten times the same list, fifty levels deep: 10^50 elements."""
    operations = b"]q\x00"
    for level in range(50):
        operations += b"0](" + (b"h" + bytes([level])) * 10 + b"e" + b"q" + bytes([level + 1])
    return pickled(operations)


def dictionaries_of_dictionaries():
    operations = b"}q\x00"
    for level in range(50):
        entries = b"".join(text(str(i)) + b"h" + bytes([level]) for i in range(10))
        operations += b"0}(" + entries + b"u" + b"q" + bytes([level + 1])
    return pickled(operations)


def one_wide_dictionary():
    """1,000 times the same dictionary of 1,000 times the same dictionary of ..."""
    operations = b"Nq\x00"
    for level in range(4):
        entries = b"".join(text(str(i)) + b"h" + bytes([level]) for i in range(1000))
        operations += b"0}(" + entries + b"u" + b"q" + bytes([level + 1])
    return pickled(operations)


def deep():
    return pickled(b"]" * 30_000 + b"a" * 29_999)


def cyclic():
    return pickled(b"}q\x00" + text("a") + b"h\x00s")


@pytest.mark.parametrize(
    "payload",
    [lists_of_lists, dictionaries_of_dictionaries, one_wide_dictionary, deep, cyclic],
    ids=lambda f: f.__name__,
)
def test_bombs_that_stay_small(read, payload):
    """They are valid, and take little time and memory."""
    start = time.process_time()
    tracemalloc.start()
    try:
        read(payload())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    assert time.process_time() - start < 5


def test_one_content_for_many_arrays(read):
    content = text(bytes(2**20)) + b"q\x00"
    again = array(np.zeros(2**20, "u1"), content=b"h\x00")
    with pytest.raises(WeightsError, match="more bytes of arrays than the file has"):
        read(pickled(content + b"0](" + again * 100 + b"e"))


def test_one_text_encoded_many_times(read):
    again = name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R"
    with pytest.raises(WeightsError, match="one text that is encoded many times"):
        read(pickled(text(bytes(2**20)) + b"q\x000](" + again * 100 + b"e"))


def test_too_many_objects(read, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_OBJECTS", 1000)
    with pytest.raises(WeightsError, match="more objects than weights have"):
        read(pickled(b"(" + b"N" * 2000 + b"t"))
    with pytest.raises(WeightsError, match="more objects than weights have"):
        read(pickled(b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(2000))))
    monkeypatch.setattr(pickles, "MOST_OPERATIONS", 1000)
    with pytest.raises(WeightsError, match="more objects than weights have"):
        read(pickled(b"N0" * 2000 + b"N"))


def test_long_names_are_shortened(read):
    with pytest.raises(WeightsError) as caught:
        read(pickled(name("a" * 10_000, "b\x1b[31m" + "c" * 10_000)))
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_changed_bytes(read, protocol):
    """A file with a few other bytes is read, or ends in one line."""
    random = np.random.default_rng(protocol)
    content = pickle.dumps(
        {"model": {"a": np.arange(6.0), "b": ONES}, "c": [1, "text", (2.5, None)]}, protocol=protocol
    )
    outcomes, messages = collections.Counter(), []
    for _ in range(300):
        changed = bytearray(content)
        for place in random.integers(0, len(content), random.integers(1, 4)):
            changed[place] = random.integers(0, 256)
        try:
            read(bytes(changed))
            outcomes["read"] += 1
        except WeightsError as error:
            messages.append(str(error))
            outcomes["refused" if "contains" in str(error) else "damaged"] += 1
    assert not any("\n" in message for message in messages)
    assert all(outcomes[kind] > 5 for kind in ("read", "refused", "damaged"))
