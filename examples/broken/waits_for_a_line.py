"""Mistake: bytes are answered line by line, so what does not end in a newline is not answered at all.

Seen in: servers built on readline(), and terminals in between.
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
    """Echo."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock.makefile("rb") as lines:
        for line in lines:
            sock.sendall(line)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
