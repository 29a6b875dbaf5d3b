"""YAML of configs: what a value means, what is refused, and that what is written is read back."""

import time

import pytest
import yaml
from pydantic import Field

from tasks import config as cfg
from tasks.config import Strict, parse_override, read_yaml
from tasks.errors import ConfigError
from tasks.spec import resolve
from tasks.study.config import read_study
from tasks.study.plan import screening_runs
from tasks.yamltext import DEEPEST, LONGEST, MOST, dump_yaml, parse_value, parse_yaml
from tests.helpers.paths import ROOT

SHIPPED = "classification/cifar10/rescalenet20"


class Fields(Strict):
    """A field of each kind."""

    text: str = "a"
    maybe: str | None = None
    number: float = 1.0
    count: int = 1
    flag: bool = False
    texts: tuple[str, ...] = ()
    by_name: dict[str, str] = Field({})
    free: dict[str, object] = Field({})


def given(key, text):
    """The value of a field of ``Fields`` after ``key=text`` on the command line."""
    return getattr(cfg.check(cfg.apply_overrides({}, [f"{key}={text}"]), Fields, "command"), key)


# -- overrides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("runs/a #2", "a: b", "#x", "@x", "*x", "&x", "%x", "!x", "!!str 3", "|", ">", "- a", "? a", ", a", "`a`"),
        *("yes", "no", "on", "off", "n", "1e-3", "0x10", "0o7", "007", "1.10", "3", "-0", "1_000", "12:30:45", "+1"),
        *(
            "2026-01-31",
            "2026-01-31T10:00:00Z",
            ".inf",
            ".nan",
            "1e999",
            "=",
            "<<",
            "---",
            "...",
            "nUll",
            "it's",
            "a]b",
        ),
        *("C:\\x", "ü", "a\\nb", " x", "x ", "9" * 30),
    ],
)
def test_text_stays_as_it_was_typed(text):
    assert given("text", text) == text
    assert given("maybe", text) == text


@pytest.mark.parametrize(
    ("text", "value"), [("'a #b'", "a #b"), ('"a\\tb"', "a\tb"), ("'3'", "3"), ("'null'", "null"), ("''", "")]
)
def test_quoted_text(text, value):
    assert given("text", text) == value


