"""Headers of weights files: whatever they contain, the result is an entry or one line that says what is wrong."""

import copy
import json
import math
import resource
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import zoo
from zoo import headers
from zoo.headers import Header, read_header, write_header
from zoo.jsontext import DEEPEST

PATH = Path("w.safetensors")
VALID = {
    "config": {
        "name": "rescalenet20_cifar",
        "scheme": "rescale",
        "num_classes": 2,
        "in_chans": 3,
        "options": {"width": 0.25},
    },
    "transform": {
        "kind": "image",
        "size": 32,
        "resize": 36,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bilinear",
        "channel_order": "RGB",
    },
    "classes": ["a", "b"],
    "meta": {"metrics": {"top1": 99.5}},
}
VIDEO = {"kind": "video", "frames": 8, "interval": 2, "fps": None, "size": 32, "resize": 36, "crop_mode": "center"}
VIDEO |= {"mean": [0.5] * 3, "std": [0.2] * 3}
TEXT = {"kind": "text", "source": "en", "target": "de", "source_model": "", "target_model": None}


def changed(key, value):
    """The valid entry with one value changed; the key is a path with dots."""
    entry = copy.deepcopy(VALID)
    *above, last = key.split(".")
    inner = entry
    for part in above:
        inner = inner[part]
    inner[last] = value
    return entry


def test_what_is_written_is_read():
    header = read_header(json.dumps(VALID), PATH)
    assert header.config == zoo.ModelConfig("rescalenet20_cifar", "rescale", 2, 3, {"width": 0.25})
    assert header.transform == zoo.InputTransform(32, 36, (0.5,) * 3, (0.2,) * 3)
    assert (header.classes, header.meta) == (("a", "b"), {"metrics": {"top1": 99.5}})
    assert json.loads(write_header(header, PATH)) == VALID
    assert read_header(write_header(header, PATH), PATH) == header


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("config.name", "../../etc", "config.name='../../etc': name='../../etc': must be 1 to 100 letters"),
        ("config.scheme", "a/b", "config.scheme='a/b'"),
        ("config.num_classes", "two", "config.num_classes='two': Input should be a valid integer"),
        ("config.num_classes", True, "config.num_classes=True: Input should be a valid integer"),
        ("config.num_classes", 3, r"classes: 2 names for config.num_classes=3"),
        ("config.num_classes", -1, "config.num_classes=-1: Input should be greater than or equal to 0"),
        ("config.num_classes", 10**9, "config.num_classes=1000000000: Input should be less than or equal"),
        ("config.in_chans", 4, "transform.mean has 3 values for config.in_chans=4"),
        ("config.options", [], "config.options=.*dictionary"),
        ("config.later", 1, "config.later: is no key of a header that this version knows"),
        ("later", 1, "later: is no key of a header"),
        ("classes", "ab", "classes='ab': Input should be a valid list"),
        ("classes", ["a", {}], "classes.1={}: Input should be a valid string"),
        ("classes", ["a", 1], "classes.1=1: Input should be a valid string"),
        ("classes", ["a", "b\x1b[2J"], "classes: .* has a control character"),
        ("classes", ["a", "b" * 1001], "classes.1='bbbb.*: String should have at most 1000 characters"),
        ("meta", [], r"meta=\[\]: Input should be a valid dictionary"),
        ("transform.size", -5, "transform: size=-5, resize=36: must be 0 < size <= resize"),
        ("transform.size", 0, "size=0, resize=36: must be 0 < size <= resize"),
        ("transform.size", 37, "size=37, resize=36: must be 0 < size <= resize"),
        ("transform.resize", 10**6, "resize=1000000: must be at most 16384 pixels"),
        ("transform.size", 3.5, "transform.size=3.5: Input should be a valid integer"),
        ("transform.interpolation", "foo", "transform.interpolation='foo': Input should be 'bilinear', 'bicubic'"),
        ("transform.channel_order", "GBR", "transform.channel_order='GBR'"),
        ("transform.std", [0.2, 0, 0.2], r"std=\(0.2, 0.0, 0.2\): must be 1e-06 to 1, on the 0..1 scale"),
        ("transform.std", [0.2, 0.2], "3 values of mean and 2 of std"),
        (
            "transform.mean",
            [123.7, 116.3, 103.5],
            "mean=.*: must be 0 to 1, .* on the 0..255 scale by 255",
        ),
        ("transform.mean", [], "0 values of mean and 3 of std"),
        ("transform.later", 1, "transform.later: image transforms have no such key"),
        ("transform.kind", "sound", "unknown kind of transform 'sound'"),
        ("transform", {**VIDEO, "frames": 0}, "frames=0, interval=2.0, fps=None: must be > 0"),
        ("transform", {**VIDEO, "frames": 10**9}, "frames at most 4096"),
        ("transform", {**VIDEO, "fps": -1}, "fps=-1.0: must be > 0"),
        ("transform", {**TEXT, "source": "../x"}, "language source='../x': must be 1 to 20 letters"),
        ("transform", {**TEXT, "target_model": 3}, "transform.target_model=3: Input should be a valid string"),
    ],
)
def test_a_wrong_value_is_named(key, value, message):
    with pytest.raises(zoo.WeightsError, match=message) as caught:
        read_header(json.dumps(changed(key, value)), PATH)
    assert str(caught.value).startswith("w.safetensors: its 'rescalenet' header entry is not valid (")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["config", "transform", "classes", "meta", "config.options", "transform.mean"])
