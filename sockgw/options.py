"""A role's command line, made from its configuration class."""

# Twisted leaves usage.Options without types:
# mypy: allow-untyped-calls

import difflib
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twisted.python import usage

from sockgw.build import VERSION
from sockgw.config import Config, ConfigError, Setting, load, settings_of, variable

__all__ = ["RoleOptions", "make_options"]

_SOURCES = (
    "Each option may also be given as an environment variable, whose name stands behind it, or in "
    "the --config file (YAML; the same names without dashes). Options win over the environment, "
    "that over the file. Where an option may be repeated, a variable separates the values by white "
    "space and the file has a list."
)


class RoleOptions(usage.Options):
    """Collects the texts of options by name; ``config`` is what they make."""

    longdesc: str
    synopsis: str
    config_class: type[Config]
    config: Config
    _failed = False

    def opt_version(self) -> None:
        """Show the version and exit."""
        print(VERSION)
        raise SystemExit(0)

    def opt_help(self) -> None:
        """Show this help and exit."""
        print(self)
        raise SystemExit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            # twistd prints the usage before the error: pages of help would hide the one line.
            self._failed = True
            unknown = re.match(r"option --(\S+) not recognized", str(error))
            close = unknown and difflib.get_close_matches(unknown[1], self._names(), 1)
            if close:
                raise usage.UsageError(f"{error}; did you mean --{close[0]}?") from None
            raise

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def postOptions(self) -> None:
        try:
            self.config = load(self.config_class, self, os.environ)
        except ConfigError as error:
            raise usage.UsageError(str(error)) from None

    def getUsage(self, width: int | None = None) -> str:
        if self._failed:
            return "--help lists the options."
        width = width or int(os.environ.get("COLUMNS", "80"))
        lines = [*textwrap.wrap(self.longdesc, width), "", *textwrap.wrap(_SOURCES, width), ""]
        for name, described in settings_of(self.config_class).items():
            lines.extend(_help(name, described, width))
        lines += ["  --config FILE", "      The configuration file. [SOCKGW_CONFIG]"]
        lines += ["  --version", "      Show the version and exit."]
        lines += ["  --help", "      Show this help and exit."]
        return "\n".join(lines)

    def _names(self) -> list[str]:
        settings = settings_of(self.config_class)
        return [key for name, item in settings.items() for key in (name, *item.aliases)]


def _help(name: str, described: Setting, width: int) -> Iterator[str]:
    value = "" if described.flag else f" {described.metavar}"
    yield f"  --{name}{value}"
    for alias in described.aliases:
        yield f"  --{alias}{value}"
    notes = [variable(name)]
    if described.repeatable or described.pairs:
        notes.append(
            "may be repeated, or separated by commas" * described.commas or "may be repeated"
        )
    default = described.default
    if default is None:
        notes.append("required")
    elif default and not described.flag:
        notes.append(f"default: {', '.join(default) if isinstance(default, tuple) else default}")
    yield from textwrap.wrap(
        f"{described.help} [{'; '.join(notes)}]",
        width,
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _collector(name: str, *, flag: bool) -> Callable[..., None]:
    def collect(self: RoleOptions, value: str) -> None:
        self.setdefault(name, []).append(value)

    def collect_flag(self: RoleOptions) -> None:
        self[name] = ["yes"]

    return collect_flag if flag else collect


def make_options(config_class: type[Config], longdesc: str) -> type[RoleOptions]:
    """Return the class of a role's command-line options.

    After ``parseOptions`` an instance's ``config`` is the loaded configuration; whatever is wrong,
    also in the environment or the file, is a UsageError of one line.
    """
    namespace: dict[str, Any] = {"config_class": config_class, "longdesc": longdesc}
    namespace["opt_config"] = _collector("config", flag=False)
    for name, described in settings_of(config_class).items():
        for key in (name, *described.aliases):
            namespace["opt_" + key.replace("-", "_")] = _collector(name, flag=described.flag)
    return type(f"{config_class.__name__}Options", (RoleOptions,), namespace)
