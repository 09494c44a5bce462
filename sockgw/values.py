"""Reading a setting's text: each function returns the value, or says what it expected.

Each takes a text and raises ConfigError whose problem follows the text in the sentence, as in
"'abc' is not a whole number".
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from sockgw import endpoints
from sockgw.yamlfile import ConfigError

__all__ = [
    "count",
    "count_or_zero",
    "listening",
    "milliseconds",
    "milliseconds_or_zero",
    "one_of",
    "pair",
    "path",
    "text",
    "url",
    "yes_no",
]

# The largest timeout that epoll_wait takes, and a sane bound for a count: 2**31 - 1.
_MAX_NUMBER = 2147483647


def text(value: str) -> str:
    """Read printable text that is not empty."""
    if not value or not value.isprintable():
        raise ConfigError("is empty or unprintable", expected="text")
    return value


def path(value: str) -> str:
    """Read the path of a file or directory, which need not exist."""
    if not value or "\0" in value:
        raise ConfigError("is not a path", expected="the path of a file")
    return value


def _whole_number(value: str, least: int, what: str) -> int:
    is_number = value.isascii() and value.isdecimal() and len(value) <= 10
    if not is_number or not least <= int(value) <= _MAX_NUMBER:
        raise ConfigError(
            f"is not a whole number{what}", expected=f"a number from {least} to {_MAX_NUMBER}"
        )
    return int(value)


def milliseconds(value: str) -> float:
    """Read a duration in whole milliseconds; return seconds."""
    return _whole_number(value, 1, " of milliseconds") / 1000


def milliseconds_or_zero(value: str) -> float:
    """Read a duration in whole milliseconds, of which zero has a meaning; return seconds."""
    return _whole_number(value, 0, " of milliseconds") / 1000


def count(value: str) -> int:
    """Read a number of things or bytes, one at least."""
    return _whole_number(value, 1, "")


def count_or_zero(value: str) -> int:
    """Read a number of things or bytes; zero has a meaning of its own."""
    return _whole_number(value, 0, "")


def yes_no(value: str) -> bool:
    """Read yes or no, in any of the usual spellings."""
    if value.lower() in ("yes", "true", "on", "1"):
        return True
    if value.lower() in ("no", "false", "off", "0"):
        return False
    raise ConfigError("is neither yes nor no", expected="yes or no")


def one_of(*words: str) -> Callable[[str], str]:
    """Return a reader of one of the words."""

    def parse(value: str) -> str:
        if value not in words:
            raise ConfigError("is not known", expected=" or ".join(words))
        return value

    return parse


def listening(value: str) -> str:
    """Read a port number or endpoint string (:mod:`sockgw.endpoints`)."""
    try:
        endpoints.validate(value)
    except ValueError as error:
        raise ConfigError(f"cannot be used: {error}", expected=endpoints.EXPECTED) from None
    return value


def url(
    *schemes: str, with_path: bool = False, with_password: bool = False
) -> Callable[[str], str]:
    """Return a reader of URLs, SCHEME://HOST[:PORT]; a lone slash behind it is dropped.

    ``with_path`` allows a path, ``with_password`` USER:PASSWORD@ before the host.
    """
    form = "://" + "[USER:PASSWORD@]" * with_password + "HOST[:PORT]" + "[/PATH]" * with_path
    expected = " or ".join(scheme + form for scheme in schemes)

    def parse(value: str) -> str:
        problem = ConfigError("is not a URL of the right form", expected=expected)
        if not value.isascii() or not value.isprintable() or " " in value:
            raise problem  # before urlsplit, which drops tabs and line ends
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise problem from None
        if parts.scheme not in schemes or port == 0:
            raise problem
        if not re.fullmatch(r"[a-z0-9._:-]+", parts.hostname or ""):
            raise problem
        if "?" in value or "#" in value or ("@" in parts.netloc and not with_password):
            raise problem
        if parts.path not in ("", "/") and not with_path:
            raise problem
        return value.removesuffix("/") if parts.path == "/" else value

    return parse


def pair(parse: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Return a reader of NAME=VALUE, whose value ``parse`` reads."""

    def parse_pair(value: str) -> tuple[str, Any]:
        name, equals, rest = value.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", name):
            raise ConfigError(
                "does not start with NAME=", expected="NAME of letters, digits, '.', '_' and '-'"
            )
        return name, parse(rest)

    return parse_pair
