"""Dialling origins: only what the allow list permits, verified, in time, with exact reasons."""

import os
from collections.abc import Sequence
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OverallTimeoutError
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
    TCPTimedOutError,
    TimeoutError,
)
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.http.client import Origin, OriginError
from sockgw.inner.allow import AllowList
from sockgw.inner.tcp import NotPermitted, TCPEndpoint, host_and_port
from sockgw.inner.tls import TLSEndpoint, TLSError, client_context
from sockgw.inner.unixsocket import UnixEndpoint
from sockgw.protocol.errors import StreamCode

__all__ = ["Dialler"]


class Dialler:
    """Makes connections to origins.

    https origins must have a certificate from one of the system's authorities or of those in
    ``target_ca_files`` (PEM). ``connect_timeout``, in seconds, bounds resolving, connecting and the
    TLS handshake together, and the wait for a Unix socket whose queue is full. Raises ValueError
    naming the file where one cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        allow: AllowList,
        target_ca_files: Sequence[str],
        connect_timeout: float,
    ) -> None:
        self.reactor = reactor
        self.allow = allow
        self.context = client_context(target_ca_files)
        self.connect_timeout = connect_timeout

    def endpoint(self, origin: Origin) -> IStreamClientEndpoint:
        """Return what connects to that origin, each time afresh."""
        return _OriginEndpoint(self, origin)


@implementer(IStreamClientEndpoint)
class _OriginEndpoint:
    def __init__(self, dialler: Dialler, origin: Origin) -> None:
        self._dialler = dialler
        self._origin = origin

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Fires when bytes may flow: for https after the handshake. Fails with OriginError."""
        dialler = self._dialler
        connecting: Deferred[IProtocol] = Deferred.fromCoroutine(self._connect(protocolFactory))
        connecting.addTimeout(dialler.connect_timeout, dialler.reactor)
        return connecting.addErrback(self._explain)

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        dialler, hostname, port = self._dialler, self._origin.hostname, self._origin.port
        socket = self._origin.socket
        if socket:
            if not dialler.allow.permits_socket(socket):
                raise NotPermitted
            unix = UnixEndpoint(dialler.reactor, socket, dialler.connect_timeout)
            return await unix.connect(factory)
        if not dialler.allow.permits_name(hostname, port):
            raise NotPermitted
        endpoint: IStreamClientEndpoint = TCPEndpoint(
            dialler.reactor,
            hostname,
            port,
            permits=lambda address: dialler.allow.permits(hostname, address, port),
            timeout=dialler.connect_timeout,
        )
        if self._origin.protocol == "https":
            endpoint = TLSEndpoint(dialler.reactor, endpoint, hostname, dialler.context)
        return await endpoint.connect(factory)

    def _explain(self, failure: Failure) -> NoReturn:
        """Raise the OriginError for what went wrong.

        Anything else, such as a cancellation by the caller, stays what it is.
        """
        socket = self._origin.socket
        where = socket or host_and_port(self._origin.hostname, self._origin.port)
        match failure.value:
            case NotPermitted() if socket:
                code = StreamCode.NOT_ALLOWED
                detail = f"unix:{socket} is not on the inner layer's allow list"
            case NotPermitted() if self._dialler.allow.listed:
                code = StreamCode.NOT_ALLOWED
                detail = f"{where} is not on the inner layer's allow list"
            case NotPermitted():
                code = StreamCode.NOT_ALLOWED
                detail = (
                    f"{where} has a metadata, link-local or multicast address,"
                    " which the inner layer's allow list would have to name"
                )
            case DNSLookupError():
                code = StreamCode.DNS_ERROR
                detail = f"cannot resolve {self._origin.hostname}"
            case ConnectionRefusedError():
                code = StreamCode.CONNECTION_REFUSED
                detail = f"{where} refused the connection"
            case TimeoutError() | TCPTimedOutError() | OverallTimeoutError():
                code = StreamCode.CONNECTION_TIMEOUT
                detail = f"{where} could not be connected in time"
            case ConnectError() as error if socket:
                code = StreamCode.UNREACHABLE
                detail = f"{socket}: {_reason(error)}"
            case ConnectError():
                code = StreamCode.UNREACHABLE
                detail = f"{where} is unreachable"
            case TLSError() as error:
                code = StreamCode.TLS_ERROR
                detail = f"TLS: {error}"
            case _:
                failure.raiseException()
        raise OriginError(code, detail) from None


def _reason(error: ConnectError) -> str:
    """Return why a Unix socket cannot be connected to: ``no such file or directory``."""
    number = error.osError
    return os.strerror(number).lower() if isinstance(number, int) else "cannot be connected to"
