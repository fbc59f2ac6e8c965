"""An echo server and an echo client on one selector event loop, in the standard library alone."""

__version__ = "0.1.0"
