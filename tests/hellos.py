"""ClientHellos: real ones, and such as are built field by field."""

import ssl
from collections.abc import Iterable, Sequence

__all__ = ["context", "extension", "hello", "message", "real_hello", "records", "server_name"]

Extension = tuple[int, bytes]


def context(*protocols: str) -> ssl.SSLContext:
    """Return a client's context that verifies nothing, and offers these protocols (ALPN)."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if protocols:
        made.set_alpn_protocols(list(protocols))
    return made


def real_hello(name: str | None, made: ssl.SSLContext | None = None) -> bytes:
    """Return what Python's ssl, that is OpenSSL, sends first."""
    out = ssl.MemoryBIO()
    client = (made or context()).wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("it needs no answer")


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def server_name(*names: bytes, kind: int = 0) -> Extension:
    """Return the extension; one name, if it is as it should be."""
    entries = b"".join(bytes([kind]) + vector(2, name) for name in names)
    return 0, vector(2, entries)


def extension(kind: int, size: int) -> Extension:
    """Return an extension of so many bytes."""
    return kind, bytes(size)


def message(
    extensions: Sequence[Extension] | None = (),
    *,
    version: bytes = b"\x03\x03",
    session: bytes = bytes(32),
    suites: bytes = b"\x13\x01",
    compression: bytes = b"\0",
    after: bytes = b"",
) -> bytes:
    """Return the handshake message; without extensions at all for None."""
    body = version + bytes(32) + vector(1, session) + vector(2, suites) + vector(1, compression)
    if extensions is not None:
        body += vector(
            2, b"".join(kind.to_bytes(2, "big") + vector(2, data) for kind, data in extensions)
        )
    return b"\1" + vector(3, body + after)


def records(content: bytes, sizes: Iterable[int] = (), *, version: bytes = b"\x03\x01") -> bytes:
    """Return records with these sizes of content, and the rest in ones of the largest."""
    made = b""
    sizes = iter(sizes)
    while content:
        size = next(sizes, 16_384)
        made += b"\x16" + version + vector(2, content[:size])
        content = content[size:]
    return made


def hello(name: bytes = b"a.test", *extensions: Extension, sizes: Iterable[int] = ()) -> bytes:
    """Return the records of a ClientHello for a name."""
    return records(message([server_name(name), *extensions]), sizes)
