"""The targets file: which public host names lead to which private services."""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sockgw.files import Watched
from sockgw.outer.policy import Policy, parse_policy, shown
from sockgw.yamlfile import MAX_SIZE, ConfigError, YamlNode, load_yaml

__all__ = ["Target", "Targets", "TargetsFile", "parse_targets"]

_log = Logger()

_DEFAULT_PORTS = {"https": 443, "http": 80}
_KEYS = (
    "protocol",
    "hostname",
    "port",
    "service",
    "policy",
    "identifier",
    "preserve-host",
    "hold",
)

# RFC 9110, section 4.2.3: host, optional dot of the root, optional port. 255 is DNS's own bound
# (RFC 1035, section 2.3.4); it also bounds the labels to look at.
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{0,255}?)\.?(?::[0-9]*)?")
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_TEXT = re.compile(r"[!-~]{1,255}")

_MAX_HOLD = 2_147_483_647  # milliseconds, as for every setting

_MAX_LOGGED = 10  # names in one log line


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests for one public host name go, and which of them may."""

    name: str
    """The public host name, as in the file; may be ``*.example.org`` or ``*``."""
    protocol: str
    """``https`` or ``http``. For a service ``http``: the inner layer alone knows better."""
    hostname: str
    """The origin's host in lower case, IPv6 without brackets; empty for a service."""
    port: int
    """The origin's port; 0 for a service."""
    service: str | None
    """The name under which the inner layer's own configuration has the origin."""
    policy: Policy
    identifiers: frozenset[str] | None
    """The inner layers that may serve it; None for any."""
    preserve_host: bool
    """Whether the origin is to see the public host name in ``Host``."""
    hold: float | None
    """Seconds for which a request waits for an inner layer; None for what holds for all targets."""


class Targets:
    """All targets of a file, found by host in a time that does not depend on how many there are."""

    __slots__ = ("_all", "_catch_all", "_exact", "_wildcards")

    def __init__(self, targets: dict[str, Target] | None = None) -> None:
        """``targets`` has normal patterns (of :func:`_pattern`) as keys."""
        by_pattern = targets or {}
        self._all = tuple(by_pattern.values())
        self._catch_all = by_pattern.get("*")
        self._wildcards = {
            pattern[2:]: target for pattern, target in by_pattern.items() if pattern[:2] == "*."
        }
        self._exact = {
            pattern: target for pattern, target in by_pattern.items() if pattern[0] != "*"
        }

    def match(self, host: str) -> Target | None:
        """Return the most specific target for a ``Host``, which may have a port, or None."""
        host = host.lower()
        found = self._exact.get(host)
        if found is not None:
            return found
        normal = _HOST.fullmatch(host)
        if normal is None:
            return None
        host = normal[1]
        if host[:1] == "[":
            try:
                host = f"[{IPv6Address(host[1:-1])}]"
            except AddressValueError:
                return None
        found = self._exact.get(host)
        if found is not None:
            return found
        if self._wildcards:
            dot = host.find(".")
            while dot > 0:
                found = self._wildcards.get(host[dot + 1 :])
                if found is not None:
                    return found
                dot = host.find(".", dot + 1)
        return self._catch_all

    def __iter__(self) -> Iterator[Target]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


class TargetsFile:
    """The targets file on disk: in force whole or not at all.

    A file that turns bad is logged, and the targets read before stay in force.
    """

    def __init__(
        self, path: str, clock: IReactorTime, on_change: Callable[[Targets], object]
    ) -> None:
        """Read the file; raises ConfigError. ``on_change`` gets the new targets at each change."""
        self.path = path
        self._on_change = on_change
        self._watched = Watched(clock, [path], self._reload)
        #: The targets in force.
        self.current = _read(path)

    def start(self) -> None:
        """Re-read the file whenever it changes."""
        self._watched.start()

    def stop(self) -> None:
        """Watch no longer; leaves no timer behind."""
        self._watched.stop()

    def check(self) -> None:
        """Read the file now (SIGHUP), and log what it holds even if nothing has changed."""
        if not self._watched.check():
            self._reload()

    def _reload(self) -> None:
        try:
            new = _read(self.path)
        except ConfigError as error:
            _log.error("targets stay as they were: {problem}", problem=str(error))
            return
        old, self.current = self.current, new
        before = {target.name: target for target in old}
        after = {target.name: target for target in new}
        added = [name for name in after if name not in before]
        removed = [name for name in before if name not in after]
        changed = [name for name in after if name in before and after[name] != before[name]]
        _log.info(
            "{count} targets in {path}; added: {added}; removed: {removed}; changed: {changed}",
            count=len(new),
            path=self.path,
            added=_some(added),
            removed=_some(removed),
            changed=_some(changed),
        )
        if added or removed or changed:
            self._on_change(new)


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_LOGGED
    text = ", ".join(names[:_MAX_LOGGED]) or "none"
    return f"{text} and {more} more" if more > 0 else text


def _read(path: str) -> Targets:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=path) from None
    except UnicodeDecodeError:
        raise ConfigError("the file is not in UTF-8", source=path) from None
    return parse_targets(text, path)


