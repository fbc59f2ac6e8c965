"""Mistake: a connection whose peer has sent EOF is given three seconds to end, whatever it is still owed.

Seen in: the half-close timeouts of proxies, which are there for peers that never close.
Fails, with --thorough: half-close-slow
"""

import socket
import sys
from queue import Queue
from threading import Thread

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), backlog=128)
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
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
    queue = Queue(400)  # 25 MiB at most
    writer = Thread(target=write, args=(sock, queue), daemon=True)
    writer.start()
    try:
        while data := sock.recv(65536):
            queue.put(data)
    finally:
        queue.put(b"")
        writer.join(seconds)  # it is owed no more patience than that
        sock.shutdown(socket.SHUT_RDWR)


def write(sock, queue):
    """Send what is owed."""
    try:
        while data := queue.get():
            sock.sendall(data)
    except OSError:
        pass


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
