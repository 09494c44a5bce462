"""The wire, without I/O: frames, credit, sessions and the handshake."""
