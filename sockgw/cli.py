"""The ``sockgw`` command. What a subcommand needs is imported when it runs."""

# Twisted leaves usage.Options without types:
# mypy: allow-untyped-calls

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.python import usage

from sockgw.build import VERSION

if TYPE_CHECKING:
    from sockgw.options import RoleOptions

__all__ = ["main"]

_KEY_TYPES = ("ed25519", "rsa", "ec")


class _Command(usage.Options):
    """A subcommand; ``run`` does it and returns the exit status."""

    def opt_version(self) -> None:
        """Show the version and exit."""
        print(VERSION)
        raise SystemExit(0)

    def opt_help(self) -> None:
        """Show this help and exit."""
        print(self)
        raise SystemExit(0)

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def getSynopsis(self) -> str:
        command = "" if self.parent is None else f"{self.parent.subCommand} "
        return f"Usage: sockgw {command}{getattr(self, 'synopsis', '[options]')}\n"

    def run(self) -> int:
        raise NotImplementedError


class _Layer(_Command):
    """Hands its arguments to twistd unread."""

    name: str  # of the subcommand
    plugin: str  # of twistd

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        self["arguments"] = list(options or ())

    def role_options(self) -> "RoleOptions":
        raise NotImplementedError

    def run(self) -> int:
        # Once by itself, so that help and errors are about this command and not about twistd.
        options = self.role_options()
        options.synopsis = f"Usage: sockgw {self.name} [options]"
        options.parseOptions(self["arguments"])

        from twisted.scripts.twistd import (  # type: ignore[attr-defined]
            ServerOptions,
            runApp,
        )

        config = ServerOptions()
        config.parseOptions(["-n", "--pidfile=", self.plugin, *self["arguments"]])
        runApp(config)
        return 0


class _OuterLayer(_Layer):
    name = "outer-layer"
    plugin = "sockgw-outer"

    def role_options(self) -> "RoleOptions":
        from sockgw.outer.config import OuterOptions

        return OuterOptions()


class _InnerLayer(_Layer):
    name = "inner-layer"
    plugin = "sockgw-inner"

    def role_options(self) -> "RoleOptions":
        from sockgw.inner.config import InnerOptions

        return InnerOptions()


def _days(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 5 and int(value)):
        raise ValueError(f"--validity: {value!r} is not a number of days; expected 1 or more")
    return int(value)


def _key_type(value: str) -> str:
    if value not in _KEY_TYPES:
        raise ValueError(f"--type: {value!r} is not known; expected {', '.join(_KEY_TYPES)}")
    return value


class _Certificates(_Command):
    longdesc = (
        "Writes a private key, which only its owner can read, and a self-signed certificate for "
        "an inner layer. Existing files are left alone. The private key stays with the inner "
        "layer; the outer layer gets the certificate."
    )
    optParameters = [
        ["common-name", None, "innerLayer", "The inner layer's identifier."],
        ["validity", None, 365, "Days for which the certificate is valid.", _days],
        ["private-key", None, "innerLayer.key", "Where to write the private key."],
        ["certificate", None, "innerLayer.crt", "Where to write the certificate."],
        ["type", None, "ed25519", f"Type of the key: {', '.join(_KEY_TYPES)}.", _key_type],
    ]

    def run(self) -> int:
        from sockgw import keys

        try:
            fingerprint = keys.generate(
                self["private-key"],
                self["certificate"],
                common_name=self["common-name"],
                validity_days=self["validity"],
                key_type=self["type"],
            )
        except FileExistsError as error:
            return _failed(f"{error.filename} exists already, and is not overwritten")
        except OSError as error:
            return _failed(f"cannot write {error.filename}: {error.strerror}")
        except ValueError as error:
            return _failed(str(error))
        print(f"{self['private-key']}: private key ({self['type']}), for the inner layer only")
        print(f"{self['certificate']}: certificate of {self['common-name']}, for the outer layer")
        print(fingerprint)
        return 0


class _Check(_Command):
    synopsis = "[options] FILE..."
    longdesc = (
        "Checks configuration and targets files, with the files that they name, without starting "
        "anything. Prints a line for each, and exits with 1 if something is wrong."
    )
    optParameters = [
        ["role", None, None, "What the files are: outer, inner or targets. Else the content says."]
    ]

    def parseArgs(self, *arguments: str) -> None:
        if not arguments:
            raise usage.UsageError("name a file to check")
        self["files"] = arguments

    def postOptions(self) -> None:
        if self["role"] not in (None, "outer", "inner", "targets"):
            raise usage.UsageError(
                f"--role: {self['role']!r} is not known; expected outer, inner or targets"
            )

    def run(self) -> int:
        from sockgw.check import check_file
        from sockgw.yamlfile import ConfigError

        status = 0
        for file in self["files"]:
            try:
                print(f"{file}: fine ({check_file(file, self['role'])})")
            except ConfigError as error:
                print(error)
                status = 1
        return status


def _port(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 5 and int(value) < 65536):
        raise ValueError(f"{value!r} is not a port number; expected 0 to 65535")
    return int(value)


class _Demo(_Command):
    longdesc = (
        "Starts an origin, an outer layer and an inner layer on this machine, and sends requests "
        "through them. Stays up until Ctrl-C. A port that is not given becomes another if it is "
        "taken; 0 is any free one."
    )
    optFlags = [["once", None, "Check the answers and exit, with 0 if all are right, else 1."]]
    optParameters = [
        ["app-port", None, None, "Where clients connect: usually 3000.", _port],
        ["socket-port", None, None, "Where the inner layer connects: usually 3001.", _port],
        ["origin-port", None, None, "Where the origin listens: usually 8000.", _port],
    ]

    def run(self) -> int:
        from sockgw.demo.run import main

        return int(main(self))


class _Version(_Command):
    def run(self) -> int:
        print(VERSION)
        return 0


class _Sockgw(_Command):
    synopsis = "COMMAND [options]"
    longdesc = "'sockgw COMMAND --help' tells more."
    subCommands = [
        ["outer-layer", None, _OuterLayer, "Run the outer layer in the foreground."],
        ["inner-layer", None, _InnerLayer, "Run the inner layer in the foreground."],
        ["certificates", None, _Certificates, "Write a new key pair for an inner layer."],
        ["check", None, _Check, "Check configuration and targets files."],
        ["demo", None, _Demo, "Show the whole on this machine."],
        ["version", None, _Version, "Show the version."],
    ]


def _failed(problem: str) -> int:
    print(f"sockgw: {problem}", file=sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (the process's by default); return the exit status.

    0: done; 1: it failed; 2: it was called wrongly. Help and version raise SystemExit.
    """
    command = _Sockgw()
    try:
        command.parseOptions(sys.argv[1:] if argv is None else list(argv))
        if command.subCommand is None:
            print(command)
            return 2
        return int(command.subOptions.run())
    except usage.UsageError as error:
        name = f" {command.subCommand}" if command.subCommand else ""
        problem = str(error).removeprefix("Parameter type enforcement failed: ")
        print(f"sockgw{name}: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output, such as head, has seen enough. The interpreter flushes once more
        # when it exits, and must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