def test_a_missing_key_is_named(key):
    entry = changed(key, None)
    above, _, last = key.rpartition(".")
    del (entry[above] if above else entry)[last]
    with pytest.raises(zoo.WeightsError, match=f"{key}.*(is missing|Field required)"):
        read_header(json.dumps(entry), PATH)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 19 + "9", "1" * 5000])
def test_numbers_are_finite_and_bounded(number):
    text = json.dumps(changed("meta", {"x": "HERE"})).replace('"HERE"', number)
    with pytest.raises(zoo.WeightsError, match="must be finite|must be at most 2"):
        read_header(text, PATH)


@pytest.mark.parametrize("depth", [DEEPEST, 900, 10**5, 10**6])
def test_depth_is_bounded(depth):
    text = json.dumps(changed("meta", {"x": "HERE"})).replace('"HERE"', "[" * depth + "]" * depth)
    with pytest.raises(zoo.WeightsError, match=f"nested deeper than {DEEPEST} levels"):
        read_header(text, PATH)


def test_length_and_double_keys_are_refused(monkeypatch):
    with pytest.raises(zoo.WeightsError, match="key 'a' occurs twice"):
        read_header('{"a": 1, "a": 2}', PATH)
    monkeypatch.setattr(headers, "LONGEST", 100)
    with pytest.raises(zoo.WeightsError, match="characters: must be at most 100"):
        read_header(json.dumps(VALID), PATH)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", "[" + "0," * 300_000 + "0]", "classes.0=0: Input should be a valid string"),
        ("classes", "[" + "{}," * 2_200_000 + "0]", "commas and brackets: must be at most"),
        ("meta", "[" + "0," * 300_000 + "0]", "values beside the class names: must be at most"),
        ("transform.mean", "[" + '"a",' * 300_000 + "0]", "values beside the class names: must be at most"),
        (
            "config",
            "{" + ",".join(f'"k{number}":0' for number in range(300_000)) + "}",
            "values beside the class names: must be at most",
        ),
    ],
)
def test_many_wrong_values_take_little_time_and_memory(key, value, message):
    text = json.dumps(changed(key, "HERE")).replace('"HERE"', value)
    before, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(zoo.WeightsError, match=message):
        read_header(text, PATH)
    assert time.process_time() - before < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100 * 2**10  # KiB


def test_a_header_of_hundreds_of_megabytes_is_not_read(tmp_path):
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write((300 * 2**20).to_bytes(8, "little"))
        file.truncate(300 * 2**20 + 8)  # a sparse file
    with pytest.raises(zoo.WeightsError, match="its first 8 bytes are the length of its header, 314572800"):
        zoo.get_weights(path)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"a": {"b": Path("x")}}, r"meta.a.b has type PosixPath: must be text, a number"),
        ({"a": torch.ones(1)}, "meta.a has type Tensor"),
        ({"a": [1.0, math.nan]}, "meta.a.1=nan: numbers must be finite"),
        ({"a": {1: "x"}}, "meta.a: key 1 has type int; the keys of an object are text"),
        ({"a": {1, 2}}, "meta.a has type set"),
        ({"a": 2**70}, "integers must be at most"),
    ],
)
def test_meta_that_json_does_not_take(meta, message):
    header = read_header(json.dumps(VALID), PATH)
    with pytest.raises(zoo.ZooError, match=message):
        write_header(header._replace(meta=meta), PATH)


def test_meta_that_contains_itself():
    meta = {}
    meta["meta"] = meta
    with pytest.raises(zoo.ZooError, match="nested deeper"):
        write_header(read_header(json.dumps(VALID), PATH)._replace(meta=meta), PATH)


# -- whatever is in the header ------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800\x1b\n")
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
KEYS = [f"{above}.{key}" for above in ("config", "transform", "meta") for key in VALID[above]] + list(VALID)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def checked_line(error):
    """The message of an error, after a check that it is one line that a terminal can show."""
    (line,) = str(error).splitlines()
    assert line.encode().decode().isprintable()
    return line


def entry_or_line(path):
    """The entry of a file, or the one line that says what is wrong."""
    try:
        return zoo.get_weights(str(path))
    except zoo.WeightsError as error:
        return checked_line(error)


@QUICK
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
@example({"config.name": "\ud800"})
@example({"transform.mean": [10**400] * 3})
def test_any_values(changes):
    text = VALID
    for key, value in sorted(changes.items(), reverse=True):  # whole sections last
        entry = copy.deepcopy(text)
        *above, last = key.split(".")
        inner = entry
        for part in above:
            inner = inner[part]
        inner[last] = value
        text = entry
    try:
        header = read_header(json.dumps(text), PATH)
    except zoo.WeightsError as error:
        checked_line(error)
        return
    assert isinstance(header, Header)
    assert read_header(write_header(header, PATH), PATH) == header


@QUICK
@given(st.text() | VALUES.map(json.dumps))
def test_any_text(tmp_path, text):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"rescalenet": text})
    assert isinstance(entry_or_line(path), str)


@QUICK
@given(st.binary(max_size=64), st.integers(0, 2**64 - 1) | st.integers(0, 80))
def test_any_bytes(tmp_path, content, length):
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + content)
    assert isinstance(entry_or_line(path), str)
