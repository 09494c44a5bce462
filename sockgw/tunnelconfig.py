"""The settings that both layers have for their tunnels."""

from dataclasses import dataclass

from sockgw.config import Config, setting
from sockgw.protocol.memory import Limits, Memory, Pool
from sockgw.values import count, milliseconds

__all__ = ["TunnelConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelConfig(Config):
    """What both layers may be told of tunnels. Durations are in seconds, sizes in bytes."""

    ping_interval: float = setting(
        "Time from one ping of a tunnel to the next, whether there is traffic or not.",
        milliseconds,
        metavar="MS",
        default="15000",
    )
    ping_timeout: float = setting(
        "Time after a ping within which some byte must come, or the carrier counts as dead.",
        milliseconds,
        metavar="MS",
        default="10000",
    )
    max_streams: int = setting(
        "Most exchanges at a time in one tunnel.", count, metavar="NUMBER", default="1000"
    )
    max_window: int = setting(
        "Largest window of a stream: what may be under way to a reader that keeps up. It begins "
        "with 262144, and grows as far as the link needs it.",
        count,
        metavar="BYTES",
        default="16777216",
    )
    resend_buffer: int = setting(
        "Most bytes that a tunnel keeps until the other side has acknowledged them, to send them "
        "again on another connection.",
        count,
        metavar="BYTES",
        default="16777216",
    )
    resend_memory: int = setting(
        "The same for all tunnels together.", count, metavar="BYTES", default="268435456"
    )
    receive_buffer: int = setting(
        "Most bytes that a tunnel holds for slow readers; beyond, the exchange that holds most is "
        "given up.",
        count,
        metavar="BYTES",
        default="134217728",
    )
    receive_memory: int = setting(
        "The same for all tunnels together.", count, metavar="BYTES", default="536870912"
    )

    def limits(self) -> Limits:
        """Return the bounds of one tunnel."""
        return Limits(
            max_streams=self.max_streams,
            resend_buffer=self.resend_buffer,
            max_window=self.max_window,
            max_buffered=self.receive_buffer,
        )

    def memory(self) -> Memory:
        """Return new bounds for all tunnels of a process."""
        return Memory(
            resend=Pool(self.resend_memory),
            buffered=Pool(self.receive_memory),
            # Half: what is promised may come on top of what is held.
            promised=Pool(self.receive_memory // 2),
        )
