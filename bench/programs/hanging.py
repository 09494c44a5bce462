"""An origin that takes every connection, and never answers: ``python hanging.py PORT``."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import sys


def main(port: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                taken = key.fileobj
                assert isinstance(taken, socket.socket)
                with contextlib.suppress(ConnectionError):
                    if taken.recv(65_536):
                        continue
                selector.unregister(taken)
                taken.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
