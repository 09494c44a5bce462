"""YAML with places: what passes, what is refused, and where the error points."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockgw.yamlfile import MAX_DEPTH, MAX_SIZE, ConfigError, YamlNode, load_yaml


def plain(node: YamlNode):
    """Return a node's value without places."""
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "f.yaml")
    return caught.value


TEXTS = st.text(st.characters(codec="utf-8"))
# A key has at most 1024 characters as written (YAML 1.2.2, section 7.4.2), of up to 12 for each.
KEYS = st.text(st.characters(codec="utf-8"), max_size=80)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**16), 10**17) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(VALUES)
def test_what_json_says_is_read_as_json_says(value):
    assert plain(load_yaml(json.dumps(value), "f")) == value


@settings(deadline=None)
@given(st.text() | st.text("-:[]{},&*!|>'\"%@#?~ \n\tab01.e"))
def test_junk_raises_only_the_one_error(text):
    try:
        node = load_yaml(text, "f")
    except ConfigError as error:
        assert str(error).startswith("f:")  # noqa: PT017
    else:
        assert (node.line, node.column) >= (1, 1)


def test_the_targets_example_has_places():
    text = (
        "targets:\n"
        '  "socket.gateway": # DNS name\n'
        "    port: abc\n"
        "    identifier: [one,\n"
        "                 two]\n"
    )
    node = load_yaml(text, "targets.yaml").value["targets"].value["socket.gateway"]
    assert (node.path, node.line, node.column) == ("targets.socket.gateway", 3, 5)
    assert (node.key_line, node.key_column) == (2, 3)
    port = node.value["port"]
    assert (port.line, port.column, port.key_line, port.key_column) == (3, 11, 3, 5)
    two = node.value["identifier"].value[1]
    assert (two.path, two.line, two.column) == ("targets.socket.gateway.identifier[1]", 5, 18)
    assert str(port.error("'abc' is not a port number", "a whole number")) == (
        "targets.yaml:3:11: targets.socket.gateway.port: "
        "'abc' is not a port number; expected a whole number"
    )
    assert str(port.error("unknown", at_key=True)).startswith("targets.yaml:3:5: ")


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n...\n", "~"])
def test_an_empty_file_is_none(text):
    assert load_yaml(text, "f").value is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        (".5e3", 500.0),
        (".inf", ".inf"),
        ("1e999", "1e999"),
        ("2026-11-22", "2026-11-22"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("|\n  ~\n", "~\n"),
    ],
)
def test_scalars_are_those_of_the_core_schema(text, value):
    node = load_yaml(text, "f")
    assert node.value == value
    assert type(node.value) is type(value)


def test_a_scalar_keeps_its_spelling():
    root = load_yaml("a: 007\nb: '0x1'\nc: [1]\n", "f").value
    assert (root["a"].text, root["b"].text, root["c"].text) == ("007", "0x1", "")


def test_numbers_may_be_keys_and_stay_as_spelled():
    assert list(load_yaml("443: a\n007: b\n", "f").value) == ["443", "007"]


def test_a_missing_value_stands_where_its_key_does():
    node = load_yaml("a:\n\n\nb: 1\n", "f").value["a"]
    assert (node.value, node.line, node.column) == (None, 1, 1)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: 2\na: 3", "3:1", "'a' stands twice, first in line 1"),
        ("{a: {b: 1, b: 2}}", "1:12", "'b' stands twice"),
        ("a: &x 1", "1:4", "anchors"),
        ("a: 1\nb: *a", "2:4", "aliases"),
        ("a: !!python/object:os.system x", "1:4", "tags"),
        ("a: !!str x", "1:4", "tags"),
        ("a: [1,\n  2", "2:4", "no valid YAML"),
        ("a:\n\t- b", "2:1", "no valid YAML"),
        ("--- 1\n--- 2", "2:1", "more than one document"),
        ("ok: 1\nbad: \x07", "2:6", "a character"),
        ("[a, b]: 1", "1:1", "a key must be text"),
        ("true: 1", "1:1", "the key 'true'"),
        (r'a: "\ud800"', "1:4", "half a character"),
        ("~: 1", "1:1", "the key '~'"),
        ("1.5: 1", "1:1", "the key '1.5'"),
        ("a: " + "9" * 19, "1:4", "too long"),
        ("[" * 100000, f"1:{MAX_DEPTH + 1}", "nested too deep"),
        ("{a: " * 100000, f"1:{4 * MAX_DEPTH + 1}", "nested too deep"),
    ],
)
def test_refused(text, place, words):
    error = refused(text)
    assert str(error).startswith(f"f.yaml:{place}: ")
    assert words in str(error)


def test_the_deepest_allowed_nesting_passes():
    load_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "f")


def test_an_oversized_text_is_refused_unread():
    assert "too large" in str(refused(" " * (MAX_SIZE + 1)))


def test_an_error_without_a_place_says_what_it_knows():
    assert str(ConfigError("is bad", value=3)) == "3 is bad"
    assert str(ConfigError("is bad", option="--x", value="a", expected="b")) == (
        "--x: 'a' is bad; expected b"
    )
    assert str(ConfigError("is bad", source="f", line=3)) == "f:3: is bad"
