"""Telling systemd how the service is doing: sd_notify(3) and its watchdog, in datagrams."""

import os
import socket
import time
from collections.abc import Mapping

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Notifier"]

_log = Logger()

# The manager reads its socket promptly; a stuck one must not hold the reactor.
_SEND_TIMEOUT = 1.0  # seconds


class Notifier:
    """Sends states to ``$NOTIFY_SOCKET``; does nothing where that is not set. Never raises."""

    def __init__(self, environ: Mapping[str, str], clock: IReactorTime) -> None:
        self._environ = environ
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._complained = False

    def ready(self) -> None:
        """Start-up, or reloading, is complete. The watchdog is fed from now on."""
        self._send("READY=1")
        self._feed()

    def reloading(self) -> None:
        """The configuration is being read again; :meth:`ready` follows (Type=notify-reload)."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service is on its way out; systemd's watchdog no longer watches."""
        self._send("STOPPING=1")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def status(self, text: str) -> None:
        """Show a line in ``systemctl status``."""
        self._send("STATUS=" + " ".join(text.split()))

    def _feed(self) -> None:
        if self._timer is not None and self._timer.active():
            return
        self._timer = None
        if period := self._watchdog_period():
            self._send("WATCHDOG=1")
            self._timer = self._clock.callLater(period, self._feed)

    def _watchdog_period(self) -> float | None:
        """Return half the watchdog's limit in seconds; None where nobody watches this process."""
        try:
            limit = int(self._environ["WATCHDOG_USEC"]) / 1e6
            pid = int(self._environ.get("WATCHDOG_PID") or os.getpid())
        except (KeyError, ValueError):
            return None
        return limit / 2 if limit > 0 and pid == os.getpid() else None

    def _send(self, state: str) -> None:
        path = self._environ.get("NOTIFY_SOCKET", "")
        if not path.startswith(("/", "@")):
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_TIMEOUT)
                # A leading @ stands for the NUL of Linux's abstract namespace (unix(7)).
                address = "\0" + path[1:] if path[0] == "@" else path
                sender.sendto(state.encode(), address)
        except (OSError, ValueError) as error:
            if not self._complained:
                self._complained = True
                _log.warn("cannot notify systemd: {error}", error=error)
