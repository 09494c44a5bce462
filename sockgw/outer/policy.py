"""A policy: which methods are allowed on which paths of a target.

Regular expressions are RE2's: their time is linear in the path, so that no path, however hostile,
makes matching slow. Look-around and back-references, which have no such bound, are refused when the
file is read.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import re2

from sockgw.outer.paths import PathRefused, resolve
from sockgw.yamlfile import YamlNode

__all__ = ["Policy", "Rule", "forbidden_reason", "parse_policy", "shown"]

_MAX_PATTERN_MEMORY = 256 * 1024
"""Bytes for one expression, grown into as paths need it. RE2's default, 8 MiB, times a file of many
targets would be a way to exhaust memory; a pattern of some thousand states fits this one."""

_MAX_SHOWN_PATH = 256  # characters of a path in a refusal
_MAX_SHOWN_VALUE = 80  # characters of a value in an error

_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]{1,64}")  # a token (RFC 9110, section 9.1)
_NOT_LITERAL = re.compile(r"[*?\[\]{}|\\^]|\.\+|\$$")  # regular expressions without their ^
_UNPRINTABLE = re.compile(r"[^!-~]+")


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of a policy."""

    path: str
    """As in the file: ``*``, an exact path, or ``^`` and what follows of a regular expression."""
    methods: frozenset[str] | None
    """Allowed methods in upper case; None for all."""
    pattern: Any = field(default=None, compare=False, repr=False)
    """The compiled expression, for bytes; None where ``path`` is none."""


class Policy:
    """What all rules together allow: a request passes where any of them lets it."""

    __slots__ = ("_anywhere", "_exact", "_patterns", "rules", "unrestricted")

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        #: The entries, in the order of the file.
        self.rules = rules
        #: Whether everything is allowed: then paths need not even be looked at.
        self.unrestricted = any(rule.path == "*" and rule.methods is None for rule in rules)
        self._anywhere = [rule.methods for rule in rules if rule.path == "*"]
        self._exact = {rule.path: rule.methods for rule in rules if rule.pattern is None}
        self._patterns = [
            (rule.pattern, rule.methods) for rule in rules if rule.pattern is not None
        ]

    def allows(self, method: str, path: str) -> bool:
        """Return whether a request may pass; ``path`` is that of :func:`paths.resolve`.

        A method allows itself only: HEAD does not come with GET.
        """
        method = method.upper()
        for methods in self._anywhere:
            if methods is None or method in methods:
                return True
        if path in self._exact:
            methods = self._exact[path]
            if methods is None or method in methods:
                return True
        if self._patterns:
            text = path.encode()
            for pattern, methods in self._patterns:
                # Looking for the method is cheaper than looking for the path.
                if (methods is None or method in methods) and pattern.search(text) is not None:
                    return True
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.rules == other.rules

    def __hash__(self) -> int:
        return hash(self.rules)

    def __repr__(self) -> str:
        return f"Policy({self.rules!r})"


def parse_policy(node: YamlNode | None) -> Policy:
    """Return the policy that a file gives; None, where it gives none, allows everything.

    Raises ConfigError with line and column.
    """
    if node is None or node.value == "*":
        return Policy((Rule("*", None),))
    if not isinstance(node.value, dict):
        raise node.error("this is no policy", "* or a mapping of paths to methods")
    return Policy(tuple(_rule(path, methods) for path, methods in node.value.items()))


def _rule(path: str, node: YamlNode) -> Rule:
    methods = _methods(node)
    if path == "*":
        return Rule(path, methods)
    if path.startswith("^"):
        return Rule(path, methods, _compile(path, node))
    _check_exact(path, node)
    return Rule(path, methods)


def _methods(node: YamlNode) -> frozenset[str] | None:
    items = node.value if isinstance(node.value, list) else [node]
    if not items:
        raise node.error("no method is given", "a list of methods, or *")
    methods = set()
    for item in items:
        method = item.value.upper() if isinstance(item.value, str) else ""
        if not _METHOD.fullmatch(method):
            raise item.error(f"{shown(item)} is no method", "one such as GET, a list, or *")
        methods.add(method)
    return None if "*" in methods else frozenset(methods)


def _check_exact(path: str, node: YamlNode) -> None:
    """Refuse what could never match: no request's path looks like that once it is normal."""
    if _NOT_LITERAL.search(path):
        raise node.error(
            f"{path!r} is no path; a regular expression starts with ^",
            "an exact path, * or ^...",
            at_key=True,
        )
    try:
        normal = resolve(path.encode()).path
    except PathRefused as error:
        raise node.error(
            f"{path!r} can never match: {error}", "an exact path, * or ^...", at_key=True
        ) from None
    if normal != path:
        raise node.error(f"{path!r} can never match", f"its normal form {normal!r}", at_key=True)


def _compile(pattern: str, node: YamlNode) -> Any:
    if not pattern.isascii():
        raise node.error(
            f"{pattern!r} can never match: paths are ASCII", "percent-escapes", at_key=True
        )
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_PATTERN_MEMORY
    options.never_capture = True  # only whether it matches is asked
    options.encoding = re2.Options.Encoding.LATIN1  # a third of UTF-8's states; paths are ASCII
    try:
        return re2.compile(pattern.encode(), options)
    except re2.error as error:
        reason = error.args[0].decode("ascii", "replace")
        raise node.error(
            f"{pattern!r} is no regular expression that can be used here: {reason}",
            "RE2 syntax, which has no look-ahead, look-behind or back-references",
            at_key=True,
        ) from None


def shown(node: YamlNode) -> str:
    """Return a value of a file as an error names it."""
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list"
    text = repr(node.value)
    return text if len(text) <= _MAX_SHOWN_VALUE else f"{text[:_MAX_SHOWN_VALUE]}..."


def forbidden_reason(method: str, protocol: str, host: str, port: int, path: str) -> str:
    """Return the one line that a client gets with its 403; safe to print and bounded in length.

    ``port`` is 0 where there is none to tell: a service, whose name stands as the host.
    """
    if ":" in host:
        host = f"[{host}]"
    authority = f"{host}:{port}" if port else host
    if path == "*":
        path = ""  # RFC 9112, section 3.3: such a request is about the server as a whole
    elif len(path) > _MAX_SHOWN_PATH:
        path = path[:_MAX_SHOWN_PATH] + "..."
    url = _UNPRINTABLE.sub("?", f"{protocol}://{authority}{path}")
    return f"Forbidden: {_UNPRINTABLE.sub('?', method[:64])} {url} is not allowed by policy."
