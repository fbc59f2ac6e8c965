"""Mistake: a connection that is silent for a second is ended, as if nobody could have a reason to wait.

Seen in: default timeouts of proxies and of NAT, which are longer, but of the same kind.
Fails: idle
"""

import socket
import sys
from threading import Thread

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), backlog=128)
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
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
    sock.settimeout(seconds)
    while data := sock.recv(65536):
        sock.settimeout(None)
        sock.sendall(data)
        sock.settimeout(seconds)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
