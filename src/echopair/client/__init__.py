"""The echo client: sessions that send, check what comes back and close; and what they can send."""

from echopair.client.echo import EchoClient
from echopair.client.session import Failure, Session

__all__ = ["EchoClient", "Failure", "Session"]
