"""The inner layer as a service: puts its parts together and keeps its tunnel."""

from __future__ import annotations

import random
from typing import Any, cast
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.logger import Logger

from sockgw.build import BUILD
from sockgw.config import ConfigError
from sockgw.daemon import Daemon
from sockgw.deadlines import Deadlines
from sockgw.http.client import Origin, OriginPool
from sockgw.http.h2connections import H2Limits
from sockgw.inner.allow import AllowList, socket_path
from sockgw.inner.config import InnerConfig
from sockgw.inner.connector import Connector
from sockgw.inner.dial import Dialler
from sockgw.inner.forwarder import Forwarder, RawOrigins
from sockgw.inner.outerlayer import OuterLayer
from sockgw.inner.rawtcp import RawTCP
from sockgw.inner.rawudp import RawUDP
from sockgw.keys import UnusableKey, load_private_key
from sockgw.options import RoleOptions
from sockgw.tunnel.masking import FAST

__all__ = ["InnerService", "make_service"]

_DEFAULT_PORTS = {"http": 80, "https": 443}
_OVER_SOCKETS = {"unix": "http", "unix+tcp": "tcp"}


def make_service(options: RoleOptions) -> InnerService:
    """Return the service for these options; what is wrong ends the process with one sentence."""
    from twisted.internet import reactor

    try:
        return InnerService(cast(InnerConfig, options.config), reactor, options.parent)
    except (ConfigError, OSError) as error:
        raise SystemExit(f"sockgw-inner: {error}") from None


class InnerService(Daemon):
    """The inner layer."""

    _log = Logger()

    def __init__(self, config: InnerConfig, reactor: Any, twistd: Any = None) -> None:
        """Raises ConfigError where a file that the configuration names is wrong."""
        super().__init__("sockgw-inner", reactor, twistd, config.log_format)
        try:
            key = load_private_key(config.private_key)
        except UnusableKey as error:
            raise ConfigError(str(error), option="private-key", value=config.private_key) from error
        services = {name: _origin(url) for name, url in config.service.items()}
        self._key = key
        self._drain_timeout = config.drain_timeout
        self._deadlines = Deadlines(reactor)
        try:
            self._allow = _allow_list(config, services)
            dialler = Dialler(reactor, self._allow, config.target_ca, config.connect_timeout)
            outer_layer = OuterLayer.parse(
                config.outer_layer,
                ca_file=config.outer_layer_ca or None,
                certificate=config.certificate or None,
                private_key_path=config.private_key,
                insecure=config.insecure,
                proxy=config.proxy or None,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._pool = OriginPool(
            reactor,
            dialler.endpoint,
            self._deadlines,
            max_header_size=config.max_header_size,
            max_header_count=config.max_header_count,
            idle_timeout=config.idle_timeout,
            keep_alive=config.origin_keep_alive,
            max_idle=config.max_idle_connections,
            http2=H2Limits(
                max_streams=config.max_origin_streams,
                max_connections=config.max_origin_connections,
                max_waiting=config.max_origin_waiting,
                wait=config.connect_timeout,
            ),
        )
        self._raw_tcp = RawTCP(reactor, dialler.endpoint, self._deadlines, config.idle_timeout)
        self._raw_udp = RawUDP(
            reactor,
            self._allow,
            self._deadlines,
            connect_timeout=config.connect_timeout,
            idle_timeout=config.udp_idle_timeout,
            queue=config.udp_queue,
        )
        raw: dict[str, RawOrigins] = {"tcp": self._raw_tcp, "udp": self._raw_udp}
        forwarder = Forwarder(self._pool, self._allow, services, raw)
        # Jitter needs no secret randomness.
        jitter = random.random
        self.connector = Connector(config, reactor, outer_layer, key, forwarder, jitter)
        self.connector.setServiceParent(self)

    def startService(self) -> None:
        if not FAST:
            self._log.warn("Autobahn's native code is missing: WebSocket masking will be slow")
        if self._key.exposed:
            self._log.warn("the private key can be read by others on this machine")
        if not self._allow.listed:
            self._log.warn(
                "no allow list: the outer layer may reach everything that this machine can"
                " (--allow HOST[:PORT] limits it)"
            )
        self._log.info(
            "inner layer started ({build}): key={key}", build=BUILD, key=str(self._key.public_key)
        )
        super().startService()

    def drain(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._drain())

    async def _drain(self) -> None:
        connector, timeout = self.connector, self._drain_timeout
        self._log.info(
            "draining: {count} requests under way, at most {timeout:g} s",
            count=connector.streams,
            timeout=timeout,
        )
        self._raw_udp.drain()
        try:
            await connector.drain().addTimeout(timeout, self.reactor)
        except TimedOut:
            self._log.warn(
                "drain-timeout is over: {count} requests cut off", count=connector.streams
            )
        else:
            self._log.info("drained")

    def stopService(self) -> Any:
        stopped = super().stopService()
        self._pool.close()
        self._raw_tcp.close()
        self._raw_udp.close()
        self._deadlines.stop()
        return stopped


def _origin(url: str) -> Origin:
    kind, _, path = url.partition(":")
    if kind in _OVER_SOCKETS:
        return Origin(_OVER_SOCKETS[kind], "localhost", 80, socket_path(path))
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    return Origin(parts.scheme, parts.hostname or "", port)


def _allow_list(config: InnerConfig, services: dict[str, Origin]) -> AllowList:
    """A service is named by the inner layer's own operator, and so is allowed."""
    entries = list(config.allow)
    if entries:
        for origin in services.values():
            if origin.socket:
                continue
            host = f"[{origin.hostname}]" if ":" in origin.hostname else origin.hostname
            entries.append(f"{host}:{origin.port}")
    return AllowList.parse(entries, filter(None, (each.socket for each in services.values())))
