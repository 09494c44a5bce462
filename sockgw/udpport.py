"""A UDP port that takes a bounded number of datagrams in a turn of the reactor.

Twisted's own takes 256 KiB in a turn, counted by what the datagrams hold: a quarter of a million of
one byte each, and of empty ones any number. While somebody sends that many, nobody else is served.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.protocol import AbstractDatagramProtocol
from twisted.internet.udp import Port
from twisted.logger import Logger

from sockgw.protocol.datagrams import MAX_DATAGRAM

__all__ = ["UDPPort"]

_log = Logger()

_MOST = 32  # datagrams in a turn


class UDPPort(Port):
    """Listens on one address, or on all with ``::`` as the interface.

    With ``reuse_port`` several processes of one user can (SO_REUSEPORT). What goes wrong on a
    connected port, as when nobody listens there, is a call of ``connectionRefused``.
    """

    def __init__(
        self,
        reactor: Any,
        port: int,
        protocol: AbstractDatagramProtocol,
        interface: str,
        *,
        reuse_port: bool = False,
    ) -> None:
        super().__init__(port, protocol, interface, MAX_DATAGRAM, reactor)
        self._reuse_port = reuse_port

    def createInternetSocket(self) -> socket.socket:
        made = super().createInternetSocket()
        if self._reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if self.interface == "::":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return made

    def doRead(self) -> None:
        for _ in range(_MOST):
            try:
                datagram, address = self.socket.recvfrom(self.maxPacketSize)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                if self._connectedAddr:
                    self.protocol.connectionRefused()
                return
            try:
                # IPv6 has more than host and port.
                self.protocol.datagramReceived(datagram, address[:2])
            except Exception:  # noqa: BLE001 - others have sent some, too
                _log.failure("a datagram was not taken")
