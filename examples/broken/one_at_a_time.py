"""Mistake: one connection is served to its end before the next one is accepted.

Seen in: the first example of every tutorial, and in socketserver.TCPServer without a mix-in.
Fails: many slow-neighbour reset
"""

import socket
import sys

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0))
print("Listening on {}:{}".format(*listener.getsockname()), flush=True)

while True:
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock:
        try:
            while data := sock.recv(65536):
                sock.sendall(data)
        except ConnectionError:
            pass