def parse_targets(text: str, source: str) -> Targets:
    """Return the targets in the text of a file (YAML, or JSON, which is YAML).

    ``source`` names the file in errors. Raises ConfigError with line and column.
    """
    root = load_yaml(text, source)
    if not isinstance(root.value, dict):
        raise root.error("the file holds no mapping", "targets: and the targets below it")
    _check_keys(root, ("targets",))
    if "targets" not in root.value:
        raise root.error("targets is missing")
    entries: YamlNode = root.value["targets"]
    if not isinstance(entries.value, dict):
        raise entries.error("this is no mapping", "host names, each with its target")
    targets: dict[str, Target] = {}
    for name, node in entries.value.items():
        pattern = _pattern(name, node)
        if pattern in targets:
            raise node.error(
                f"the host {name!r} stands twice, first as {targets[pattern].name!r}", at_key=True
            )
        targets[pattern] = _target(name, node)
    return Targets(targets)


def _target(name: str, node: YamlNode) -> Target:
    if not isinstance(node.value, dict):
        raise node.error("this is no target", "a mapping with at least hostname or service")
    _check_keys(node, _KEYS)
    settings: dict[str, YamlNode] = node.value
    protocol, hostname, port, service = "http", "", 0, None
    if "service" in settings:
        for key in ("protocol", "hostname", "port"):
            if key in settings:
                raise settings[key].error(
                    f"{key} is not possible beside service",
                    "the inner layer's own configuration to say where that is",
                    at_key=True,
                )
        service = _text(settings["service"])
    elif "hostname" in settings:
        protocol = _protocol(settings.get("protocol"))
        hostname = _hostname(settings["hostname"])
        port = _port(settings.get("port"), protocol)
    else:
        raise node.error("hostname is missing", "hostname or service", at_key=True)
    return Target(
        name=name,
        protocol=protocol,
        hostname=hostname,
        port=port,
        service=service,
        policy=parse_policy(settings.get("policy")),
        identifiers=_identifiers(settings.get("identifier")),
        preserve_host=_flag(settings.get("preserve-host")),
        hold=_hold(settings.get("hold")),
    )


def _check_keys(node: YamlNode, known: tuple[str, ...]) -> None:
    for key, value in node.value.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"{close[0]} (did you mean that?)" if close else f"one of {', '.join(known)}"
            raise value.error(f"{key!r} is unknown", hint, at_key=True)


def _pattern(name: str, node: YamlNode) -> str:
    """Return a public host name in the form in which hosts are compared."""
    host = name.lower()
    if host == "*":
        return host
    if host.startswith("["):
        try:
            return f"[{IPv6Address(host[1:-1] if host.endswith(']') else host)}]"
        except AddressValueError:
            pass
    host = host.removesuffix(".")
    if not _NAME.fullmatch(host.removeprefix("*.")) or len(host) > 255:
        raise node.error(
            f"{name!r} is no host name",
            "a name in ASCII or an address, without a port; IPv6 in brackets; *.example.org or *",
            at_key=True,
        )
    return host


def _protocol(node: YamlNode | None) -> str:
    if node is None:
        return "https"
    if node.value not in ("https", "http"):
        raise node.error(f"{shown(node)} is no protocol", "https or http")
    protocol: str = node.value
    return protocol


def _hostname(node: YamlNode) -> str:
    host = node.value.lower() if isinstance(node.value, str) else ""
    if ":" in host:
        try:
            return str(IPv6Address(host.removeprefix("[").removesuffix("]")))
        except AddressValueError:
            pass
    elif _NAME.fullmatch(host.removesuffix(".")):
        return host
    raise node.error(
        f"{shown(node)} is no host name", "a name in ASCII or an address, without protocol or port"
    )


def _port(node: YamlNode | None, protocol: str) -> int:
    if node is None:
        return _DEFAULT_PORTS[protocol]
    port = node.value
    if type(port) is not int or not 1 <= port <= 65535:
        raise node.error(f"{shown(node)} is not a port number", "a whole number from 1 to 65535")
    return port


def _text(node: YamlNode) -> str:
    if not isinstance(node.value, str) or not _TEXT.fullmatch(node.value):
        raise node.error(f"{shown(node)} is no name", "printable ASCII without spaces")
    return node.value


def _identifiers(node: YamlNode | None) -> frozenset[str] | None:
    if node is None:
        return None
    items = node.value if isinstance(node.value, list) else [node]
    if not items:
        raise node.error("no identifier is given", "an identifier or a list of them")
    return frozenset(_text(item) for item in items)


def _flag(node: YamlNode | None) -> bool:
    if node is None:
        return False
    if not isinstance(node.value, bool):
        raise node.error(f"{shown(node)} is neither true nor false")
    return node.value


def _hold(node: YamlNode | None) -> float | None:
    if node is None:
        return None
    value = node.value
    if type(value) is not int or not 0 <= value <= _MAX_HOLD:
        raise node.error(
            f"{shown(node)} is not a whole number of milliseconds",
            f"a number from 0 to {_MAX_HOLD}",
        )
    return value / 1000
