"""Mistake: a peer that reads nothing for a second is taken for dead.

Seen in: send timeouts (SO_SNDTIMEO, settimeout()) that were meant for peers that have vanished.
Fails: half-close-slow before-reading
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
    while data := sock.recv(65536):
        sock.settimeout(seconds)
        for start in range(0, len(data), 4096):
            sock.sendall(data[start : start + 4096])
        sock.settimeout(None)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
