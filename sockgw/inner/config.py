"""Every setting of the inner layer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sockgw.config import ConfigError, setting
from sockgw.inner.allow import AllowList, socket_path
from sockgw.inner.proxy import proxy_for
from sockgw.inner.tcp import is_loopback
from sockgw.keys import check_identifier
from sockgw.options import make_options
from sockgw.tunnelconfig import TunnelConfig
from sockgw.values import count, milliseconds, one_of, pair, path, url, yes_no

__all__ = ["InnerConfig", "InnerOptions"]

_proxy_url = url("http", "https", with_password=True)


def _identifier(value: str) -> str:
    try:
        return check_identifier(value)
    except ValueError as error:
        raise ConfigError(f"cannot be used: {error}") from None


def _allowed(value: str) -> str:
    try:
        AllowList.parse([value])
    except ValueError as error:
        raise ConfigError(
            f"cannot be used: {error}",
            expected="HOST[:PORT], *.DOMAIN[:PORT], ADDRESS[:PORT], NETWORK such as 10.0.0.0/8,"
            " or unix:/PATH",
        ) from None
    return value


_SERVICE = "http://HOST[:PORT], https://HOST[:PORT], tcp://HOST:PORT, udp://HOST:PORT or unix:/PATH"
_service_url = url("http", "https", "tcp", "udp")


def _service(value: str) -> str:
    kind, colon, path = value.partition(":")
    if colon and kind in ("unix", "unix+tcp"):
        try:
            socket_path(path)
        except ValueError as error:
            raise ConfigError(f"cannot be used: {error}", expected=f"{kind}:/PATH") from None
        return value
    try:
        value = _service_url(value)
    except ConfigError as error:
        raise ConfigError(error.problem, expected=_SERVICE) from None
    parts = urlsplit(value)
    if parts.port is None and parts.scheme in ("tcp", "udp"):
        raise ConfigError("has no port", expected=f"{parts.scheme}://HOST:PORT")
    return value


def _proxy(value: str) -> str:
    return "" if value == "off" else _proxy_url(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerConfig(TunnelConfig):
    """The inner layer's configuration. Durations are in seconds, sizes in bytes."""

    private_key: str = setting(
        "The private key by which the outer layer knows this inner layer.", path, metavar="FILE"
    )
    certificate: str = setting(
        "The certificate to show where the outer layer's TLS asks for one.",
        path,
        metavar="FILE",
        default="",
    )
    identifier: str = setting(
        "The name to go by, where the outer layer has several for this key.",
        _identifier,
        metavar="NAME",
        default="",
    )
    outer_layer: str = setting(
        "The outer layer's socket port.",
        url("wss", "ws", with_path=True),
        metavar="URL",
    )
    outer_layer_ca: str = setting(
        "Certificates (PEM) to verify the outer layer's with, instead of the system's.",
        path,
        metavar="FILE",
        default="",
    )
    insecure: bool = setting(
        "Allow ws:// to other machines, and do not verify the outer layer's certificate.",
        yes_no,
        default="no",
        flag=True,
    )
    proxy: str = setting(
        "The HTTP proxy through which to reach the outer layer, or off. Without it HTTPS_PROXY "
        "(for ws:// HTTP_PROXY) and NO_PROXY are followed, but never for this machine itself.",
        _proxy,
        metavar="URL|off",
        default="",
        secret=True,
    )

    allow: tuple[str, ...] = setting(
        "What may be reached, whatever the outer layer asks for: host names, *.example.org, "
        "addresses, networks; with a port or for all ports; Unix sockets. Without it everything is "
        "allowed but Unix sockets, and link-local addresses, such as those of cloud metadata.",
        _allowed,
        metavar="HOST[:PORT]|CIDR[:PORT]|unix:PATH",
        default=(),
        repeatable=True,
        commas=True,
    )
    service: dict[str, str] = setting(  # noqa: RUF009
        "A service that targets call by name, and where it is.",
        pair(_service),
        metavar="NAME=URL",
        default=(),
        pairs=True,
        aliases=("services",),
    )
    target_ca: tuple[str, ...] = setting(
        "Certificates (PEM) to verify https targets with, beside the system's.",
        path,
        metavar="FILE",
        default=(),
        repeatable=True,
    )

    connect_timeout: float = setting(
        "Longest time to connect to a target.", milliseconds, metavar="MS", default="10000"
    )
    idle_timeout: float = setting(
        "Longest time without a byte either way within an exchange.",
        milliseconds,
        metavar="MS",
        default="300000",
    )
    udp_idle_timeout: float = setting(
        "How long a UDP client and its target may both be silent before they are forgotten.",
        milliseconds,
        metavar="MS",
        default="60000",
    )
    origin_keep_alive: float = setting(
        "How long an unused connection to a target is kept.",
        milliseconds,
        metavar="MS",
        default="15000",
    )
    max_idle_connections: int = setting(
        "Most unused connections kept for each target; those beyond only for a second.",
        count,
        metavar="NUMBER",
        default="64",
    )
    udp_queue: int = setting(
        "Most datagrams that wait in one direction of a UDP stream; then the oldest is dropped.",
        count,
        metavar="NUMBER",
        default="64",
    )
    max_origin_streams: int = setting(
        "Most exchanges at a time on one HTTP/2 connection to a target that takes as many.",
        count,
        metavar="NUMBER",
        default="256",
    )
    max_origin_connections: int = setting(
        "Most HTTP/2 connections to one target.", count, metavar="NUMBER", default="16"
    )
    max_origin_waiting: int = setting(
        "Most exchanges that wait for room on the HTTP/2 connections to one target.",
        count,
        metavar="NUMBER",
        default="1024",
    )
    max_header_size: int = setting(
        "Largest head of an answer.", count, metavar="BYTES", default="65536"
    )
    max_header_count: int = setting(
        "Most header fields in an answer.", count, metavar="NUMBER", default="200"
    )
    reconnect_delay: float = setting(
        "Pause before the first new attempt to connect; it grows with each that fails.",
        milliseconds,
        metavar="MS",
        default="1250",
    )
    max_reconnect_delay: float = setting(
        "Longest pause between attempts to connect, while nobody answers.",
        milliseconds,
        metavar="MS",
        default="1750",
    )
    refused_delay: float = setting(
        "Pause after the outer layer has refused the key; the longest one where it takes the "
        "connection and then has no place.",
        milliseconds,
        metavar="MS",
        default="120000",
    )
    handshake_timeout: float = setting(
        "Longest time in which the outer layer must have accepted the tunnel.",
        milliseconds,
        metavar="MS",
        default="10000",
    )
    drain_timeout: float = setting(
        "Longest time for exchanges under way to end after SIGTERM.",
        milliseconds,
        metavar="MS",
        default="60000",
    )
    log_format: str = setting(
        "How events are logged.",
        one_of("text", "json"),
        metavar="text|json",
        default="text",
    )

    @classmethod
    def complete(cls, values: dict[str, Any], environ: Mapping[str, str]) -> None:
        if "proxy" not in values:
            values["proxy"] = _proxy_from(environ, values["outer_layer"])

    def __post_init__(self) -> None:
        parts = urlsplit(self.outer_layer)
        if parts.scheme == "ws" and not self.insecure:
            if not is_loopback(parts.hostname or ""):
                raise ConfigError(
                    "would send everything in clear text",
                    option="outer-layer",
                    value=self.outer_layer,
                    expected="wss://, or --insecure where that does not matter",
                )
            if self.proxy:
                raise ConfigError(
                    "would see everything in clear text",
                    option="proxy",
                    expected="an outer layer with wss://, or --insecure",
                )
        if self.max_reconnect_delay < self.reconnect_delay:
            raise ConfigError(
                "is longer than --max-reconnect-delay",
                option="reconnect-delay",
                value=round(self.reconnect_delay * 1000),
                expected=f"at most {round(self.max_reconnect_delay * 1000)}",
            )


def _proxy_from(environ: Mapping[str, str], outer_layer: str) -> str:
    """Return the proxy that the usual variables name for that URL, or an empty string."""
    value = proxy_for(outer_layer, None, environ)
    if value is None:
        return ""
    # Many write HOST:PORT alone.
    if not re.match(r"[a-z0-9+.-]+://", value, re.IGNORECASE):
        value = f"http://{value}"
    try:
        return _proxy_url(value)
    except ConfigError as error:
        raise ConfigError(
            f"the proxy of the environment {error.problem}",
            option="HTTPS_PROXY" if outer_layer.startswith("wss:") else "HTTP_PROXY",
            expected=error.expected,
        ) from None


InnerOptions = make_options(
    InnerConfig,
    "The inner layer of sockgw: dials out to an outer layer, and performs in this network the "
    "requests that come through.",
)
