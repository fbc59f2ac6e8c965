"""Mistake: bytes are decoded to text and encoded again, as if every byte were a part of a character.

Seen in: the tutorials, wherever a payload is printed; every proxy that "only logs".
Fails: every-byte first-bytes
"""

import socket
import socketserver
import sys


class Echo(socketserver.BaseRequestHandler):
    """Echoes text."""

    def handle(self):
        """Serve one connection."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := self.request.recv(65536):
                text = data.decode("utf-8", errors="replace")
                self.request.sendall(text.encode("utf-8"))
        except ConnectionError:
            pass


class Server(socketserver.ThreadingTCPServer):
    """One thread a connection."""

    daemon_threads = True
    request_queue_size = 128


with Server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Echo) as server:
    print("Listening on {}:{}".format(*server.server_address), flush=True)
    server.serve_forever()
