"""Mistake: a connection is ended after 25 seconds, in use or not.

Seen in: the longest lives of connections in pools and proxies, which their peers need not know of.
Fails, with --thorough: life
"""

import socket
import sys
import time
from threading import Thread

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), backlog=128)
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 25.0
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
    over = time.monotonic() + seconds
    while data := sock.recv(65536):
        if time.monotonic() > over:
            return
        sock.sendall(data)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
