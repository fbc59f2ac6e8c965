"""The echo server: accepting, echoing, and what may be added to them."""

from echopair.server.echo import EchoServer

__all__ = ["EchoServer"]