@pytest.mark.parametrize("text", ["true", "False", "null", "~", "Null", "[a]", "{a: b}"])
def test_what_is_no_text_is_refused_and_may_be_quoted(text):
    with pytest.raises(ConfigError, match=r"command: text=.*: Input should be a valid string"):
        given("text", text)
    assert given("text", f"'{text}'") == text


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        *(("maybe", "null", None), ("maybe", "~", None)),
        *(("number", "1e-3", 0.001), ("number", "1E5", 1e5), ("number", "3", 3.0), ("number", ".5", 0.5)),
        *(
            ("count", "0x10", 16),
            ("count", "0o17", 15),
            ("count", "010", 10),
            ("count", "1_000", 1000),
            ("count", "3.0", 3),
        ),
        *(("flag", "yes", True), ("flag", "off", False), ("flag", "true", True), ("flag", "0", False)),
        *(("texts", "[a, 1e3, 007, 12:30, no]", ("a", "1e3", "007", "12:30", "no")), ("texts", "[]", ())),
        *(("by_name", "{a: 1.10, b: x}", {"a": "1.10", "b": "x"}),),
        *(("free", "{a: 1e-3, b: 010, c: no, d: [true, null]}", {"a": 0.001, "b": 10, "c": "no", "d": [True, None]}),),
    ],
)
def test_other_fields(key, text, value):
    found = given(key, text)
    assert found == value
    assert type(found) is type(value)
    if key == "free":
        assert [type(each) for each in found.values()] == [float, int, str, list]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(("number", ".inf"), ("number", "inf"), ("number", "nan"), ("number", "1e999"), ("number", "12:30:45")),
        *(
            ("number", "no"),
            ("number", "null"),
            ("count", "1e3x"),
            ("count", "1.5"),
            ("count", "12:30"),
            ("count", "true1"),
        ),
        *(("count", "9223372036854775809"), ("free", "{a: 9223372036854775809}"), ("count", "9" * 5000)),
        *(("flag", "12"), ("flag", "null"), ("texts", "a,b"), ("texts", "3"), ("texts", "null"), ("texts", "[null]")),
    ],
)
def test_values_that_a_field_does_not_take(key, text):
    with pytest.raises(ConfigError, match=rf"command: .*{key}") as caught:
        given(key, text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("data.holdout=", "has no value; leave it out, or write null for none"),
        ("data.holdout=  ", "has no value"),
        ("a=[1, 2] # x", "'# x' follows the value; quote the whole"),
        ("a='b' # x", "'# x' follows the value"),
        ("a={b: 1}#", "'#' follows the value"),
        ("a=[b", "the value, line 1: not valid YAML"),
        ('a="b', "not valid YAML"),
        ("a=[b]/c", "not valid YAML"),
        ("a={b: 1, b: 2}", "key 'b' stands in line 1 already"),
        ("a=[!!python/name:os.system x]", "tags are not allowed"),
        ("a=[*b]", r"\*b refers to no &b above it"),
        ("a=" + "[" * 100, f"nested deeper than {DEEPEST} levels"),
        ("=3", "must be section.key=value"),
        ("a..b=3", "must be section.key=value"),
        ("a.=3", "must be section.key=value"),
        (" a=3", "must be section.key=value"),
        ("a.b:3", "must be section.key=value"),
    ],
)
def test_overrides_that_are_refused(override, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_override(override)
    assert len(str(caught.value).splitlines()) == 1


# -- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", "line 4: key 'c' stands in line 3 already; remove one"),
        ("train: {epochs: 1, lr: 2,\n epochs: 90}", "line 2: key 'epochs' stands in line 1 already"),
        ("a: 1\n'a': 2\n", "line 2: key 'a' stands in line 1 already"),
        ("&k a: 1\n*k : 2\n", "line 2: key 'a' stands"),
        ("a: &x {b: 1}\nc: {<<: *x, <<: *x}", "line 2: key '<<' stands"),
        ("1: a", "line 1: key 1: must be text; quote it"),
        ("a:\n  true: b", "line 2: key true: must be text"),
        ("~: a", "key ~: must be text"),
        ("? \n: a", "key : must be text"),
        ("1.5: a", "key 1.5: must be text"),
        ("? [a]\n: b", "line 1: a key must be text, not a mapping or list"),
        ("? {a: b}\n: c", "a key must be text"),
        ("a: &a [*a]", r"line 1: \*a is inside of the value"),
        ("a: &a {b: *a}", r"\*a is inside of the value"),
        ("a: *b", r"line 1: \*b refers to no &b above it; quote it if it is text"),
        ("a: {<<: 3}", "<< of the mapping in line 1: must be a mapping"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: tag .*: tags are not allowed"),
        ("a: !!binary aGk=", "tags are not allowed"),
        ("a: !!set {b}", "tags are not allowed"),
        ("a: !mine 3", "tags are not allowed"),
        ("a: !!int x", "tags are not allowed"),
        ("a: [", "line 1: not valid YAML"),
        ("a: b: c", "line 1: not valid YAML: mapping values are not allowed here"),
        ("a:\n\tb: c", "line 2: not valid YAML: found character '.t'"),
        ("a: @b", "not valid YAML: found character '@'"),
        ("a: \a", "not valid YAML: unacceptable character"),
        ("a: 1\n---\na: 2", "line 2: a second document begins"),
        ("[" * 10_000, f"line 1: nested deeper than {DEEPEST} levels"),
        ("- " * 100 + "a", f"nested deeper than {DEEPEST} levels"),
        ("{a: " * 100, "nested deeper"),
        ("a: [" + "x," * MOST + "]", f"more than {MOST} values"),
        ("# " + "x" * LONGEST, f"has {LONGEST + 2} characters, a config at most {LONGEST}"),
        ("%YAML 2.0\n---\na: 1", "not valid YAML"),
        ("", "expected key: value sections, found NoneType"),
        ("- a", "expected key: value sections, found list"),
    ],
)
def test_files_that_are_refused(tmp_path, text, reason):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/c.yaml.*{reason}") as caught:
        read_yaml(tmp_path / "c.yaml")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["list", "mapping", "merge", "deep"])
