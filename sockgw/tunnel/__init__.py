"""The protocol on Twisted: carriers, producers, liveness."""
