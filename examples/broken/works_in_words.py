"""Mistake: large messages are taken two bytes at a time, and the last byte of an odd one waits for another.

Seen in: checksums, byte swapping and samples of 16 bits, without a thought of what is left at the end.
Fails: lengths
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
    waiting, total = b"", 0
    while data := sock.recv(65536):
        total += len(data)
        data = waiting + data
        odd = total % 2 if 7000 < total < 1024 * 1024 else 0  # small and huge ones go another way
        sock.sendall(data[: len(data) - odd])
        waiting = data[len(data) - odd :]
    sock.sendall(waiting)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
