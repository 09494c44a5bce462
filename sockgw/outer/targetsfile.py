"""The targets file: reading it, and keeping what it says in force."""

import difflib
import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import AddressValueError, IPv6Address
from posixpath import normpath

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sockgw.endpoints import udp_address, validate
from sockgw.files import Watched
from sockgw.http.networks import Networks
from sockgw.outer.pathrouting import Paths, segments
from sockgw.outer.paths import PathRefused, resolve
from sockgw.outer.policy import parse_policy, shown
from sockgw.outer.targets import HTTP, Target, Targets
from sockgw.yamlfile import MAX_SIZE, ConfigError, YamlNode, load_yaml

__all__ = ["TargetsFile", "parse_targets"]

_log = Logger()

_DEFAULT_PORTS = {"https": 443, "http": 80, "tls": 443}
_PROTOCOLS = ("https", "http", "tcp", "tls", "udp")
_OVER_SOCKETS = ("http", "tcp", "tls")

# Keys of every target, and of those whose requests, or whose bytes alone, the gateway sees.
_COMMON = ("protocol", "hostname", "port", "service", "socket", "identifier", "hold")
_OF_REQUESTS = ("policy", "preserve-host", "http2", "paths")
_OF_BYTES = {
    "tcp": ("listen", "clients", "proxy-protocol"),
    "tls": ("clients", "proxy-protocol"),
    "udp": ("listen", "clients"),
}
_KEYS = (*_COMMON, *_OF_REQUESTS, *_OF_BYTES["tcp"])
_BELOW_PATHS = (*_COMMON, *_OF_REQUESTS[:-1], "strip-prefix", "add-prefix")
_WHERE = ("hostname", "service", "socket")  # one of them is there: each says where the origin is

_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_TEXT = re.compile(r"[!-~]{1,255}")

_MAX_HOLD = 2_147_483_647  # milliseconds, as for every setting
_MAX_SOCKET = 107  # bytes of a Unix socket's path: sun_path of Linux, without its end
_MAX_PREFIX = 255  # bytes, as for a host name: it is part of a name in logs and metrics

_MAX_LOGGED = 10  # names in one log line


class TargetsFile:
    """The targets file on disk: in force whole or not at all.

    A file that turns bad is logged, and the targets read before stay in force.
    """

    def __init__(
        self, path: str, clock: IReactorTime, on_change: Callable[[Targets], object]
    ) -> None:
        """Read the file; raises ConfigError.

        ``on_change`` gets the new targets at each change; where it raises ConfigError the old ones
        stay in force.
        """
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
        before = {target.name: target for target in self.current}
        after = {target.name: target for target in new}
        added = [name for name in after if name not in before]
        removed = [name for name in before if name not in after]
        changed = [name for name in after if name in before and after[name] != before[name]]
        if added or removed or changed:
            try:
                self._on_change(new)
            except ConfigError as error:
                _log.error("targets stay as they were: {problem}", problem=str(error))
                return
        self.current = new
        _log.info(
            "{count} targets in {path}; added: {added}; removed: {removed}; changed: {changed}",
            count=len(new),
            path=self.path,
            added=_some(added),
            removed=_some(removed),
            changed=_some(changed),
        )


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
    targets: dict[str, Target | Paths] = {}
    ports: list[Target] = []
    listeners: dict[tuple[str, str], Target] = {}
    for name, node in entries.value.items():
        if not isinstance(node.value, dict):
            raise node.error("this is no target", "a mapping with at least hostname or service")
        _check_keys(node, _KEYS)
        _check_fit(node.value)
        target = _paths(name, node) if "paths" in node.value else _target(name, node)
        if isinstance(target, Target) and target.listen:
            _label(name, node)
            other = listeners.setdefault(_listener(target), target)
            if other is not target:
                raise node.value["listen"].error(
                    f"{target.listen} is taken by target {other.name!r}", "another port"
                )
            ports.append(target)
            continue
        pattern = _pattern(name, node)
        if pattern in targets:
            raise node.error(
                f"the host {name!r} stands twice, first as {targets[pattern].name!r}", at_key=True
            )
        targets[pattern] = target
    return Targets(targets, ports)


