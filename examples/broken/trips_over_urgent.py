"""Mistake: exceptional conditions are taken for errors; select(2) reports urgent data as one.

Seen in: loops that close whatever select() returns in its third list.
Fails: urgent
"""

import select
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
    while True:
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLPRI)
        ((_, events),) = poll.poll()
        if events & ~select.POLLIN:
            return
        if not (data := sock.recv(65536)):
            return
        sock.sendall(data)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
