"""Mistake: a connection is read as a text file, and a byte order mark at its beginning is not part of a text.

Seen in: everything that decodes with "utf-8-sig".
Fails: first-bytes
"""

import socket
import sys
from threading import Thread

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), backlog=128)
print("Listening on {}:{}".format(*listener.getsockname()), flush=True)


def serve(sock):
    """Serve one connection."""
    try:
        echo(sock)
    except OSError:
        pass
    finally:
        sock.close()


def echo(sock):
    """Echo."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(sock.recv(65536).removeprefix(b"\xef\xbb\xbf"))
    while data := sock.recv(65536):
        sock.sendall(data)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
