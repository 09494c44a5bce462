"""YAML whose every value knows where it stands, so that an error can say line and column.

Only what a configuration needs passes: mappings, sequences and the scalars of YAML 1.2's core
schema (so ``no`` and ``off`` are text). Anchors, aliases and tags are refused: they can make a
small file a huge value, and nothing here needs them. Values are built from the parser's events,
without recursion, in one pass. Some 20,000 lines take a second: read large files in a thread.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
)
from ruamel.yaml.reader import ReaderError

__all__ = ["MAX_DEPTH", "MAX_SIZE", "ConfigError", "YamlNode", "load_yaml"]

MAX_SIZE = 16 * 1024 * 1024
"""Characters in a file: room for some 100,000 targets."""

MAX_DEPTH = 32
"""Levels of nesting; a targets file has six."""

_MAX_DIGITS = 18  # what fits 64 bits; int() of a longer text costs more than linear time


class ConfigError(ValueError):
    """A setting is wrong: which, its value, what was expected and where it stands.

    ``problem`` follows the value in the sentence ("is not a port number"), or is the whole sentence
    where ``value`` is None. Never pass a secret as ``value``. ``line`` and ``column`` count from 1.
    """

    def __init__(
        self,
        problem: str,
        *,
        option: str = "",
        value: object = None,
        expected: str = "",
        source: str = "",
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        place = source
        if line is not None:
            place += f":{line}" if column is None else f":{line}:{column}"
        text = problem if value is None else f"{value!r} {problem}"
        if expected:
            text += f"; expected {expected}"
        super().__init__(": ".join(part for part in (place, option, text) if part))
        self.problem = problem
        self.option = option
        self.value = value
        self.expected = expected
        self.source = source
        self.line = line
        self.column = column


@dataclass(slots=True)
class YamlNode:
    """A value of a YAML file and its place.

    ``value`` is a dict[str, YamlNode], a list[YamlNode], or a str, int, float, bool or None.
    ``text`` is a scalar as it is spelled, so that 007 can still be a name; "" for others.
    ``path`` is dotted ("targets.socket.gateway.port", "allow[0]"), empty for the whole file.
    ``line`` and ``column`` count from 1; ``key_line`` and ``key_column`` are where the value's key
    stands, or the value itself where it has no key.
    """

    value: Any
    text: str = field(repr=False)
    path: str
    source: str
    line: int
    column: int
    key_line: int = field(repr=False)
    key_column: int = field(repr=False)

    def error(self, problem: str, expected: str = "", *, at_key: bool = False) -> ConfigError:
        """Return an error that points here, or at this value's key; ``problem`` is a sentence."""
        return ConfigError(
            problem,
            option=self.path,
            expected=expected,
            source=self.source,
            line=self.key_line if at_key else self.line,
            column=self.key_column if at_key else self.column,
        )


def load_yaml(text: str, source: str) -> YamlNode:
    """Return the one document in ``text``; an empty one has the value None.

    ``source`` names the text in errors. Raises ConfigError for whatever is not plain, single,
    bounded YAML, with line and column.
    """
    if len(text) > MAX_SIZE:
        raise ConfigError(
            "the file is too large", source=source, expected=f"at most {MAX_SIZE} characters"
        )
    try:
        # libyaml is 20 times as fast. What it refuses is read again by the parser in Python, which
        # has the better errors, and takes some of JSON that libyaml does not.
        return _build(YAML(typ="safe", pure=False).parse(text), source)
    except YAMLError:
        pass
    try:
        return _build(YAML(typ="safe", pure=True).parse(text), source)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            raise ConfigError(f"no valid YAML: {error.problem}", source=source) from None
        raise _error_at(mark, source, f"no valid YAML: {error.problem or error.context}") from None
    except ReaderError as error:
        before = text[: error.position]
        raise ConfigError(
            "no valid YAML: a character that YAML does not allow",
            source=source,
            line=before.count("\n") + 1,
            column=len(before) - before.rfind("\n"),
        ) from None
    except YAMLError as error:
        raise ConfigError(f"no valid YAML: {error}", source=source) from None


def _error_at(mark: Any, source: str, problem: str, expected: str = "") -> ConfigError:
    return ConfigError(
        problem, expected=expected, source=source, line=mark.line + 1, column=mark.column + 1
    )


