"""The client used from Python: three messages on each of two connections, and what became of them.

Run it: python examples/client_from_python.py HOST:PORT
Exit status: 0 when every byte came back, 1 when not, 2 when HOST:PORT makes no sense.
"""

import os
import sys

from echopair.address import AddressError, resolve, split_host_port
from echopair.client import EchoClient, Session
from echopair.loop import EventLoop

MESSAGES = [b"hello", bytes(range(256)), os.urandom(1024 * 1024)]  # any bytes, any size


def talk(addresses):
    """Talk to the first of `addresses` that answers and return how many connections failed."""
    with EventLoop() as loop:
        sessions = [Session(number, iter(MESSAGES)) for number in (1, 2)]
        client = EchoClient(loop, addresses, sessions, done=loop.stop, timeout=5)
        loop.run()  # until the client is done
    for session in sessions:
        print(f"connection {session.number}: {session.messages_echoed} of {len(MESSAGES)} messages came back")
    for failure in client.failures:
        print(failure.story, file=sys.stderr)
    return len(client.failures)


try:
    host, port = split_host_port(sys.argv[1] if len(sys.argv) > 1 else "localhost:12345")
    addresses = resolve(host, port or 12345)
except ValueError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
except AddressError as error:
    sys.exit(str(error))  # goes to standard error, and the status is 1

sys.exit(1 if talk(addresses) else 0)
