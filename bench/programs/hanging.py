"""An origin that takes every connection, and never answers: ``hanging.py PORT``."""

import resource
import socket
import sys

resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
taken = []
with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096) as listener:
    while True:
        taken.append(listener.accept()[0])