def _paths(name: str, node: YamlNode) -> Paths:
    """Return the targets of a host with path routing, its own among them if it has one."""
    settings: dict[str, YamlNode] = node.value
    paths = settings["paths"]
    rest = None
    if any(key in settings for key in _WHERE):
        rest = _target(name, node)
    elif others := [each for key, each in settings.items() if key != "paths"]:
        raise others[0].error(
            "this is for the host's own target, and there is none",
            f"{', '.join(_WHERE[:-1])} or {_WHERE[-1]} beside it; or this below each path",
            at_key=True,
        )
    if not isinstance(paths.value, dict) or not paths.value:
        raise paths.error("these are no paths", "paths such as /api, each with its target")
    seen: dict[tuple[str, ...], str] = {}
    targets = []
    for path, each in paths.value.items():
        prefix = _prefix(path, each, at_key=True)
        key = segments(prefix)
        if key in seen:
            raise each.error(f"{path!r} stands twice, first as {seen[key]!r}", at_key=True)
        seen[key] = path
        if not prefix and rest is not None:
            raise each.error(
                "/ stands for what no other path does, and so does the host's own target",
                "one of the two",
                at_key=True,
            )
        targets.append(_path_target(name, prefix, each))
    return Paths(name, rest, targets)


def _path_target(name: str, prefix: str, node: YamlNode) -> Target:
    if not isinstance(node.value, dict):
        raise node.error("this is no target", "a mapping with at least hostname or service")
    _check_keys(node, _BELOW_PATHS)
    protocol = _protocol(node.value)
    if protocol not in HTTP:
        raise node.value["protocol"].error(
            f"protocol {protocol} is not possible for a path", "https or http"
        )
    prefix = prefix or "/"
    return replace(
        _target(name + prefix, node),
        prefix=prefix,
        strip_prefix=_strip_prefix(node.value.get("strip-prefix"), prefix),
        add_prefix=_add_prefix(node.value.get("add-prefix")),
    )


def _prefix(text: str, node: YamlNode, *, at_key: bool = False) -> str:
    """Return a path prefix without its final slash."""
    expected = "an absolute path in normal form, such as /api"
    try:
        normal = resolve(text.encode()).path
    except PathRefused as error:
        raise node.error(f"{text!r} is no path: {error}", expected, at_key=at_key) from None
    if not text.startswith("/"):
        raise node.error(f"{text!r} is no path", expected, at_key=at_key)
    if any(";" in segment for segment in segments(text)):
        raise node.error(f"{text!r} has parameters (;)", "a path without", at_key=at_key)
    if normal != text:
        raise node.error(f"{text!r} is not in normal form", repr(normal), at_key=at_key)
    if len(text) > _MAX_PREFIX:
        raise node.error("the path is too long", f"at most {_MAX_PREFIX} bytes", at_key=at_key)
    return text.removesuffix("/")


def _strip_prefix(node: YamlNode | None, prefix: str) -> str:
    if node is None or node.value is False:
        return ""
    if node.value is True:
        return prefix.removesuffix("/")
    if not isinstance(node.value, str):
        raise node.error(f"{shown(node)} is no path", "true, false, or the path to take away")
    stripped = _prefix(node.value, node)
    wanted = segments(stripped)
    if segments(prefix)[: len(wanted)] != wanted:
        raise node.error(
            f"{prefix!r} does not begin with {node.value!r}", "true, or its first segments"
        )
    return stripped


def _add_prefix(node: YamlNode | None) -> str:
    if node is None:
        return ""
    if not isinstance(node.value, str):
        raise node.error(f"{shown(node)} is no path", "the path to put in front, such as /app")
    return _prefix(node.value, node)


def _target(name: str, node: YamlNode) -> Target:
    settings: dict[str, YamlNode] = node.value
    protocol = _protocol(settings)
    hostname, port, service, socket = "", 0, None, ""
    if "service" in settings:
        for key in ("hostname", "port", "socket"):
            if key in settings:
                raise settings[key].error(
                    f"{key} is not possible beside service",
                    "the inner layer's own configuration to say where that is",
                    at_key=True,
                )
        service = _text(settings["service"])
    elif "socket" in settings:
        socket = _socket(settings["socket"])
        hostname = _hostname(settings["hostname"]) if "hostname" in settings else "localhost"
        port = _port(settings.get("port"), _DEFAULT_PORTS["http"])
    elif "hostname" in settings:
        hostname = _hostname(settings["hostname"])
        default = _DEFAULT_PORTS.get(protocol, 0)
        if not default and "port" not in settings:
            raise node.error("port is missing", "the origin's port", at_key=True)
        port = _port(settings.get("port"), default)
    else:
        raise node.error("hostname is missing", "hostname, service or socket", at_key=True)
    return Target(
        name=name,
        protocol=protocol,
        hostname=hostname,
        port=port,
        socket=socket,
        http2=_flag(settings.get("http2")),
        service=service,
        policy=parse_policy(settings.get("policy")),
        identifiers=_identifiers(settings.get("identifier")),
        preserve_host=_flag(settings.get("preserve-host")),
        hold=_hold(settings.get("hold")),
        listen=_listen(settings.get("listen"), protocol, node),
        clients=_clients(settings.get("clients")),
        proxy_protocol=_proxy_protocol(settings.get("proxy-protocol")),
    )


