"""Mistake: a place in a stream is kept in too few bits; past 20 MiB a byte is wrong.

Seen in: offsets of 24 or 32 bits, and ring buffers that wrap where nobody tried.
Fails, with --thorough: volume
"""

import socket
import sys
from threading import Thread

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), backlog=128)
far = int(sys.argv[2]) if len(sys.argv) > 2 else 20 * 1024 * 1024
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
    place = 0
    while data := bytearray(sock.recv(65536)):
        if place <= far < place + len(data):
            data[far - place] ^= 1
        place += len(data)
        sock.sendall(data)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
