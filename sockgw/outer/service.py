"""The outer layer as a service: puts its parts together, listens, and stops."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from sockgw.build import BUILD
from sockgw.config import ConfigError
from sockgw.daemon import Daemon
from sockgw.deadlines import Deadlines
from sockgw.edge import Edge
from sockgw.endpoints import describe
from sockgw.http.forwarded import Forwarding
from sockgw.http.front import ClientFactory
from sockgw.http.networks import Networks
from sockgw.http.patience import ServerLimits
from sockgw.keys import fingerprint_text
from sockgw.listeners import close_listener
from sockgw.options import RoleOptions
from sockgw.outer.accesslog import AccessLog
from sockgw.outer.admin import TargetView, TunnelView
from sockgw.outer.admission import Admission
from sockgw.outer.config import OuterConfig
from sockgw.outer.crowd import Crowd
from sockgw.outer.gateway import Gateway
from sockgw.outer.keyring import Keyring
from sockgw.outer.metrics import Metrics
from sockgw.outer.passthrough import Passthrough
from sockgw.outer.ports import TargetPorts
from sockgw.outer.rawclient import RawFactory
from sockgw.outer.registry import Registry
from sockgw.outer.site import (
    admin_root,
    make_site,
    socket_root,
)
from sockgw.outer.targets import Target, Targets
from sockgw.outer.targetsfile import TargetsFile
from sockgw.outer.udp import UDPListener
from sockgw.tunnel.carrier import server_resource
from sockgw.tunnel.masking import FAST

# On the socket port, beside the tunnels: handshakes under way, health checks, the admin page.
_SPARE_CONNECTIONS = 1_000

# While draining, an idle connection is kept so long for a request that was on its way when we
# decided to close it: several round trips of any network, and no burden to a restart.
_GRACE = 1.0  # seconds

# At the very end, for inner layers to answer our close and for clients to take what they were
# told. More than the second that a carrier gives its peer.
_PARTING = 1.5  # seconds

__all__ = ["OuterService", "make_service"]


def make_service(options: RoleOptions) -> OuterService:
    """Return the service for these options; what is wrong ends the process with one sentence."""
    from twisted.internet import reactor

    try:
        return OuterService(cast(OuterConfig, options.config), reactor, options.parent)
    except (ConfigError, OSError) as error:
        raise SystemExit(f"sockgw-outer: {error}") from None


class OuterService(Daemon):
    """The outer layer."""

    _log = Logger()

    def __init__(self, config: OuterConfig, reactor: Any, twistd: Any = None) -> None:
        """Raises ConfigError where a file that the configuration names is wrong."""
        super().__init__("sockgw-outer", reactor, twistd, config.log_format)
        self._config = config
        self._waiting: Crowd[Any] = Crowd()  # for their PROXY headers
        self.edge = Edge(
            reactor.seconds,
            trusts=Networks.parse(config.trust_proxy_protocol).contains,
            patience=config.head_timeout,
            max_waiting=config.max_connections,
            waiting=self._waiting,
        )
        self._deadlines = Deadlines(reactor, _tick(config))
        self._registry = Registry(config.max_tunnels, config.max_tunnels_per_key, reactor.seconds)
        self._metrics = Metrics()
        self._metrics.edge = self.edge
        self._access_log = AccessLog(config.access_log, config.log_format, reactor)
        self._gateway = Gateway(
            config,
            reactor,
            self._deadlines,
            self._registry,
            Forwarding(Networks.parse(config.trust_proxy)),
            self._metrics,
            self._access_log,
        )
        try:
            self._targets = TargetsFile(config.targets, reactor, self._use)
        except ConfigError as error:
            if error.line is None:  # of the file as such: say which option named it
                error = ConfigError(error.problem, option="--targets", value=config.targets)
            raise error from None
        self._use(self._targets.current)
        self._keyring = Keyring(config.public_key, reactor)
        self._admission = Admission(
            config, reactor, self._keyring, self._registry, self._metrics, self._keyring.decoy
        )
        self._keyring.on_change = self._admission.revoke
        self._metrics.gauge_tunnels = self._registry.identifiers
        self._metrics.gauge_suspended = self._registry.suspended_identifiers
        self._metrics.gauge_held = lambda: len(self._gateway.dispatcher.held.relays)
        self._metrics.gauge_streams = self._registry.streams
        self._metrics.gauge_clients = lambda: self._gateway.connections
        self._metrics.live_tunnels = lambda: [
            (
                member.tunnel.bytes_in,
                member.tunnel.bytes_out,
                member.tunnel.session.stalls,
                member.tunnel.session.resent,
            )
            for member in self._registry
        ]
        self._ports: list[IListeningPort] = []
        self._target_ports = TargetPorts(
            reactor,
            lambda target: RawFactory(
                self._gateway, target, self._deadlines, reactor.seconds, config.idle_timeout
            ),
            lambda target: UDPListener(
                self._gateway, target, config, self._deadlines, reactor.seconds
            ),
            others=lambda: self._ports,
            reuse_port=config.reuse_port,
            edge=self.edge,
        )
        self._carriers: Crowd[Any] = Crowd()

    def privilegedStartService(self) -> None:
        config = self._config
        carriers = server_resource(self.reactor, config.handshake_timeout, self._admission.opened)
        make = partial(
            make_site,
            clock=self.reactor,
            head_timeout=config.handshake_timeout,
            max_connections=config.max_tunnels + _SPARE_CONNECTIONS,
        )
        root = socket_root(
            carriers,
            lambda: self._gateway.unready,
            None if config.admin_port else self._metrics,
            config.admin_password,
            self,
            self.reactor,
        )
        site = make(root)
        self._carriers = site.carriers
        reuse = config.reuse_port
        self.listen("socket-port", config.socket_port, site, self._opened, reuse_port=reuse)
        if config.admin_port:
            site = make(admin_root(self._metrics, config.admin_password, self, self.reactor))
            self.listen("admin-port", config.admin_port, site, self._opened, reuse_port=reuse)
        passthrough = Passthrough(
            self._gateway,
            self._deadlines,
            self._metrics,
            self.reactor.seconds,
            patience=config.head_timeout,
            limit=config.max_client_hello,
            flush_timeout=config.idle_timeout,
        )
        # Last: no client is let in before there is somebody to ask.
        self.listen(
            "app-port",
            config.app_port,
            ClientFactory(
                self._gateway,
                self._deadlines,
                _limits(config),
                self.reactor.seconds,
                later=partial(self.reactor.callLater, 0),
            ),
            self._opened,
            reuse_port=reuse,
            before_tls=passthrough.before,
        )
        try:
            self._target_ports.use(self._targets.current.ports)
        except ConfigError as error:
            raise self._exit(f"{config.targets}: {error}") from None
        super().privilegedStartService()

    def startService(self) -> None:
        super().startService()
        self._targets.start()
        self._keyring.start()
        if not FAST:
            self._log.warn("Autobahn's native code is missing: WebSocket masking will be slow")
        config = self._config
        if not config.socket_host and not all(map(_ends_tls, config.socket_port)):
            self._log.warn(
                "no --socket-host: an inner layer's proof for another name would be accepted here,"
                " if somebody to whom it was made passed it on at once"
            )
        self._log.info(
            "outer layer started ({build}): targets={targets} keys={keys}",
            build=BUILD,
            targets=len(self._targets.current),
            keys=len(self._keyring),
        )

    def stopService(self) -> Deferred[None]:
        closing = [maybeDeferred(port.stopListening) for port in self._ports]
        closing.append(self._target_ports.close())
        self._ports.clear()
        self._gateway.dispatcher.stop()
        self._admission.stop()
        self._targets.stop()
        self._keyring.stop()
        self._deadlines.stop()
        stopped: Deferred[None] = DeferredList(closing)  # type: ignore[assignment]
        stopped.addCallback(lambda _: maybeDeferred(super(OuterService, self).stopService))
        stopped.addBoth(self._close_log)
        return stopped

    def drain(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._drain())

    async def _drain(self) -> None:
        timeout = self._config.drain_timeout
        gateway, admission = self._gateway, self._admission
        self._log.info(
            "draining: {count} requests under way, at most {timeout:g} s",
            count=gateway.busy,
            timeout=timeout,
        )
        gateway.drain(min(timeout, _GRACE))
        admission.drain()
        ports, self._ports = self._ports, []
        over = self.reactor.seconds() + timeout
        for port in ports:
            await close_listener(self.reactor, port)
        await self._target_ports.close()
        # Only now: whoever dials again must not find this one's listener once more.
        admission.leave()
        # Who is known by its balancer alone is no client yet; a header is there at once or never.
        await self._within(min(timeout, _GRACE), self._waiting.emptied())
        if await self._within(max(over - self.reactor.seconds(), 0), gateway.emptied()):
            self._log.info("drained")
        else:
            self._log.warn("drain-timeout is over: {count} requests cut off", count=gateway.busy)
        gateway.dispatcher.stop()  # or what the tunnels lose would wait for others
        admission.stop()
        gone = [self._carriers.emptied(), gateway.emptied()]
        await self._within(_PARTING, DeferredList(gone, consumeErrors=True))

    async def _within(self, seconds: float, event: Deferred[Any]) -> bool:
        """Wait for the event; return whether it came within so many seconds."""
        try:
            await event.addTimeout(seconds, self.reactor)
        except TimedOut:
            return False
        return True

    def reload(self) -> None:
        self.edge.check()
        self._targets.check()
        self._keyring.check()
        self._access_log.reopen()

    def _use(self, targets: Targets) -> None:
        """Put targets in force. Raises ConfigError where one cannot have its listener."""
        if self.running:
            self._target_ports.use(targets.ports)
        self._gateway.use(targets)
        if targets.sealed and not any(map(_ends_tls, self._config.app_port)):
            self._log.warn("no --app-port is tls: nobody reaches the targets of protocol tls")

    def _opened(self, port: IListeningPort) -> None:
        self._ports.append(port)
        self._log.info("listening on {where}", where=describe(port))

    def _close_log(self, result: Any) -> Any:
        self._access_log.close()
        return result

    # ------------------------------------------------------------------ for the admin page

    def tunnels(self) -> list[TunnelView]:
        """Return what the admin page shows of the inner layers."""
        return [
            TunnelView(
                identifier=member.identifier,
                address=member.address,
                fingerprint=fingerprint_text(member.fingerprint),
                since=member.since,
                streams=len(member.tunnel.session.streams),
                bytes_in=member.tunnel.bytes_in,
                bytes_out=member.tunnel.bytes_out,
                round_trip=member.tunnel.round_trip,
                suspended=member.tunnel.suspended,
                resumes=member.resumes,
                takeovers=member.takeovers,
                resent=member.tunnel.session.resent,
                passed_over=self._gateway.dispatcher.health.targets_without(member),
            )
            for member in self._registry
        ]

    def targets(self) -> list[TargetView]:
        """Return what the admin page shows of the targets."""
        return [_target_view(target) for target in self._gateway.targets]

    def failures(self) -> list[Any]:
        """Return what went wrong lately, newest first."""
        return list(self._gateway.failures)


def _target_view(target: Target) -> TargetView:
    policy = [
        f"{rule.path} {'*' if rule.methods is None else ' '.join(sorted(rule.methods))}"
        for rule in target.policy.rules
    ]
    return TargetView(
        name=target.name,
        destination=target.destination,
        policy=policy,
        identifiers=sorted(target.identifiers) if target.identifiers is not None else [],
    )


def _ends_tls(description: str) -> bool:
    return description.removeprefix("haproxy:").startswith(("tls:", "ssl:"))


def _tick(config: OuterConfig) -> float:
    """Return how often deadlines are looked at, in seconds: often enough for the shortest of them,
    so that a client that has left is noticed within a second."""
    shortest = min(
        config.timeout,
        config.idle_timeout,
        config.head_timeout,
        config.keep_alive_timeout,
        config.half_close_timeout,
        config.hold or config.timeout,
    )
    return min(max(shortest / 8, 0.02), 0.25)


def _limits(config: OuterConfig) -> ServerLimits:
    return ServerLimits(
        max_header_size=config.max_header_size,
        max_header_count=config.max_header_count,
        max_body_size=config.max_body_size,
        head_timeout=config.head_timeout,
        keep_alive_timeout=config.keep_alive_timeout,
        idle_timeout=config.idle_timeout,
        half_close_timeout=config.half_close_timeout,
        max_h2_streams=config.max_h2_streams,
        max_h2_resets=config.max_h2_resets,
    )
