"""grpcio's own server, in a process of its own, with methods of each kind on plain bytes.

``python grpc_server.py [CERTIFICATE KEY]``: it prints its port, and each call that was cancelled.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """Return what came."""
    return request


async def collect(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
    """Return how many came, and the sum of all."""
    count, digest = 0, hashlib.sha256()
    async for request in requests:
        count += 1
        digest.update(request)
    return b"%d %s" % (count, digest.hexdigest().encode())


async def expand(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """Send so many messages of such a size."""
    count, size = map(int, request.split())
    for number in range(count):
        yield number.to_bytes(4, "big") * (size // 4)


async def chat(
    requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
) -> AsyncIterator[bytes]:
    """Answer each with itself."""
    async for request in requests:
        yield request


async def first(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
    """Answer after the first message, however many more there would be."""
    async for request in requests:
        return request
    return b""


async def metadata(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """Answer with one field of the metadata, and send some in both places."""
    await context.send_initial_metadata([("x-initial", "1"), ("x-some-bin", b"\0\xff")])
    context.set_trailing_metadata([("x-trailing", "2"), ("x-other-bin", b"\xfe\1")])
    given = dict(context.invocation_metadata() or ())
    return repr(given.get(request.decode())).encode()


async def fail(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """End with a status, and nothing else."""
    await context.abort(grpc.StatusCode.NOT_FOUND, request.decode())
    return b""


async def fail_late(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """End with a status after a message."""
    yield request
    await context.abort(grpc.StatusCode.DATA_LOSS, "no more")


async def hang(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """Send a message, then nothing until it is cancelled."""
    try:
        yield b"begun"
        await asyncio.Event().wait()
    finally:
        print("cancelled", request.decode(), flush=True)


async def hang_chat(
    requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
) -> AsyncIterator[bytes]:
    """Answer the first message, then nothing until it is cancelled, while more may come."""
    async for request in requests:
        yield request
        try:
            await asyncio.Event().wait()
        finally:
            print("cancelled", request.decode(), flush=True)


METHODS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "First": grpc.stream_unary_rpc_method_handler(first),
    "Expand": grpc.unary_stream_rpc_method_handler(expand),
    "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "Hang": grpc.unary_stream_rpc_method_handler(hang),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "HangChat": grpc.stream_stream_rpc_method_handler(hang_chat),
}


async def serve(files: list[str]) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", METHODS),))
    if files:
        certificate, key = (Path(file).read_bytes() for file in files)
        credentials = grpc.ssl_server_credentials([(key, certificate)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print("port", port, flush=True)
    await ended.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
