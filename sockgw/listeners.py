"""How a listener closes without losing whom the kernel has already let in.

A client is connected as soon as the kernel says so, before anybody accepts it. To close a listening
socket resets all who still wait there, and between Twisted's last accept and its close lies at
least a turn of the reactor: at a thousand connections a second that is somebody's. So a second
descriptor keeps the socket open while the port closes; then who waits is accepted in one go, and
the socket closes in the very next system call.
"""

import os
import socket
from typing import Any, cast

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort

__all__ = ["close_listener"]

# What is accepted in one go: beyond any backlog (net.core.somaxconn is 4,096), so that a socket
# that goes on elsewhere, as one of systemd's, cannot hold us.
_MAX_WAITING = 8192


async def close_listener(reactor: Any, port: IListeningPort) -> None:
    """Stop listening; who has connected before is accepted."""
    factory: Any = getattr(port, "factory", None)
    try:
        listening = socket.socket(fileno=os.dup(cast(Any, port).fileno()))
    except (AttributeError, OSError):  # a plugin's port, or no more descriptors
        await maybeDeferred(port.stopListening)
        return
    with listening:
        family = listening.family
        # As for sockets that it was given: a shutdown would reach the queue by any descriptor.
        port._shouldShutdown = False  # type: ignore[attr-defined]
        await maybeDeferred(port.stopListening)
        accepted = _accept_all(listening)
    for connection in accepted:
        with connection:
            try:
                reactor.adoptStreamConnection(connection.fileno(), family, factory)
            except OSError:
                continue  # it has left meanwhile


def _accept_all(listening: socket.socket) -> list[socket.socket]:
    accepted: list[socket.socket] = []
    listening.setblocking(False)
    while len(accepted) < _MAX_WAITING:
        try:
            connection, _ = listening.accept()
        except ConnectionAbortedError:
            continue
        except OSError:  # nobody waits any more, or there are no more descriptors
            break
        connection.setblocking(False)
        accepted.append(connection)
    return accepted
