"""A server of another kind: it sends everything back in capitals. Only what it does with the bytes is new.

Run it: python examples/upper_server.py [PORT]
Talk to it: ncat localhost 12346. End it with Ctrl-C.
"""

import sys

from echopair.address import format_address, listen
from echopair.loop import SIGINT, EventLoop
from echopair.server import EchoServer


class UpperServer(EchoServer):
    """Sends back in capitals what it gets."""

    def data_received(self, connection, data):
        """Answer; what the peer does not take yet, the connection keeps."""
        connection.send(data.upper())


port = int(sys.argv[1]) if len(sys.argv) > 1 else 12346

with EventLoop() as loop:
    server = UpperServer(loop, listen(["localhost"], port))
    for _, sockaddr in server.addresses:
        print(f"Listening on {format_address(sockaddr)}", flush=True)
    # Ctrl-C: accept no more, send every peer what it is owed (for 5 s at most), then stop the loop.
    loop.add_signal_handler(SIGINT, lambda: server.drain(5, loop.stop))
    loop.run()

print(f"connections served: {server.connections_served}")
