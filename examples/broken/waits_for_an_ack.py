"""Mistake: TCP_NODELAY is not set, so a small answer waits until the one before it is acknowledged, some 40 ms.

Seen in: any server that answers in small pieces (Nagle's algorithm, RFC 896, meets the delayed ACK of RFC 1122).
Fails: latency
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
    while head := sock.recv(16):
        sock.sendall(head)
        if len(head) == 16:  # there is more
            sock.sendall(sock.recv(65536))


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
