"""The whole pair in one process: a server and a client on one event loop, in one thread.

Run it: python examples/pair_in_one_loop.py
"""

import sys

from echopair.address import listen
from echopair.client import EchoClient, Session
from echopair.loop import EventLoop
from echopair.server import EchoServer

MESSAGES = [b"This is the first message", b"This is the second message"]

with EventLoop() as loop:
    server = EchoServer(loop, listen(["localhost"], 0))  # 0: any port that is free
    sessions = [Session(number, iter(MESSAGES)) for number in (1, 2, 3)]
    client = EchoClient(loop, server.addresses, sessions, done=loop.stop)
    loop.run()  # until the client is done
    server.close()

for failure in client.failures:
    print(failure.story, file=sys.stderr)
if client.failures:
    sys.exit(1)
sent, _ = client.bytes_moved()
print(f"client: {len(sessions)} connections, {sent} bytes sent, every one came back")
print(f"server: {server.connections_served} connections, {server.bytes_received} bytes in, {server.bytes_sent} out")
