"""Mistake: every 400th connection gets a buffer that another one has not emptied.

Seen in: pools of buffers, of workers, of connections to a backend, one of which is spoilt.
Fails, with --thorough: crowd
"""

import socket
import sys
from itertools import count
from threading import Thread

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), backlog=128)
every = int(sys.argv[2]) if len(sys.argv) > 2 else 400
numbers = count(1)
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
    if next(numbers) % every == 0:
        sock.sendall(b"of another")
    while data := sock.recv(65536):
        sock.sendall(data)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
