"""sockgw: reach private services through one authenticated WebSocket, dialled from inside."""

__version__ = "0.1.0"