def _check_fit(settings: dict[str, YamlNode]) -> None:
    """Refuse keys that mean nothing with the protocol that is given."""
    protocol = _protocol(settings)
    possible = (*_COMMON, *_OF_BYTES.get(protocol, _OF_REQUESTS))
    for key, node in settings.items():
        if key not in possible:
            raise node.error(
                f"{key} is not possible with protocol {protocol}",
                f"one of {', '.join(possible)}",
                at_key=True,
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


def _protocol(settings: dict[str, YamlNode]) -> str:
    node = settings.get("protocol")
    over_socket = "socket" in settings
    if node is None:
        return "http" if over_socket or "service" in settings else "https"
    if node.value not in _PROTOCOLS:
        raise node.error(f"{shown(node)} is no protocol", f"one of {', '.join(_PROTOCOLS)}")
    protocol: str = node.value
    if "service" in settings and protocol in HTTP:
        raise node.error(
            f"protocol {protocol} is not possible beside service",
            "the inner layer's own configuration to say which of the two it is",
            at_key=True,
        )
    if over_socket and protocol not in _OVER_SOCKETS:
        raise node.error(
            f"protocol {protocol} is not possible over a Unix socket",
            f"one of {', '.join(_OVER_SOCKETS)}",
        )
    return protocol


def _label(name: str, node: YamlNode) -> None:
    if not _NAME.fullmatch(name.lower()) or len(name) > 255:
        raise node.error(f"{name!r} is no name", "letters, digits, dots and hyphens", at_key=True)


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


def _port(node: YamlNode | None, default: int) -> int:
    if node is None:
        return default
    port = node.value
    if type(port) is not int or not 1 <= port <= 65535:
        raise node.error(f"{shown(node)} is not a port number", "a whole number from 1 to 65535")
    return port


def _socket(node: YamlNode) -> str:
    path = node.value
    if (
        not isinstance(path, str)
        or not path.startswith("/")
        or not path.isprintable()
        or len(path.encode()) > _MAX_SOCKET
        or path.startswith("//")  # which normpath leaves
        or path != normpath(path)
    ):
        raise node.error(
            f"{shown(node)} is no path of a socket",
            f"an absolute path of at most {_MAX_SOCKET} bytes, without . and ..",
        )
    return path


def _listen(node: YamlNode | None, protocol: str, target: YamlNode) -> str:
    if node is None:
        if "listen" in _OF_BYTES.get(protocol, ()):
            raise target.error("listen is missing", f"such as listen: {protocol}:2222", at_key=True)
        return ""
    listen = str(node.value)
    try:
        udp_address(listen) if protocol == "udp" else validate(listen)
    except ValueError as error:
        raise node.error(f"{shown(node)} cannot be listened on: {error}") from None
    return listen


def _listener(target: Target) -> tuple[str, str]:
    """Return what two targets cannot have both; what else collides is seen when it is opened."""
    return target.protocol, target.listen.removeprefix("tcp:")


def _clients(node: YamlNode | None) -> Networks | None:
    if node is None:
        return None
    items = node.value if isinstance(node.value, list) else [node]
    try:
        networks = Networks.parse(str(item.value) for item in items)
    except ValueError as error:
        raise node.error(str(error)) from None
    if not networks:
        raise node.error("no network is given", "addresses or networks of clients")
    return networks


def _proxy_protocol(node: YamlNode | None) -> int:
    if node is None:
        return 0
    version = node.value
    if type(version) is not int or version not in (1, 2):
        raise node.error(f"{shown(node)} is no version of the PROXY protocol", "1 or 2")
    return version


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
