"""Mistake: what a peer does not read is kept, however much that is: reading goes on, and memory fills.

Seen in: asyncio protocols that write without looking (pause_writing), and everything that puts into a queue.
Fails, with --thorough: back-pressure
"""

import socket
import sys
from queue import SimpleQueue
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
    queue = SimpleQueue()
    writer = Thread(target=write, args=(sock, queue), daemon=True)
    writer.start()
    try:
        while data := sock.recv(65536):
            queue.put(data)
    finally:
        queue.put(b"")
    writer.join()


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