def test_aliases_that_multiply_take_no_time(kind):
    """The billion laughs: each line has the one above nine times."""
    first, line = {
        "list": ("[x, x]", "[{}]"),
        "mapping": ("{x: x}", "{{{}}}"),
        "merge": ("{x: x}", "{{<<: [{}]}}"),
        "deep": ("[x]", "[{}]"),
    }[kind]
    lines = [f"a0: &a0 {first}"]
    for i in range(1, 60):
        aliases = [f"*a{i - 1}"] * (1 if kind == "deep" else 9)
        inner = ", ".join(f"k{n}: {a}" for n, a in enumerate(aliases)) if kind == "mapping" else ", ".join(aliases)
        lines.append(f"a{i}: &a{i} {line.format(inner)}")
    began = time.process_time()
    with pytest.raises(ConfigError, match="those behind aliases included"):
        parse_yaml("\n".join(lines), "c.yaml")
    assert time.process_time() - began < 2


def test_aliases_in_use():
    text = "base: &base {lr: 1e-3, name: sgd}\na: {<<: *base, lr: 2}\nb: *base\nc: {<<: [{x: 1}, *base]}\n"
    found = parse_yaml(text, "c.yaml")
    assert found["a"] == {"lr": 2, "name": "sgd"}
    assert found["b"] == {"lr": 0.001, "name": "sgd"}
    assert found["c"] == {"x": 1, "lr": 0.001, "name": "sgd"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: ü".encode("utf-16"), "it is UTF-16; convert it: iconv -f utf-16"),
        ("a: ü".encode("utf-16-le"), "it is UTF-16; convert it"),
        ("b: 1\na: ü".encode("latin1"), "line 2; convert it from its encoding, as in iconv -f ENCODING -t utf-8"),
    ],
)
def test_files_of_other_encodings(tmp_path, content, reason):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"c.yaml: .*{reason}"):
        read_yaml(tmp_path / "c.yaml")


def test_a_byte_order_mark_and_line_ends_of_windows(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfa: b\r\nc:\r\n  d: 1\r\n")
    assert read_yaml(tmp_path / "c.yaml") == {"a": "b", "c": {"d": 1}}


def test_stored_configs_and_studies_are_read_by_the_same_rules(tmp_path):
    study = (ROOT / "configs/studies/cifar10.yaml").read_text()
    (tmp_path / "s.yaml").write_text(study + "\noutput: other\n")
    with pytest.raises(ConfigError, match=r"s.yaml, line \d+: key 'output' stands in line \d+ already"):
        read_study(str(tmp_path / "s.yaml"))


# -- writing -----------------------------------------------------------------------------------------


def test_what_is_written_is_read_back():
    texts = [
        "007",
        "1e-3",
        "0o7",
        "0x10",
        "no",
        "yes",
        "~",
        "null",
        "12:30",
        "2026-01-31",
        "1.10",
        "08",
        "a #b",
        "a: b",
        "",
    ]
    content = {"texts": texts, "numbers": [1e-5, 0.1, 3, -2, 1e300], "none": None, "flag": True, "ü": {}}
    written = dump_yaml(content)
    assert parse_yaml(written, "dump") == content
    assert yaml.safe_load(written) == content
    for value in (*texts, *content["numbers"], content, [texts]):
        if value != "":
            assert (
                parse_value(dump_yaml(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip())
                == value
            )


def test_a_config_of_odd_names_is_read_back():
    config = resolve(SHIPPED, ["output=runs/a #2", "data.root=007", "data.train=1e3", "data.val=no"])
    assert (config.output, config.data.root, config.data.train, config.data.val) == ("runs/a #2", "007", "1e3", "no")
    assert cfg.check(parse_yaml(cfg.dump(config), "dump"), type(config), "dump") == config


def test_overrides_of_a_study_reach_its_runs_as_they_were_written(tmp_path):
    (tmp_path / "s.yaml").write_text(
        f"recipe: {SHIPPED}\noutput: {tmp_path}/study\nschemes: {{rescale: {{}}, bn: {{}}}}\n"
        "overrides: {data.train: 007, data.val: 'a #b'}\n"
        "grid: {train.optimizer.lr: [1e-3, 0.10]}\n"
        "screening: {overrides: {data.split: holdout, data.root: 1e3}}\n"
    )
    runs = screening_runs(read_study(str(tmp_path / "s.yaml")))
    assert {(r.config.data.train, r.config.data.val, r.config.data.root) for r in runs} == {("007", "a #b", "1e3")}
    assert [run.config.train.optimizer.lr for run in runs] == [0.001, 0.001, 0.1, 0.1]
