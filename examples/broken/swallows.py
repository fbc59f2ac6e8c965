"""Mistake: bytes are read and not sent back.

Seen in: discard services (RFC 863), sinks, and proxies whose backend is away but not known to be.
Fails: basic
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
    """Take all."""
    while sock.recv(65536):
        pass


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
