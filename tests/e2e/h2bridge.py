"""Brings clients that speak HTTP/2 to a port that speaks HTTP/1.1, each stream on a connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.settings import SettingCodes

__all__ = ["Bridge"]

_WINDOW = 1_000_000
_NOT_PASSED = (b"te", b"connection", b"transfer-encoding", b"keep-alive")


class Bridge:
    """Listens on ``port``, and passes on to ``target``."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._fronts: set[_Front] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *reason: Any) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Front(self), "127.0.0.1", 0, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for front in self._fronts for task in front.leave()]
        await asyncio.gather(*tasks, return_exceptions=True)


class _Front(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._h2 = H2Connection(H2Configuration(client_side=False))
        self._h2.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 10_000
        self._h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = _WINDOW
        self._h2.local_settings.acknowledge()
        self._bodies: dict[int, asyncio.Queue[bytes | None]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._window = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._bridge._fronts.add(self)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(100 * _WINDOW)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._bridge._fronts.discard(self)
        for task in self._tasks.values():
            task.cancel()

    def leave(self) -> list[asyncio.Task[None]]:
        self._transport.abort()
        return list(self._tasks.values())

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self._bodies[event.stream_id] = asyncio.Queue()
                serving = self._serve(event.stream_id, list(event.headers))
                self._tasks[event.stream_id] = asyncio.ensure_future(serving)
            elif isinstance(event, DataReceived) and event.stream_id in self._bodies:
                self._bodies[event.stream_id].put_nowait(event.data)
            elif isinstance(event, StreamEnded) and event.stream_id in self._bodies:
                self._bodies[event.stream_id].put_nowait(None)
            elif isinstance(event, StreamReset) and event.stream_id in self._tasks:
                self._tasks[event.stream_id].cancel()
            elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
                self._window.set()
        self._flush()

    def _flush(self) -> None:
        self._transport.write(self._h2.data_to_send())

    async def _serve(self, stream: int, fields: list[tuple[bytes, bytes]]) -> None:
        writer = uploading = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._bridge.target)
            writer.write(_head(fields))
            uploading = asyncio.ensure_future(self._upload(stream, writer))
            await self._answer(stream, reader)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            with contextlib.suppress(Exception):
                self._h2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
                self._flush()
        finally:
            if uploading is not None:
                uploading.cancel()
            if writer is not None:
                writer.transport.abort()
            del self._bodies[stream], self._tasks[stream]

    async def _upload(self, stream: int, writer: asyncio.StreamWriter) -> None:
        body = self._bodies[stream]
        while (data := await body.get()) is not None:
            if data:
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                with contextlib.suppress(OSError):
                    await writer.drain()
            self._h2.acknowledge_received_data(len(data), stream)
            self._flush()
        writer.write(b"0\r\n\r\n")

    async def _answer(self, stream: int, reader: asyncio.StreamReader) -> None:
        line = await reader.readuntil(b"\r\n")
        status = line.split(b" ")[1]
        fields = await _fields(reader)
        whole = any(name == b"grpc-status" or name == b"content-length" for name, _ in fields)
        head = [(b":status", status), *fields]
        if whole:  # nothing but a head, or an answer of the gateway's own
            self._h2.send_headers(stream, head, end_stream=True)
            self._flush()
            return
        self._h2.send_headers(stream, head)
        self._flush()
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await self._send(stream, await reader.readexactly(size))
            await reader.readexactly(2)
        trailers = await _fields(reader)
        if trailers:
            self._h2.send_headers(stream, trailers, end_stream=True)
        else:
            self._h2.end_stream(stream)
        self._flush()

    async def _send(self, stream: int, data: bytes) -> None:
        while data:
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if room <= 0:
                self._window.clear()
                await self._window.wait()
                continue
            self._h2.send_data(stream, data[:room])
            self._flush()
            data = data[room:]


def _head(fields: list[tuple[bytes, bytes]]) -> bytes:
    pseudo = {name: value for name, value in fields if name.startswith(b":")}
    lines = [
        b"%b %b HTTP/1.1" % (pseudo[b":method"], pseudo[b":path"]),
        b"Host: " + pseudo[b":authority"],
        b"TE: trailers",
        b"Connection: TE",
        b"Transfer-Encoding: chunked",
    ]
    for name, value in fields:
        if name not in pseudo and name not in _NOT_PASSED:
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])


async def _fields(reader: asyncio.StreamReader) -> list[tuple[bytes, bytes]]:
    fields = []
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.partition(b":")
        if name.lower() not in _NOT_PASSED:
            fields.append((name.lower(), value.strip()))
    return fields