def _build(events: Iterator[Any], source: str) -> YamlNode:
    root: YamlNode | None = None
    documents = 0
    stack: list[YamlNode] = []
    keys: list[ScalarEvent | None] = []  # beside the stack: a mapping's key that waits for a value

    for event in events:
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _error_at(event.start_mark, source, "more than one document in the file")
        elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            stack.pop()
            keys.pop()
        elif isinstance(event, NodeEvent):
            _refuse_extras(event, source)
            if isinstance(event, ScalarEvent) and _SURROGATE.search(event.value):
                _join_surrogates(event, source)
            parent = stack[-1] if stack else None
            if parent is not None and isinstance(parent.value, dict) and keys[-1] is None:
                keys[-1] = _key(event, parent)
                continue
            node = _node(event, parent, keys[-1] if keys else None, source)
            if parent is None:
                root = node
            elif isinstance(parent.value, dict):
                key = keys[-1]
                assert key is not None  # noqa: S101 - the branch above has set it
                parent.value[key.value] = node
                keys[-1] = None
            else:
                parent.value.append(node)
            if not isinstance(event, ScalarEvent):
                if len(stack) >= MAX_DEPTH:
                    raise _error_at(
                        event.start_mark, source, "nested too deep", f"at most {MAX_DEPTH} levels"
                    )
                stack.append(node)
                keys.append(None)
    return root or YamlNode(None, "", "", source, 1, 1, 1, 1)


def _refuse_extras(event: NodeEvent, source: str) -> None:
    if isinstance(event, AliasEvent) or event.anchor is not None:
        raise _error_at(
            event.start_mark, source, "anchors and aliases are not allowed", "the value itself"
        )
    if getattr(event, "tag", None) is not None:
        raise _error_at(event.start_mark, source, "tags are not allowed", "a plain value")


_SURROGATE = re.compile("[\ud800-\udfff]")


def _join_surrogates(event: ScalarEvent, source: str) -> None:
    """Make characters of JSON's escapes in pairs (RFC 8259, section 7), which YAML leaves apart."""
    try:
        event.value = event.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _error_at(event.start_mark, source, "half a character (a lone surrogate)") from None


def _key(event: NodeEvent, mapping: YamlNode) -> ScalarEvent:
    """Check a key. One that reads as a whole number stays as it is spelled."""
    source = mapping.source
    if not isinstance(event, ScalarEvent):
        raise _error_at(event.start_mark, source, "a key must be text")
    value = _scalar(event, source)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise _error_at(
            event.start_mark, source, f"the key {event.value!r} is no text", "it in quotes"
        )
    first = mapping.value.get(event.value)
    if first is not None:
        raise _error_at(
            event.start_mark,
            source,
            f"the key {event.value!r} stands twice, first in line {first.key_line}",
        )
    return event


def _node(
    event: NodeEvent, parent: YamlNode | None, key: ScalarEvent | None, source: str
) -> YamlNode:
    start = event.start_mark
    key_start = start if key is None else key.start_mark
    value: Any
    text = ""
    if isinstance(event, ScalarEvent):
        value = _scalar(event, source)
        text = event.value
        if value is None and not text:
            start = key_start  # a value that is left out has no place of its own
    else:
        value = {} if isinstance(event, MappingStartEvent) else []
    if parent is None:
        path = ""
    elif key is not None:
        path = f"{parent.path}.{key.value}" if parent.path else key.value
    else:
        path = f"{parent.path}[{len(parent.value)}]"
    return YamlNode(
        value,
        text,
        path,
        source,
        line=start.line + 1,
        column=start.column + 1,
        key_line=key_start.line + 1,
        key_column=key_start.column + 1,
    )


# YAML 1.2.2, section 10.3.2 (core schema).
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+")
_OTHER_INT = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def _plain(event: ScalarEvent) -> bool:
    return not event.style  # neither quoted nor a block


def _scalar(event: ScalarEvent, source: str) -> str | int | float | bool | None:
    text: str = event.value
    if not _plain(event):
        return text
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    is_int = _INT.fullmatch(text)
    if is_int or _OTHER_INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise _error_at(
                event.start_mark, source, "the number is too long", f"at most {_MAX_DIGITS} digits"
            )
        return int(text, 10 if is_int else 0)
    # What is not finite stays text: no setting wants it.
    return float(text) if _FLOAT.fullmatch(text) and isfinite(float(text)) else text
